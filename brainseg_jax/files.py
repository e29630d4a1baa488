"""Files that are whole or not there, whoever else writes them at the same time."""

import uuid
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a path beside `path`, of the same suffix and nobody else's, and renames: all or nothing.

    Of several processes that write one file the last stands; none meets the half-written file of another.

    Args:
      path: what to write; a file that is there is replaced.
      write: takes the path that it writes to.
    """
    partial = path.with_name(f".part-{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
