"""The slices of a cohort at the network's size: arrays in memory, or records of a file that are read on demand."""

import contextlib
import fcntl
import shutil
import uuid
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from brainseg_jax.errors import InputError
from brainseg_jax.files import explain, format_bytes
from brainseg_jax.scans.description import Description

FOLDER = "slices"  # in the data folder
_RECORDS, _INDEX, _LOCK = "slices.array_record", "cases.npz", ".lock"
_OPTIONS = "group_size:1"  # one record per group, so that reading one slice decodes no other


def bits_type(description: Description) -> np.dtype:
    """The smallest unsigned type with one bit per target and one for ignored labels, if there are any."""
    count = len(description.targets) + (description.ignore is not None)
    return np.dtype(np.uint8 if count <= 8 else np.uint16 if count <= 16 else np.uint32)


class SlicesInMemory(NamedTuple):
    """Slices as arrays.

    Attributes:
      images: [N, side, side, C] uint8.
      target_bits: [N, side, side, 1] unsigned, see `cohort.unpack_targets`.
    """

    images: np.ndarray
    target_bits: np.ndarray

    @property
    def count(self) -> int:  # type: ignore[override]  # as in `SlicesOnDisk`; hides `tuple.count`
        """N."""
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(side, side, C)."""
        return self.images.shape[1:]

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images [n, side, side, C] and target bits [n, side, side, 1] of slices [n]."""
        return self.images[indices], self.target_bits[indices]

    def read_range(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Like `read`, for consecutive slices and without a copy."""
        return self.images[start:stop], self.target_bits[start:stop]

    def reordered(self, order: np.ndarray) -> "SlicesInMemory":
        """The same slices in the given order, [N] int."""
        return SlicesInMemory(*self.read(order))


class SlicesOnDisk:
    """Slices as records of a file. They are read on demand, from any number of threads.

    Attributes:
      folder: of the file.
      shape: (side, side, C).
      count: N.
    """

    def __init__(
        self, folder: Path, *, shape: tuple[int, int, int], bits: np.dtype, count: int, order: np.ndarray | None = None
    ) -> None:
        """Does not open the file yet.

        Args:
          folder: as given to `write_slices`.
          shape: (side, side, C).
          bits: dtype of the target bits.
          count: N.
          order: index of the record of each slice, [N] int; None: in the order of the file.
        """
        self.folder, self.shape, self.count = folder, shape, count
        self._bits, self._order = bits, order

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `SlicesInMemory.read`. Raises InputError if the file is damaged."""
        return self._decoded(np.asarray(indices) if self._order is None else self._order[indices])

    def read_range(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """See `SlicesInMemory.read_range` and `read`."""
        return self.read(np.arange(start, stop))

    def reordered(self, order: np.ndarray) -> "SlicesOnDisk":
        """See `SlicesInMemory.reordered`."""
        order = order if self._order is None else self._order[order]
        return SlicesOnDisk(self.folder, shape=self.shape, bits=self._bits, count=self.count, order=order)

    def _decoded(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        side, pixels = self.shape[0], int(np.prod(self.shape))
        images = np.empty((len(records), *self.shape), np.uint8)
        bits = np.empty((len(records), side, side, 1), self._bits)
        try:
            for index, record in enumerate(map(self._source.__getitem__, records.tolist())):
                images[index] = np.frombuffer(record, np.uint8, pixels).reshape(self.shape)
                bits[index] = np.frombuffer(record, self._bits, side * side, pixels).reshape(side, side, 1)
        except Exception as error:  # array_record has no exception types of its own
            raise damaged_store(self.folder, error) from error
        return images, bits

    @cached_property
    def _source(self) -> ArrayRecordDataSource:
        source = ArrayRecordDataSource(str(self.folder / _RECORDS))
        if len(source) != self.count:
            raise ValueError(f"{len(source)} slices in {_RECORDS}, {self.count} in {_INDEX}")
        return source


def write_slices(
    folder: Path,
    slices: Iterable[tuple[np.ndarray, np.ndarray]],
    index: Callable[[], dict[str, np.ndarray]],
    *,
    expected_bytes: int,
) -> None:
    """Writes the slices of a cohort, completely or not at all.

    If two processes write the same slices, the second uses the file of the first.

    Args:
      folder: new folder for the slices.
      slices: images and target bits, case by case.
      index: returns the arrays to store with the slices; called after the last slice.
      expected_bytes: upper bound of the size of the file.

    Raises:
      InputError: the disk is full or not writable.
    """
    partial = folder.parent / f"incomplete-{uuid.uuid4().hex[:12]}"
    lock = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock_of(partial).open("w")
        with contextlib.suppress(OSError):  # a file system without locks, where nothing counts as stale
            fcntl.flock(lock, fcntl.LOCK_EX)  # before the folder exists, so that it never looks stale
        partial.mkdir()
        _remove_stale(folder.parent)
        if (free := shutil.disk_usage(partial).free) < expected_bytes:
            raise InputError(
                f"{folder}: the slices at the network's size need up to {format_bytes(expected_bytes)}, but only "
                f"{format_bytes(free)} are free; make room, or set another --config.data.dir or a smaller "
                "data.image_size"
            )
        writer = ArrayRecordWriter(str(partial / _RECORDS), _OPTIONS)
        try:
            for images, bits in slices:
                for image, image_bits in zip(images, bits, strict=True):
                    writer.write(image.tobytes() + image_bits.tobytes())
        finally:
            writer.close()
        arrays: dict[str, Any] = index()
        np.savez(partial / _INDEX, **arrays)
        partial.rename(folder)
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError for disk errors
        if (folder / _INDEX).exists():
            return
        raise InputError(f"{folder}: cannot be written to ({explain(error, 'another --config.data.dir')})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            _lock_of(partial).unlink(missing_ok=True)
            lock.close()
        with contextlib.suppress(OSError):  # it is not empty
            folder.parent.rmdir()


def _remove_stale(folder: Path) -> None:
    """Removes files of killed processes. The lock of a file that a process still writes is taken."""
    for path in folder.glob("incomplete-*"):
        if path.suffix == _LOCK:
            continue
        with contextlib.suppress(OSError), _lock_of(path).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
            _lock_of(path).unlink(missing_ok=True)


def _lock_of(partial: Path) -> Path:
    return partial.with_name(partial.name + _LOCK)


def read_index(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays stored with the slices; None if there is no file. Raises InputError if it is damaged."""
    if not folder.exists():
        return None
    try:
        with np.load(folder / _INDEX) as file:
            return dict(file)
    except Exception as error:  # reading a zip file raises many types
        raise damaged_store(folder, error) from error


def damaged_store(folder: Path, reason: object) -> InputError:
    """The error for a file of slices that cannot be read."""
    return InputError(f"{folder}: damaged ({reason}). Delete this folder; the next run creates it again.")
