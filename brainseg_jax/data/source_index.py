"""An index from sources to prepared sets, so that an unchanged source is not read again.

The index has one small file per source in `DATA_DIR/.sources/`. A source is unchanged if every file in it has the same
path, size, inode and times, and the code that reads it is the same. In case of doubt the source is read again.
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
_MIN_AGE = 3.0  # seconds; file times have steps of up to 2 s, so a newer file could change unnoticed
_PACKAGE = Path(__file__).parents[1]
_READERS = ("scans", "data")  # packages with code that reads files


def signature_of(source: Path) -> str | None:
    """A digest that changes with the source; None if a file is too new to be sure, or cannot be accessed."""
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
    return digest.hexdigest() if newest < time.time() - _MIN_AGE else None


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
    """Records that a source is prepared in `folder`. `signature` must be from before the source was read."""
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
    """Digest of the code that reads sources. If the code changes, the same files can give other voxels."""
    digest = hashlib.sha256()
    for package in _READERS:
        for path in sorted((_PACKAGE / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
