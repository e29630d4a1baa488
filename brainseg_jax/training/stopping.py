"""SIGTERM and SIGINT end a training in order: after the step under way, with a checkpoint."""

import os
import signal
import threading

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Listens for SIGTERM and SIGINT while it is used as a context manager. A second one ends the process at once.

    Python runs a signal's handler between two of its own instructions, and a compilation is a single one of minutes. So
    a thread listens to the pipe that the interpreter's own C handler writes to.

    Attributes:
      name: of the signal that came; None so far.
      promise: what is said when it comes.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.promise = "saving after this step, then ending"

    def __enter__(self) -> "StopSignal":
        self._listens = threading.current_thread() is threading.main_thread()  # Python gives signals to no other
        if self._listens:
            read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._pipe_before = signal.set_wakeup_fd(self._write)
            self._before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
            threading.Thread(target=self._listen, args=(read,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._pipe_before)
            os.close(self._write)  # which ends the thread

    def at_once(self) -> bool:
        """Whether this process, which is the only one, may end after this step; with several see `agreed`."""
        return self.name is not None and jax.process_count() == 1

    def agreed(self) -> bool:
        """Whether a signal has come to any process. All processes ask at the same step and get the same answer."""
        came = np.int32(self.name is not None)
        if jax.process_count() > 1:
            came = multihost_utils.process_allgather(came)
        return bool(np.any(came))

    def _listen(self, pipe: int) -> None:
        with open(pipe, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] not in SIGNALS:
                    continue
                if self.name is not None:
                    os._exit(128 + number[0])
                self.name = signal.Signals(number[0]).name
                logging.warning("%s: %s; a second signal ends at once", self.name, self.promise)
