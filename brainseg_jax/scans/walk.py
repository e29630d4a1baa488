"""Lists the files in a folder and its subfolders; records all that it skips, with the reason."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

IGNORED_NAMES = ("Thumbs.db", "desktop.ini", "__MACOSX")  # names that begin with a dot are ignored too
PassedOver = dict[str, list[Path]]  # unused files and folders by reason
# Suffixes of unsupported images and archives.
UNREAD = {".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".mgh", ".mnc", ".hdr", ".img", ".par", ".rec", ".npy", ".npz"}
UNREAD |= {".mat", ".jpg", ".jpeg", ".jp2", ".bmp", ".gif", ".webp", ".zip", ".tar", ".tgz", ".7z", ".rar", ".xz"}
_LINKED_AGAIN = "a folder that is read under another path"


def walk(path: Path, passed_over: PassedOver) -> list[Path]:
    """Lists files, sorted by path; follows links to folders, but reads each folder once.

    Args:
      path: a file or a folder.
      passed_over: receives hidden files, broken links and unreadable folders.
    """
    if not path.is_dir():
        return [path]
    files: list[Path] = []
    seen: set[tuple[int, int]] = set()
    folders = [path]
    while folders:  # real folders before links, so that a folder is listed under its real path
        links: list[Path] = []
        for folder in folders:
            files += _walk_folder(folder, seen, links, passed_over)
        folders = sorted(links)
    return sorted(files)


def _walk_folder(
    folder: Path, seen: set[tuple[int, int]], links: list[Path], passed_over: PassedOver
) -> Iterator[Path]:
    """Yields the files of a folder and its subfolders; adds links to folders to `links`."""
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            status = current.stat()
            if (identity := (status.st_dev, status.st_ino)) in seen:
                passed_over[_LINKED_AGAIN].append(current)
                continue
            seen.add(identity)
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as error:
            passed_over[f"cannot be read ({error.strerror})"].append(current)
            continue
        for entry in entries:
            path = current / entry.name
            if entry.name.startswith(".") or entry.name in IGNORED_NAMES:
                passed_over["a hidden or system file"].append(path)
                continue
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else pending).append(path)
                elif entry.is_file():
                    yield path
                elif entry.is_symlink() and not path.exists():
                    passed_over["a broken link"].append(path)
                else:
                    passed_over["not a regular file"].append(path)
            except OSError as error:
                passed_over[f"cannot be read ({error.strerror})"].append(path)


def new() -> PassedOver:
    """Creates an empty `PassedOver`."""
    return defaultdict(list)


def list_passed_over(passed_over: PassedOver, root: Path) -> list[str]:
    """One line per reason, with the number of paths and the first three of them."""
    lines = []
    for reason, paths in sorted(passed_over.items()):
        if not paths:
            continue
        counts: Counter[Path] = Counter()
        order = []
        for path in paths:  # sort so that each folder is shown once before any is repeated
            order.append((counts[path.parent], path))
            counts[path.parent] += 1
        first = [path for _, path in sorted(order)[:3]]
        shown = [str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in first]
        lines.append(f"{len(paths)} x {reason}: {', '.join(shown)}{', ...' if len(paths) > 3 else ''}")
    return lines
