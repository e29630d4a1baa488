"""SIGTERM and SIGINT end a training in order: after the step under way, with a checkpoint."""

import signal
import threading
from types import FrameType

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils


class StopSignal:
    """Listens for SIGTERM and SIGINT while it is used as a context manager. A second signal ends the process at once.

    Attributes:
      name: of the signal that came; None so far.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            self._before = {n: signal.signal(n, self._receive) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def at_once(self) -> bool:
        """Whether this process, which is the only one, may end after this step; with several see `agreed`."""
        return self.name is not None and jax.process_count() == 1

    def agreed(self) -> bool:
        """Whether a signal has come to any process. All processes ask at the same step and get the same answer."""
        came = np.int32(self.name is not None)
        if jax.process_count() > 1:
            came = multihost_utils.process_allgather(came)
        return bool(np.any(came))

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)
        logging.warning("%s: saving after this step, then ending; a second signal ends at once", self.name)
