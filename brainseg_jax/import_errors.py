"""Prints one line instead of a traceback if an import of a command fails. Each command imports this module first."""

import sys
import traceback
from pathlib import Path

from brainseg_jax.files import describe_unforeseen

REMEDY = "pip install 'brainseg_jax[train]'"  # the extra with all requirements of the commands


def _print_failed_import(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """The `sys.excepthook` of a command. Names a missing package and the remedy, else a file with the traceback."""
    if not issubclass(kind, Exception):
        sys.__excepthook__(kind, error, error.__traceback__)
    elif isinstance(error, ModuleNotFoundError) and error.name and _failed_in_this_package(error):
        package = error.name.partition(".")[0]
        print(f"error: this command needs the package {package!r}, which is not installed: {REMEDY}", file=sys.stderr)
    else:
        print(f"error: {describe_unforeseen(error)}", file=sys.stderr)


def _failed_in_this_package(error: ModuleNotFoundError) -> bool:
    """Whether an import in this package failed, rather than one in a file of the user."""
    package = Path(__file__).parent
    return any(Path(frame.filename).is_relative_to(package) for frame in traceback.extract_tb(error.__traceback__))


sys.excepthook = _print_failed_import
