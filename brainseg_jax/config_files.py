"""Finds config files by path or by name: `--config=configs/attn_dice.py:cpu` and `--config=attn_dice.py:cpu`."""

from pathlib import Path

from brainseg_jax.errors import InputError

_PACKAGE = Path(__file__).parent


def configs_folder() -> Path:
    """The folder of the configs of this package: inside the package, or beside it in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.with_name("configs")


def config_names() -> list[str]:
    """The file names of the configs of this package."""
    return sorted(path.name for path in configs_folder().glob("*.py") if path.name != "__init__.py")


def find_config(text: str) -> str:
    """Returns the path of a config file.

    Args:
      text: A path, or the name of a config of this package with or without `.py`. An existing file takes precedence.
        The text can end in a colon and a scale, which the result keeps.

    Raises:
      InputError: There is no such file and no config of this name.
    """
    file, colon, scale = text.partition(":")
    if not Path(file).is_file():
        path = configs_folder() / (file if file.endswith(".py") else f"{file}.py")
        if path.name not in config_names() or Path(file).name != file:
            raise InputError(
                f"--config={text}: there is no file {file}; give the path of a config file, or the name of one of "
                f"this package: {', '.join(config_names())}"
            )
        file = str(path)
    return f"{file}{colon}{scale}"
