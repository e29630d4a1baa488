"""SIGTERM ends `predict` like Ctrl-C: the tables list the finished scans."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from brainseg_jax import cli
from brainseg_jax.prediction import job, stream
from brainseg_jax.prediction.results import Wanted
from brainseg_jax.scans.description import LGG

COMMAND = """
import os, signal
from brainseg_jax import cli, predict as command
command.predict = lambda *given, **options: os.kill(os.getpid(), signal.SIGTERM)
cli.run(command.main)
"""


def test_the_tables_are_written(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "in" / "P1_1.png")

    def terminated(given, ensemble, output, wanted, outcome, expected):
        output.mkdir()
        outcome.scans.append({"case": "P1", "slices": 1})
        outcome.slices.append({"case": "P1", "slice": 1, "area": 3})
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 0)  # returns at once; by now Python has called the handler

    monkeypatch.setattr(stream, "_predict_all", terminated)
    monkeypatch.setattr(job, "names_of", lambda runs: None)
    network = SimpleNamespace(description=LGG, mirror=False)
    run = SimpleNamespace(folder=Path("run"), network=network, posts=(), expected_dice=None, training_scans=None)
    monkeypatch.setattr(job, "load_trained", lambda folder: run)
    ensemble = SimpleNamespace(members=1, seconds=0.0, compile=lambda: None)
    monkeypatch.setattr(job, "Ensemble", lambda *_, mirror: ensemble)
    before = signal.getsignal(signal.SIGTERM)
    out = tmp_path / "out"
    words = f"^interrupted; 1 of 1 scans are done and listed in the tables of {out}$"
    with pytest.raises(KeyboardInterrupt, match=words), cli.sigterm_interrupts():
        job.predict([Path("run")], tmp_path / "in", out, wanted=Wanted(), mirror=None, overwrite=False)
    assert signal.getsignal(signal.SIGTERM) == before
    with (out / "predictions.csv").open() as table:
        assert list(csv.DictReader(table)) == [{"case": "P1", "slices": "1"}]


def test_the_command_ends_with_the_status_of_ctrl_c(tmp_path):
    given = ["--run=run", "--input=in", "--output=out"]
    done = subprocess.run([sys.executable, "-c", COMMAND, *given], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 130 and "error: interrupted" in done.stderr


WHILE_WRITING = """
import os, signal
from brainseg_jax import cli, main
from brainseg_jax.data import slice_store
index = slice_store.np.savez
slice_store.np.savez = lambda *given, **options: (index(*given, **options), os.kill(os.getpid(), signal.SIGTERM))
cli.run(main.main)
"""


def test_a_training_ended_while_its_slices_are_written_leaves_nothing(dataset_folder, tmp_path):
    config = Path(__file__).parents[1] / "configs" / "unet_dice.py"
    given = [f"--config={config}:quick", f"--workdir={tmp_path / 'run'}", "--config.data.residence=disk"]
    given += [f"--config.data.source={dataset_folder}", f"--config.data.dir={tmp_path / 'data'}"]
    done = subprocess.run([sys.executable, "-c", WHILE_WRITING, *given], capture_output=True, text=True)
    assert done.returncode == 130 and "error: interrupted" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists() and not (tmp_path / "data" / "slices").exists()
