"""Remembers which prepared set a source became, so that an unchanged source is not read again.

The index is a small file for each source in `DATA_DIR/.sources/`. A source counts as unchanged where every file below
it has the same path, size, inode and times of change, and the code that reads it is the same. In doubt it is read
again.
"""

import contextlib
import hashlib
import json
import time
from pathlib import Path

from brainseg_jax.data.prepared import is_prepared
from brainseg_jax.files import write_whole
from brainseg_jax.scans.walk import new, walk

_FOLDER = ".sources"
_SETTLED = 3.0  # seconds; file systems count time in steps of up to 2 s, so a younger file can change unnoticed
_PACKAGE = Path(__file__).parents[1]
_READING = ("scans", "data")  # the rooms whose code decides what is read from a file


def signature_of(source: Path) -> str | None:
    """A digest that changes with the source; None where a file is too young to be sure, or cannot be looked up."""
    passed_over = new()
    digest = hashlib.sha256(_code().encode())
    newest = 0.0
    try:
        for file in walk(source, passed_over):
            status = file.stat()
            newest = max(newest, status.st_mtime, status.st_ctime)
            identity = (str(file), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
            digest.update(repr(identity).encode())
    except OSError:
        return None
    for reason, paths in sorted(passed_over.items()):
        digest.update(repr((reason, [str(path) for path in paths])).encode())
    return digest.hexdigest() if newest < time.time() - _SETTLED else None


def find(data_dir: Path, source: Path, signature: str | None) -> Path | None:
    """The prepared set of an unchanged source, or None."""
    if signature is None:
        return None
    try:
        content = json.loads(_index(data_dir, source).read_text())
        folder = data_dir / content["folder"]
        return folder if content["signature"] == signature and is_prepared(folder) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(data_dir: Path, source: Path, signature: str | None, folder: Path) -> None:
    """Records that a source, whose signature was taken before it was read, is prepared in `folder`."""
    if signature is None:
        return
    content = json.dumps({"source": str(source), "signature": signature, "folder": str(folder.relative_to(data_dir))})
    with contextlib.suppress(OSError):  # the index only saves time
        index = _index(data_dir, source)
        index.parent.mkdir(exist_ok=True)
        write_whole(index, lambda path: path.write_text(content))


def _index(data_dir: Path, source: Path) -> Path:
    return data_dir / _FOLDER / f"{hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16]}.json"


def _code() -> str:
    """Digest of the code that reads sources: where it changes, the same files can give other voxels."""
    digest = hashlib.sha256()
    for room in _READING:
        for path in sorted((_PACKAGE / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
