"""The one exception that means: what the user gave cannot be used, and here is the remedy."""


class InputError(ValueError):
    """A file, flag or value from the user that cannot be used.

    The message names the file or key, the value found and what to do. The commands print it without a traceback and
    exit with status 2; nothing is half-written when it is raised.
    """
