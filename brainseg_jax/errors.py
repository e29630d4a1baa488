"""The two exceptions that a command prints without a traceback."""


class InputError(ValueError):
    """A file, flag or value from the user that cannot be used.

    The message names the file or key, the value found and what to do. The commands print it without a traceback and
    exit with status 2; nothing is half-written when it is raised.
    """


class TrainingDiverged(RuntimeError):
    """The loss is not a number any more. The message names the step, the last good checkpoint and what to try."""
