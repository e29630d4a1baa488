"""The slices of a cohort as the network sees them: arrays in memory, or records of a file, read as they are needed."""

import contextlib
import fcntl
import shutil
import uuid
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from brainseg_jax.errors import InputError
from brainseg_jax.files import explain, format_bytes
from brainseg_jax.scans.description import Description

FOLDER = "slices"  # below the data folder
_RECORDS, _INDEX, _LOCK = "slices.array_record", "cases.npz", ".lock"
_OPTIONS = "group_size:1"  # a record a group, so that a random slice costs no other one


def bits_type(description: Description) -> np.dtype:
    """The smallest type that has a bit for each target and one for labels to be ignored."""
    count = len(description.targets) + (description.ignore is not None)
    return np.dtype(np.uint8 if count <= 8 else np.uint16 if count <= 16 else np.uint32)


class SlicesInMemory(NamedTuple):
    """Arrays.

    Attributes:
      images: [N, side, side, C] uint8.
      target_bits: [N, side, side, 1] unsigned, see `cohort.unpack_targets`.
    """

    images: np.ndarray
    target_bits: np.ndarray

    @property
    def count(self) -> int:
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
        """The same of consecutive slices, without a copy."""
        return self.images[start:stop], self.target_bits[start:stop]

    def reordered(self, order: np.ndarray) -> "SlicesInMemory":
        """The same slices in another order, [N] int."""
        return SlicesInMemory(*self.read(order))


class SlicesOnDisk:
    """Records of a file, read as they are asked for, by any number of threads.

    Attributes:
      folder: of the file.
      shape: (side, side, C).
      count: N.
    """

    def __init__(
        self, folder: Path, *, shape: tuple[int, int, int], bits: np.dtype, count: int, order: np.ndarray | None = None
    ) -> None:
        """Opens nothing yet.

        Args:
          folder: of `write_slices`.
          shape: (side, side, C).
          bits: type of the target bits.
          count: N.
          order: index of the record of each slice, [N] int; None: they are in order.
        """
        self.folder, self.shape, self.count = folder, shape, count
        self._bits, self._order = bits, order

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `SlicesInMemory.read`. Raises InputError where the file is damaged."""
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
        except Exception as error:  # array_record has no kinds of errors
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
    """Writes the slices of a cohort, all or nothing. Of two processes that write the same, the second uses the first's.

    Args:
      folder: that is made.
      slices: images and target bits of case after case.
      index: makes what is kept beside the slices, after all of them.
      expected_bytes: how large the file will be.

    Raises:
      InputError: the disk has no room, or cannot be written to.
    """
    partial = folder.parent / f"incomplete-{uuid.uuid4().hex[:12]}"
    lock = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock_of(partial).open("w")
        with contextlib.suppress(OSError):  # of a file system without locks; nothing is taken for stale there
            fcntl.flock(lock, fcntl.LOCK_EX)  # before there is a folder that could be taken for a killed process's
        partial.mkdir()
        _remove_stale(folder.parent)
        if (free := shutil.disk_usage(partial).free) < expected_bytes:
            raise InputError(
                f"{folder}: the slices at the network's size take at most {format_bytes(expected_bytes)}, and "
                f"{format_bytes(free)} are free; make room, or give another --config.data.dir, or a smaller "
                "data.image_size"
            )
        writer = ArrayRecordWriter(str(partial / _RECORDS), _OPTIONS)
        try:
            for images, bits in slices:
                for image, of_image in zip(images, bits, strict=True):
                    writer.write(image.tobytes() + of_image.tobytes())
        finally:
            writer.close()
        np.savez(partial / _INDEX, **index())
        partial.rename(folder)
    except (OSError, RuntimeError) as error:  # array_record reports what the disk does as a RuntimeError
        if (folder / _INDEX).exists():
            return
        raise InputError(f"{folder}: cannot be written to ({explain(error, 'another --config.data.dir')})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            _lock_of(partial).unlink(missing_ok=True)
            lock.close()
        with contextlib.suppress(OSError):  # others are in it
            folder.parent.rmdir()


def _remove_stale(folder: Path) -> None:
    """Removes what killed processes left: the lock of a file that is still being written cannot be taken."""
    for left in folder.glob("incomplete-*"):
        if left.suffix == _LOCK:
            continue
        with contextlib.suppress(OSError), _lock_of(left).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
            _lock_of(left).unlink(missing_ok=True)


def _lock_of(partial: Path) -> Path:
    return partial.with_name(partial.name + _LOCK)


def read_index(folder: Path) -> dict[str, np.ndarray] | None:
    """What is kept beside the slices; None where there are none. Raises InputError where it is damaged."""
    if not folder.exists():
        return None
    try:
        with np.load(folder / _INDEX) as file:
            return dict(file)
    except Exception as error:  # a zip file raises many kinds
        raise damaged_store(folder, error) from error


def damaged_store(folder: Path, reason: object) -> InputError:
    """The error for a file of slices that cannot be read."""
    return InputError(f"{folder}: damaged ({reason}). Delete this folder; the next run makes it again.")
