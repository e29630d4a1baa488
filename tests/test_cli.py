"""A mistake on the command line gives a one-line error message and exit status 2."""

import logging
import subprocess
import sys

import pytest

from brainseg_jax import cli

CONFIG = """
import ml_collections
from brainseg_jax.errors import InputError

def get_config(preset="none"):
    config = ml_collections.ConfigDict({"train": {"epochs": 3}})
    if preset == "typo":
        config.lock().train.epoch = 4
    elif preset != "none":
        raise InputError(f"preset {preset!r} is unknown: use none")
    return config
"""
COMMAND = """
from absl import flags
from ml_collections import config_flags
from brainseg_jax import cli
from brainseg_jax.errors import InputError

config = config_flags.DEFINE_config_file("config", None)
flags.DEFINE_bool("fail", False, "")

def main(argv):
    if flags.FLAGS.fail:
        raise InputError("scan.tif: is empty")
    print(config.value.train.epochs)

cli.run(main)
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "broken.py").write_text("This is text, not a config.\n")
    (tmp_path / "command.py").write_text(COMMAND)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "command.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    return run


def test_a_right_command_line_runs(run):
    result = run("--config=config.py", "--config.train.epochs=7")
    assert (result.returncode, result.stdout) == (0, "7\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=config.py", "--config.train.epoch=3"], ["--config.train.epoch=3", '"epochs" instead of "epoch"']),
        (["--config=config.py", "--config.trian.epochs=3"], ["no key 'trian'"]),
        (["--config=config.py", "--config.train.epochs=many"], ["--config.train.epochs=many", "invalid"]),
        (["--config=config.py:large"], ["error: preset 'large' is unknown: use none\n"]),
        (["--config=config.py:typo"], ['config.py, line 8: Key "epoch"', '"epochs" instead of']),
        (["--config=missing.py"], ["the config file cannot be read", "missing.py"]),
        (["--config=broken.py"], ["not valid Python", "broken.py, line 1"]),
        (["--conig=config.py"], ["Unknown command line flag 'conig'. Did you mean: config"]),
        (["--config=config.py", "epochs=3"], ["unexpected argument 'epochs=3'"]),
        (["--config=config.py", "--fail"], ["error: scan.tif: is empty\n"]),
    ],
)
def test_a_mistake_is_named(run, arguments, words):
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("path", "level", "shown"),
    [
        (cli.__file__, logging.INFO, True),
        ("/home/me/brainseg_jax/.venv/lib/orbax/manager.py", logging.INFO, False),  # a clone is named like the package
        ("/home/me/brainseg_jax/.venv/lib/orbax/manager.py", logging.WARNING, True),
    ],
)
def test_the_console_shows_our_messages_and_warnings(path, level, shown):
    assert cli._is_shown(logging.LogRecord("absl", level, path, 1, "words", (), None)) is shown


def test_the_console_does_not_show_that_orbax_only_reads():
    path = "/usr/lib/orbax/checkpoint_manager.py"
    for words in ("Options.read_only=True, setting create=False.", "Given directory is read only=/runs/a"):
        assert not cli._is_shown(logging.LogRecord("absl", logging.WARNING, path, 1, words, (), None))
