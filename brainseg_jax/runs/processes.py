"""What one of several processes does for all of them."""

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
_KINDS = (InputError, StorageError, TrainingStopped, RuntimeError)  # of errors, as other processes get them


def on_first_process(what: str, action: Callable[[], T], *, quiet: bool = False) -> T | None:
    """Runs `action` on process 0 while the others wait.

    Args:
      what: the action, in words for a message.
      action: may raise anything.
      quiet: whether the log is spared the word of each process that it has come here.

    Returns:
      what `action` returns, on process 0; None on the others.

    Raises:
      Exception: on process 0, what `action` raised; on the others one of the same kind, so that none waits for it.
    """
    result: T | None = None
    error: Exception | None = None
    if jax.process_index() == 0:
        try:
            result = action()
        except Exception as caught:  # an unforeseen one too: the others would wait for the heartbeat
            error = caught
    if jax.process_count() > 1:
        if not quiet:
            logging.info("process %d of %d: %s", jax.process_index(), jax.process_count(), what)
        kinds = [number for number, kind in enumerate(_KINDS) if isinstance(error, kind)]
        number = -1 if error is None else (kinds or [len(_KINDS) - 1])[0]
        number = int(multihost_utils.broadcast_one_to_all(np.int32(number)))
        if number >= 0 and error is None:
            raise _KINDS[number](f"process 0 could not {what}; its own message says why")
    if error is not None:
        raise error
    return result


def on_all_processes(what: str, action: Callable[[], T]) -> T:
    """Runs `action` on every process, and raises on all where one raises, so that none waits for another.

    Args:
      what: the action, in words for a message.
      action: may raise anything; must not wait for other processes.

    Raises:
      Exception: what `action` raised; where it raised on other processes only, an error of the same kind.
    """
    result: T | None = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:
        error = caught
    kinds = [number for number, kind in enumerate(_KINDS) if isinstance(error, kind)]
    own = -1 if error is None else (kinds or [len(_KINDS) - 1])[0]
    highest = max(_of_all_processes(own))
    if error is not None:
        raise error
    if highest >= 0:
        raise _KINDS[highest](f"another process could not {what}; its own message says why")
    return cast(T, result)


def minimum_of_processes(number: int) -> int:
    """The minimum over all processes of a whole number that each has."""
    return min(_of_all_processes(number))


def processes_of_host() -> int:
    """How many processes of this run are on this machine."""
    own = zlib.crc32(socket.gethostname().encode())
    return _of_all_processes(own).count(own)


def _of_all_processes(number: int) -> list[int]:
    """A whole number below 2**62 in size, of each process; in two halves, as jax has 32 bits."""
    if jax.process_count() == 1:
        return [number]
    halves = np.array([number >> 31, number & (2**31 - 1)], np.int32)
    return [(int(high) << 31) + int(low) for high, low in multihost_utils.process_allgather(halves)]
