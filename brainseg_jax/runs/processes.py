"""Runs an action on one process, or on all, and makes all processes fail together."""

import socket
import zlib
from collections.abc import Callable
from typing import TypeVar, cast

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from brainseg_jax.errors import InputError, StorageError, TrainingStopped

T = TypeVar("T")
_KINDS = (InputError, StorageError, TrainingStopped, RuntimeError)  # error types that other processes can raise


def on_first_process(what: str, action: Callable[[], T], *, quiet: bool = False) -> T | None:
    """Runs `action` on process 0 while the others wait.

    Args:
      what: the action, for messages: a verb phrase.
      action: may raise any exception.
      quiet: True: the processes do not log that they reached this point.

    Returns:
      The result of `action` on process 0; None on the others.

    Raises:
      Exception: on process 0 the error of `action`; on the others an error of the same type, so that no process waits
        forever.
    """
    result: T | None = None
    error: Exception | None = None
    if jax.process_index() == 0:
        try:
            result = action()
        except Exception as caught:  # any type: otherwise the others wait until the heartbeat fails
            error = caught
    if jax.process_count() > 1:
        if not quiet:
            logging.info("process %d of %d: %s", jax.process_index(), jax.process_count(), what)
        kinds = [number for number, kind in enumerate(_KINDS) if isinstance(error, kind)]
        number = -1 if error is None else (kinds or [len(_KINDS) - 1])[0]
        number = int(multihost_utils.broadcast_one_to_all(np.int32(number)))
        if number >= 0 and error is None:
            raise _KINDS[number](f"process 0 could not {what}; see its error message")
    if error is not None:
        raise error
    return result


def on_all_processes(what: str, action: Callable[[], T]) -> T:
    """Runs `action` on every process. If it raises on one, all raise, so that no process waits forever.

    Args:
      what: the action, for messages: a verb phrase.
      action: may raise any exception; must not wait for other processes.

    Raises:
      Exception: the error of `action`; if it failed only on other processes, an error of the same type.
    """
    result: T | None = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:
        error = caught
    kinds = [number for number, kind in enumerate(_KINDS) if isinstance(error, kind)]
    number = -1 if error is None else (kinds or [len(_KINDS) - 1])[0]
    maximum = max(_of_all_processes(number))
    if error is not None:
        raise error
    if maximum >= 0:
        raise _KINDS[maximum](f"another process could not {what}; see its error message")
    return cast(T, result)


def minimum_of_processes(number: int) -> int:
    """The minimum of an integer over all processes."""
    return min(_of_all_processes(number))


def processes_of_host() -> int:
    """The number of processes of this run on this machine."""
    host = zlib.crc32(socket.gethostname().encode())
    return _of_all_processes(host).count(host)


def _of_all_processes(number: int) -> list[int]:
    """An integer below 2**62 in magnitude from each process. Sent as two halves, since jax has 32-bit integers."""
    if jax.process_count() == 1:
        return [number]
    halves = np.array([number >> 31, number & (2**31 - 1)], np.int32)
    return [(int(high) << 31) + int(low) for high, low in multihost_utils.process_allgather(halves)]
