"""One line in place of a traceback where a command cannot be imported. Every command module imports this file first."""

import sys
import traceback
from pathlib import Path

from brainseg_jax.files import describe_unforeseen

REMEDY = "pip install 'brainseg_jax[train]'"  # the extra with all that the commands need


def _print_failed_import(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """The `sys.excepthook` of a command: a missing package with the remedy, else the file that holds the traceback."""
    if not issubclass(kind, Exception):
        sys.__excepthook__(kind, error, error.__traceback__)
    elif isinstance(error, ModuleNotFoundError) and error.name and _is_of_this_package(error):
        package = error.name.partition(".")[0]
        print(f"error: the package {package!r} is not installed, and this command needs it: {REMEDY}", file=sys.stderr)
    else:
        print(f"error: {describe_unforeseen(error)}", file=sys.stderr)


def _is_of_this_package(error: ModuleNotFoundError) -> bool:
    """Whether an import of this package failed, rather than one of a user's file."""
    own = Path(__file__).parent
    return any(Path(frame.filename).is_relative_to(own) for frame in traceback.extract_tb(error.__traceback__))


sys.excepthook = _print_failed_import
