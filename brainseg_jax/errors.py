"""The exceptions that a command prints without a traceback, each with an exit status of its own (see `cli.run`)."""


class InputError(ValueError):
    """A file, flag or value from the user that cannot be used.

    The message names the file or key, the value found and what to do. The commands print it without a traceback and
    exit with status 2; nothing is half-written when it is raised.
    """


class TrainingDiverged(RuntimeError):
    """A loss or gradient is not a finite number. The message names the step, its patients, the last good checkpoint."""


class StorageError(RuntimeError):
    """The run folder cannot be written to, or what lies there is damaged. The message names what is still whole."""


class TrainingStopped(RuntimeError):
    """SIGTERM or SIGINT came, and the run was saved. The message says how to go on."""


class PartlyDone(RuntimeError):
    """Some of what was asked for is done and written; the message names what could not be done, and why."""
