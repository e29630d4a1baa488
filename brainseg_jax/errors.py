"""Exceptions that a command prints without a traceback. Each has its own exit status (see `cli.run`)."""


class InputError(ValueError):
    """A file, flag or value from the user cannot be used.

    The message names the file or key, the value and the remedy. Commands print it without a traceback and exit with
    status 2. When it is raised, no file is half-written.
    """


class TrainingDiverged(RuntimeError):
    """A loss or gradient is not finite. The message names the step, its patients and the last good checkpoint."""


class StorageError(RuntimeError):
    """The run folder cannot be written to, or its content is damaged. The message names what is intact."""


class TrainingStopped(RuntimeError):
    """SIGTERM or SIGINT arrived, and the run was saved. The message explains how to resume."""


class PartlyDone(RuntimeError):
    """Some results are complete and written. The message lists the missing ones and why."""
