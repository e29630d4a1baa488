"""A network from its run folder: the scores of the run, no changes in the folder, clear messages."""

import json
import shutil

import jax
import numpy as np
import pytest

from brainseg_jax.errors import InputError, StorageError
from brainseg_jax.evaluation.scores import summarize
from brainseg_jax.evaluation.volumes import TOLERANCE
from brainseg_jax.runs.evaluation import build_evaluation
from brainseg_jax.runs.trained import load_trained

pytestmark = [
    pytest.mark.usefixtures("optax_promotion"),
    # A failed read leaves coroutines of Orbax.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def everything(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_it_scores_as_the_run_did_and_leaves_it_alone(trained_run):
    workdir, config = trained_run
    before = everything(workdir)
    trained = load_trained(workdir)
    assert everything(workdir) == before
    results = json.loads((workdir / "results.json").read_text())
    assert trained.posts[0]._asdict() == results["postprocess"] and trained.step == results["step"]
    evaluation = build_evaluation(config, workdir)
    assessed = evaluation.assessor.assess(trained.network, evaluation.split.test, trained.posts, tolerance=TOLERANCE)
    scores = summarize(assessed.rows)
    assert scores["dice_mean"] == results["test"]["dice_mean"]
    assert scores["false_positive_slices"] == results["test"]["false_positive_slices"]


def test_it_is_the_best_step_also_where_that_is_not_the_latest(trained_run, tmp_path):
    workdir, _ = trained_run
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert steps == [8, 12] or len(steps) == 3  # the latest two, and the best
    records = {step: json.loads(next((workdir / "checkpoints" / str(step)).rglob("record/metadata")).read_text())
               for step in steps}  # fmt: skip
    best = max(steps, key=lambda step: (records[step]["score"], -step))
    assert load_trained(workdir).step == best


@pytest.mark.parametrize("damage", ["no config", "no checkpoint", "another version", "a changed array"])
def test_unusable_input_is_reported(trained_run, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(trained_run[0], folder)
    kind, words = InputError, "not a run folder"
    if damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "no checkpoint":
        shutil.rmtree(folder / "checkpoints")
        words = "has no checkpoint yet"
    elif damage == "another version":
        content = json.loads((folder / "config.json").read_text())
        content["model"]["heads"] = 3
        (folder / "config.json").write_text(json.dumps(content))
        words = "another version of this code.*heads"
    else:
        for path in (folder / "checkpoints").rglob("d/*"):
            path.write_bytes(bytes(len(path.read_bytes())))
        kind, words = StorageError, "is damaged"
    with pytest.raises(kind, match=words) as raised:
        load_trained(folder)
    assert str(folder) in str(raised.value)
    assert not (folder / "damaged_checkpoints").exists()


def test_a_run_that_goes_on_is_read_with_the_post_processing_of_its_config(trained_run, tmp_path, caplog):
    folder = tmp_path / "copy"
    shutil.copytree(trained_run[0], folder)
    (folder / "results.json").unlink()
    trained = load_trained(folder)
    assert trained.posts == ((0.5, False, 0),) and trained.results is None
    assert "has not ended" in caplog.text
    assert jax.tree.all(jax.tree.map(lambda x: bool(np.isfinite(x).all()), trained.network.variables))


def test_a_checkpoint_is_read_without_initial_weights(trained_run, monkeypatch):
    """Compiling these took most of the time of a first `predict`."""
    monkeypatch.setattr(jax, "jit", lambda *_, **__: pytest.fail("a program is compiled"))
    assert load_trained(trained_run[0]).step > 0
