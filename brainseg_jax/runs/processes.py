"""What one of several processes does for all of them."""

from collections.abc import Callable
from typing import TypeVar

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
    result, error = None, None
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


def most_of_processes(number: int) -> int:
    """The maximum over all processes of a whole number that each has."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))
