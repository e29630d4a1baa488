"""A run without its inputs: the run that it started from, its data source, its split file, its devices."""

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow_datasets as tfds
from absl import flags
from absl.testing import flagsaver
from scored import score_runs

from brainseg_jax import evaluate
from brainseg_jax.config import default_config
from brainseg_jax.data.lgg import prepare
from brainseg_jax.data.splits import Split
from brainseg_jax.errors import InputError, TrainingStopped
from brainseg_jax.evaluation.assessment import Assessor
from brainseg_jax.runs.data import find_data
from brainseg_jax.runs.run_folder import claim_run_folder
from brainseg_jax.scans.description import LGG
from brainseg_jax.training.loop import train


@pytest.fixture
def run(dataset_folder, tmp_path):
    """The folder of a run with only its data settings: prepared in one folder, from a source that is gone."""
    content = {"data": {"source": str(tmp_path / "gone"), "dir": str(dataset_folder.parents[2])}}
    content["dataset"] = {"fingerprint": tfds.builder_from_directory(dataset_folder).info.metadata["fingerprint"]}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(content))
    return tmp_path / "run"


def data_config(source, data_dir=""):
    config = default_config().data
    config.source, config.dir = str(source), str(data_dir)
    return config


def test_data_are_found_by_their_fingerprint_where_the_source_is_gone(
    run, dataset_folder, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(tfds.core.constants, "get_default_data_dir", lambda: str(tmp_path / "empty"))
    for source_first in (True, False):  # to go on, and to score
        assert find_data(data_config("nowhere"), run, source_first=source_first) == dataset_folder
    words = "source 'nowhere': no such file or folder; "
    assert caplog.messages == [f"{words}using the prepared data of the run in {dataset_folder}"]
    with pytest.raises(InputError, match=f"^{words[:-2]}"):
        find_data(data_config("nowhere"), None, source_first=True)
    lost = {"dataset": {"fingerprint": "0123456789abcdef"}, "data": {"source": "nowhere", "dir": str(tmp_path)}}
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "config.json").write_text(json.dumps(lost))
    with pytest.raises(InputError) as raised:
        find_data(data_config("nowhere"), tmp_path / "lost", source_first=False)
    assert str(raised.value).startswith(f"{words}the data of the run, fingerprint 0123456789ab, are not in ")
    assert f"{tmp_path}, {tmp_path / 'empty'} either; " in str(raised.value) and "TFDS_DATA_DIR" in str(raised.value)


def test_a_source_of_other_data_is_not_passed_over_to_go_on_but_is_to_score(run, dataset_folder, tmp_path):
    other = prepare("phantom:3:5", tmp_path / "other", progress=False)
    data = data_config("phantom:3:5", tmp_path / "other")
    assert find_data(data, run, source_first=True) == other  # which claim_run_folder refuses
    assert find_data(data, run, source_first=False) == dataset_folder


def test_data_are_prepared_again_from_the_source_that_the_run_had(run, phantom_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "get_default_data_dir", lambda: str(tmp_path / "empty"))
    content = json.loads((run / "config.json").read_text())
    content["data"] = {"source": str(phantom_folder), "dir": str(tmp_path / "new")}
    (run / "config.json").write_text(json.dumps(content))
    found = find_data(data_config("kaggle_3m"), run, source_first=True)  # a relative path, from elsewhere
    fingerprint = content["dataset"]["fingerprint"]
    assert found == tmp_path / "new" / "lgg_mri" / f"8_patients_{fingerprint[:8]}" / "1.0.0"


def test_places_are_recorded_whole_and_not_shown(trained_run, tmp_path, monkeypatch):
    workdir, config = trained_run
    written = json.loads((workdir / "config.json").read_text())["data"]
    assert Path(written["dir"]).is_absolute() and written["dir"] == config.data.dir
    (tmp_path / "kaggle_3m").mkdir()
    monkeypatch.chdir(tmp_path)
    config = config.copy_and_resolve_references()
    config.data.source, config.data.dir = "kaggle_3m", "data"
    names, folder = ("a", "b", "c"), Path("data/lgg_mri/three/1.0.0")
    cohort = SimpleNamespace(fingerprint="0123", cases=names, patients=names, folder=folder, description=LGG)
    for _ in range(2):
        claim_run_folder(tmp_path / "run", config, cohort, Split(("a",), ("b",), ("c",)))
        written = json.loads((tmp_path / "run" / "config.json").read_text())
        assert written["data"]["source"] == str(tmp_path / "kaggle_3m") and written["data"]["dir"] == str(
            tmp_path / "data"
        )
        monkeypatch.chdir(Path.home())  # and from elsewhere it is the same run
        config.data.source = str(tmp_path / "kaggle_3m")
        cohort.folder = tmp_path / "data/lgg_mri/three/1.0.0"
    assert trained_run[1].data.dir not in (workdir / "report.html").read_text()


@pytest.mark.usefixtures("optax_promotion")
def test_it_is_scored_and_goes_on_and_a_signal_ends_its_scoring(trained_run, tmp_path, monkeypatch, caplog):
    """All at once: its first run, source and split file are gone, and the devices do not divide its batches."""
    folder, config = tmp_path / "run", trained_run[1].copy_and_resolve_references()
    shutil.copytree(trained_run[0], folder)
    content = json.loads((folder / "config.json").read_text())
    expected = json.loads((folder / "results.json").read_text())
    gone = {"train.init_from": "gone/run", "data.source": "gone/kaggle_3m", "split.file": "gone/split.json"}
    for key, value in gone.items():
        section, name = key.split(".")
        config[section][name] = content[section][name] = value
    content["train"]["batch_size"], content["eval"]["batch_size"] = 12, 20  # 8 devices
    (folder / "config.json").write_text(json.dumps(content))
    (scored,), _ = score_runs([folder], part="test", tolerance=2.0)
    with (folder / "per_patient.csv").open() as file:
        assert [row["dice"] for row in scored.rows] == [float(row["dice"]) for row in csv.DictReader(file)]
    content["train"]["batch_size"] = config.train.batch_size
    (folder / "config.json").write_text(json.dumps(content))

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)  # the signal is heard by another thread
        return assess(*arguments, **options)

    assess = Assessor.assess
    (folder / "results.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Assessor, "assess", interrupted)
        with pytest.raises(TrainingStopped, match="SIGTERM while scoring; the training is finished and"):
            train(config, folder)
    assert "SIGTERM: the training is finished; stopping before the next batch is scored" in caplog.text
    assert not (folder / "results.json").exists() and "split.file=gone/split.json is missing" in caplog.text
    again = train(config, folder)
    assert again == expected


def test_results_of_evaluate_are_not_replaced_without_being_asked(tmp_path, monkeypatch):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["evaluate"])
    (tmp_path / "report.html").write_text("before")
    values = {"predictions": "nowhere", "truth": "nowhere", "output": str(tmp_path)}
    with flagsaver.flagsaver(**values), pytest.raises(InputError, match=r"report\.html already exists; .*--overwrite"):
        evaluate.main([])
    with flagsaver.flagsaver(**values, overwrite=True), pytest.raises(InputError, match="nowhere: no such folder"):
        evaluate.main([])
    assert (tmp_path / "report.html").read_text() == "before"
