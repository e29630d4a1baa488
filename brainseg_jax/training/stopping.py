"""Lets a training stop on SIGTERM and SIGINT after the current step, with a checkpoint."""

import os
import signal
import threading

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """A context manager that listens for SIGTERM and SIGINT. A second signal ends the process at once.

    Python calls a signal handler only between two bytecode instructions. A compilation is one instruction that can take
    minutes. So a thread reads the pipe to which the C handler of the interpreter writes.

    Attributes:
      name: Name of the signal that came; None before.
      announcement: Text that is logged when a signal comes.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.announcement = "saving after this step, then stopping"

    def __enter__(self) -> "StopSignal":
        self._listens = threading.current_thread() is threading.main_thread()  # only the main thread can set handlers
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
            os.close(self._write)  # ends the thread

    def may_stop_now(self) -> bool:
        """Whether a signal came and this is the only process. Several processes have to ask `came_to_any` together."""
        return self.name is not None and jax.process_count() == 1

    def came_to_any(self) -> bool:
        """Whether a signal came to any process. All processes call it at the same step and get the same answer."""
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
                logging.warning("%s: %s; a second signal ends at once", self.name, self.announcement)
