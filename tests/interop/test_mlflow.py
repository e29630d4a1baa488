"""`main --mlflow`: the metrics log of a run in MLflow, read back by MLflow's own client."""

import json
import sys

import mlflow
import pytest

from brainseg_jax.errors import InputError, TrainingStopped
from brainseg_jax.runs.metrics_log import MetricsLog, cut_rows

CONFIG = {"seed": 3, "train": {"epochs": 3, "keep": "best"}}


def journal(workdir, store, *, resumed_epoch=0):
    return MetricsLog(
        workdir,
        epochs=3,
        steps_per_epoch=1,
        resumed_epoch=resumed_epoch,
        enabled=True,
        mlflow=str(store),
        config=CONFIG,
    )


def write(opened, epoch):
    opened.end_epoch({"epoch": epoch, "train_loss": 1.0 / epoch, "val_dice_mean": 0.1 * epoch}, images_per_second=1.0)


def read(store):
    client = mlflow.MlflowClient(tracking_uri=store.absolute().as_uri())
    (experiment,) = (one for one in client.search_experiments() if one.name == "brainseg_jax")
    return client, client.search_runs([experiment.experiment_id])


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(workdir, tmp_path):
    store = tmp_path / "tracked"
    with pytest.raises(TrainingStopped), journal(workdir, store) as opened:
        write(opened, 1)
        write(opened, 2)
        raise TrainingStopped("SIGTERM")
    client, (run,) = read(store)
    assert (run.info.status, run.info.run_name) == ("KILLED", "run")
    assert run.data.params == {"seed": "3", "train.epochs": "3", "train.keep": "best"}
    cut_rows(workdir / "metrics.jsonl", 1)  # the checkpoint of epoch 2 was lost: it is trained again
    with journal(workdir, store, resumed_epoch=1) as opened:
        write(opened, 2)
        write(opened, 3)
        opened.end_run(
            {
                "test": {"dice_mean": 0.5, "dice_median": 0.6, "iou_mean": 0.4, "patients": 2, "interval": [0.1, 0.9]},
                "expected_dice": {"cases": 2},
                "kept": "best",
                "epoch": 3,
            },
            workdir,
        )
    client, (run,) = read(store)
    assert run.info.status == "FINISHED"
    history = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train_loss")]
    assert sorted(history) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]  # each epoch once
    assert (run.data.metrics["test_dice_mean"], run.data.metrics["val_dice_mean"]) == (0.5, pytest.approx(0.3))
    assert "test_interval" not in run.data.metrics
    assert [json.loads(line)["epoch"] for line in (workdir / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_another_store_gets_the_rows_from_the_beginning(workdir, tmp_path):
    with journal(workdir, tmp_path / "first") as opened:
        write(opened, 1)
    with journal(workdir, tmp_path / "second", resumed_epoch=1) as opened:
        write(opened, 2)
    client, (run,) = read(tmp_path / "second")
    assert sorted(point.step for point in client.get_metric_history(run.info.run_id, "train_loss")) == [1, 2]


def test_a_store_that_fails_stops_no_training_and_gets_the_rows_later(workdir, tmp_path, monkeypatch, caplog):
    store = tmp_path / "tracked"
    with journal(workdir, store) as opened:
        with monkeypatch.context() as broken:
            broken.setattr(mlflow.MlflowClient, "log_batch", lambda *_, **__: 1 / 0)
            write(opened, 1)
        assert "the training goes on, and 1 epochs are sent later" in caplog.text
        write(opened, 2)
    client, (run,) = read(store)
    assert sorted(point.step for point in client.get_metric_history(run.info.run_id, "train_loss")) == [1, 2]


def test_what_cannot_be_used_is_refused(workdir, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--mlflow=.*file cannot be used \("):
        journal(workdir, tmp_path / "file")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"needs MLflow .*pip install 'brainseg_jax\[mlflow\]'"):
        journal(workdir, tmp_path / "tracked")
