"""What one scan raises is that scan's fault: the others are predicted, and the tables list them in any case."""

import csv
import dataclasses
import errno
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from brainseg_jax import files
from brainseg_jax.data.canvas import Canvas
from brainseg_jax.errors import InputError
from brainseg_jax.inference.ensemble import Member
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.prediction import job
from brainseg_jax.prediction.results import Wanted
from brainseg_jax.prediction.stream import Outcome, predict_scans
from brainseg_jax.scans.description import LGG
from brainseg_jax.scans.scan import Scan, Source


@dataclasses.dataclass(frozen=True, eq=False)
class FakeScan(Scan):
    fails: Exception | None

    def write(self, kind, values, paths, description, words=()):
        paths[0].write_text(f"{values.sum()}")
        if self.fails:
            raise self.fails


@dataclasses.dataclass(frozen=True)
class FakeSource(Source):
    """A scan of 2 slices that raises `fails` at the stage `at`."""

    at: str = ""
    fails: BaseException | None = None
    paths = ()

    def read(self):
        if self.at == "read":
            raise self.fails
        writes = self.fails if self.at == "write" else None
        voxels = np.full((2, 8, 8, 3), 7, np.uint8)
        return FakeScan(voxels, (1.0, 1.0, 1.0), (1, 2), (f"note of {self.name}",), writes)

    def outputs(self, kind, description):
        return [Path(f"{self.name}_{kind}.txt")]


class FakeEnsemble:
    """Finds tumor in every pixel, and raises what a source asks for."""

    def __init__(self, sources):
        self.seconds, self.sources, self.description, self.posts = 0.0, iter(sources), LGG, (PostProcess(),)

    def prepare(self, scan):
        source = next(self.sources)
        while source.at == "read":  # never got here
            source = next(self.sources)
        if source.at == "prepare":
            raise source.fails
        return source

    def predict(self, inputs, on_slices):
        if inputs.at == "predict":
            raise inputs.fails
        return [Member(np.ones((2, 8, 8, 1), np.float32), Canvas((8, 8), (8, 8), 8))]

    def masks(self, probability, canvas):
        """Masks at one half, on every grid."""
        return probability > 0.5


def sources(*faults):
    return [FakeSource(f"P{n}", Path(), *fault) for n, fault in enumerate(faults, start=1)]


def predict(given, tmp_path):
    outcome = Outcome()
    try:
        predict_scans(given, FakeEnsemble(given), tmp_path / "out", Wanted(), outcome)
    except BaseException as error:
        return outcome, error
    return outcome, None


@pytest.fixture(autouse=True)
def log_folder(tmp_path, monkeypatch):
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "logs"))
    monkeypatch.setattr(files, "_log", [])


def test_any_exception_of_one_scan_is_its_fault(tmp_path):
    given = sources(
        (),
        ("read", ValueError("bad header\nsecond line")),
        ("prepare", KeyError("Rows")),
        ("predict", MemoryError()),
        ("write", TypeError("no date")),
        ("read", InputError("/data/P6.nii: damaged")),
        ("write", OSError(errno.ENAMETOOLONG, "File name too long")),
        (),
    )
    outcome, error = predict(given, tmp_path)
    assert error is None
    assert [row["case"] for row in outcome.scans] == ["P1", "P8"]
    assert [(row["case"], row["area"]) for row in outcome.slices] == [("P1", 64.0)] * 2 + [("P8", 64.0)] * 2
    assert sorted(outcome.notes) == ["note of P1", "note of P8"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["P1_pred.txt", "P8_pred.txt"]
    logged = rf"\(unforeseen; its traceback is in {tmp_path}/logs/brainseg_jax_\w+\.log\)"
    expected = [
        rf"P2: ValueError: bad header {logged}",
        rf"P3: KeyError: 'Rows' {logged}",
        rf"P4: MemoryError {logged}",
        rf"P5: TypeError: no date {logged}",
        r"/data/P6\.nii: damaged",
        rf"P7: cannot be written to {tmp_path}/out \(File name too long: a name has at most 255 bytes; give a .*\)",
    ]
    assert len(outcome.faults) == len(expected)
    for fault, words in zip(
        sorted(outcome.faults, key=lambda fault: re.search(r"P\d", fault)[0]), expected, strict=True
    ):
        assert re.fullmatch(words, fault), fault
    (log,) = (tmp_path / "logs").iterdir()  # one for all
    assert log.read_text().count("Traceback") == 4
    assert "ValueError: bad header\nsecond line" in log.read_text()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_all_and_what_is_done_is_known(tmp_path, number):
    given = sources((), (), ("write", OSError(number, "full")), (), (), ())
    outcome, error = predict(given, tmp_path)
    assert isinstance(error, InputError)
    assert str(error) == f"--output={tmp_path}/out cannot be written to (full; make room, or give another folder)"
    assert [row["case"] for row in outcome.scans][:2] == ["P1", "P2"]
    assert len(outcome.scans) < 5 and not outcome.faults
    done = [f"{row['case']}_pred.txt" for row in outcome.scans]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == done  # nothing of half a scan


def test_results_that_were_there_stay_where_new_ones_cannot_be_written(tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("P1_pred.txt", "P2_pred.txt"):
        (tmp_path / "out" / name).write_text("before")
    predict(sources(("write", TypeError()), (), ("write", TypeError())), tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["P1_pred.txt", "P2_pred.txt"]


def test_an_interrupted_prediction_counts_what_is_done(tmp_path):
    outcome, error = predict(sources((), (), ("predict", KeyboardInterrupt()), ()), tmp_path)
    assert isinstance(error, KeyboardInterrupt)
    assert str(error) == f"interrupted; 2 of 4 scans are done and listed in the tables of {tmp_path}/out"
    assert [row["case"] for row in outcome.scans] == ["P1", "P2"]


@pytest.mark.parametrize("error", [KeyboardInterrupt("stop"), InputError("full"), RuntimeError("unforeseen")])
def test_the_tables_are_written_whatever_ends_the_rest(tmp_path, monkeypatch, error):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "in" / "P1_1.png")
    (tmp_path / "out").mkdir()

    def stop(given, ensemble, output, wanted, outcome, expected):
        outcome.scans.append({"case": "P1", "slices": 1})
        outcome.slices.append({"case": "P1", "slice": 1, "area": 3})
        raise error

    monkeypatch.setattr(job, "predict_scans", stop)
    monkeypatch.setattr(job, "names_of", lambda runs: None)
    network = SimpleNamespace(description=LGG, mirror=False)
    run = SimpleNamespace(folder=Path("run"), network=network, posts=(), expected_dice=None, training_scans=None)
    monkeypatch.setattr(job, "load_trained", lambda folder: run)
    monkeypatch.setattr(job, "Ensemble", lambda *_, mirror: SimpleNamespace(members=1, compile=lambda: None))
    with pytest.raises(type(error)):
        job.predict([Path("run")], tmp_path / "in", tmp_path / "out", wanted=Wanted(), mirror=None, overwrite=False)
    with (tmp_path / "out" / "predictions.csv").open() as table, (tmp_path / "out" / "areas.csv").open() as areas:
        assert list(csv.DictReader(table)) == [{"case": "P1", "slices": "1"}]
        assert list(csv.DictReader(areas)) == [{"case": "P1", "slice": "1", "area": "3"}]
