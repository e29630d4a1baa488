"""The files in a folder and below, and what is passed over on the way; nothing is left out without a word."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

IGNORED_NAMES = ("Thumbs.db", "desktop.ini", "__MACOSX")  # and whatever begins with a dot
PassedOver = dict[str, list[Path]]  # files and folders by the reason why they are not used
# Endings of images and archives that are not read.
UNREAD = {".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".mgh", ".mnc", ".hdr", ".img", ".par", ".rec", ".npy", ".npz"}
UNREAD |= {".mat", ".jpg", ".jpeg", ".jp2", ".bmp", ".gif", ".webp", ".zip", ".tar", ".tgz", ".7z", ".rar", ".xz"}
_LINKED_AGAIN = "a folder that is in another place too, where it is read"


def walk(path: Path, passed_over: PassedOver) -> list[Path]:
    """Lists files, in order of the path; folders that are links are entered, each folder once.

    Args:
      path: a file, or a folder.
      passed_over: takes hidden files, broken links, and folders that may not be read.
    """
    if not path.is_dir():
        return [path]
    files: list[Path] = []
    seen: set[tuple[int, int]] = set()
    places = [path]
    while places:  # first what lies there, then what links lead to, so a folder keeps its own name
        links: list[Path] = []
        for place in places:
            files += _below(place, seen, links, passed_over)
        places = sorted(links)
    return sorted(files)


def _below(folder: Path, seen: set[tuple[int, int]], links: list[Path], passed_over: PassedOver) -> Iterator[Path]:
    """The files of a folder and of those in it; links to folders are put aside."""
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            status = place.stat()
            if (identity := (status.st_dev, status.st_ino)) in seen:
                passed_over[_LINKED_AGAIN].append(place)
                continue
            seen.add(identity)
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            passed_over[f"cannot be read ({error.strerror})"].append(place)
            continue
        for entry in entries:
            found = place / entry.name
            if entry.name.startswith(".") or entry.name in IGNORED_NAMES:
                passed_over["hidden, or left behind by an operating system"].append(found)
                continue
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else waiting).append(found)
                elif entry.is_file():
                    yield found
                elif entry.is_symlink() and not found.exists():
                    passed_over["a link that leads nowhere"].append(found)
                else:
                    passed_over["not a regular file"].append(found)
            except OSError as error:
                passed_over[f"cannot be read ({error.strerror})"].append(found)


def new() -> PassedOver:
    """A list to fill."""
    return defaultdict(list)


def list_passed_over(passed_over: PassedOver, root: Path) -> list[str]:
    """A line for each reason: how many files or folders, and the first few of them."""
    lines = []
    for reason, paths in sorted(passed_over.items()):
        if not paths:
            continue
        times: Counter[Path] = Counter()
        order = []
        for path in paths:  # one of each folder first
            order.append((times[path.parent], path))
            times[path.parent] += 1
        first = [path for _, path in sorted(order)[:3]]
        shown = [str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in first]
        lines.append(f"{len(paths)} x {reason}: {', '.join(shown)}{', ...' if len(paths) > 3 else ''}")
    return lines
