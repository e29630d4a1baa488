"""A run that was trained and scored before the rooms were rebuilt has the same scores today.

`tests/fixtures/lgg_run` was made by the code of commit 7ae4680, on 12 synthetic patients and one device:

    config = default_config("quick")
    config.data.source = "phantom:12:3"
    config.model.update({"name": "attention_unet", "features": 4, "depth": 2, "norm": "conv"})
    config.data.update({"image_size": 96, "by_patient": True, "area_power": 0.5})
    config.loss.name = "dice_cross_entropy"
    config.train.update({"epochs": 12, "steps_per_epoch": 40, "batch_size": 8})
    config.eval.update({"mirror": True, "choose": True})
    config.split.update({"val": 0.25, "test": 0.4})
    train(config, Path("lgg_run"))

Only the kept checkpoint was left in it, and `data.dir` was emptied.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import call_predict, once
from PIL import Image
from scored import score_runs

from brainseg_jax.data.lgg import prepare
from brainseg_jax.data.phantom import write_phantom
from brainseg_jax.evaluation.scores import QUALITY, read_table
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.runs.evaluation import build_evaluation
from brainseg_jax.runs.trained import load_trained

FIXTURE = Path(__file__).parent / "fixtures" / "lgg_run"


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    """A copy, beside its data."""

    def make(folder):
        write_phantom(folder, patients=12, seed=3)
        prepare(str(folder / "kaggle_3m"), folder / "tfds", progress=False)
        shutil.copytree(FIXTURE, folder / "run")
        config = json.loads((folder / "run" / "config.json").read_text())
        config["data"]["dir"] = str(folder / "tfds")
        (folder / "run" / "config.json").write_text(json.dumps(config))

    return once(tmp_path_factory, "old_run", make)


def test_its_scores_are_the_same(old_run):
    (scored,), _ = score_runs([old_run / "run"], part="test", tolerance=2.0)
    expected = read_table(FIXTURE / "per_patient.csv")
    assert [row["patient"] for row in scored.rows] == [row["patient"] for row in expected]
    for row, old in zip(scored.rows, expected, strict=True):
        assert [name for name in row if name not in QUALITY] == list(old)
        assert 0.0 <= row["agreement"] <= 1.0 and row["expected_dice"] is None  # an old run knows of none
        for name, value in old.items():
            assert row[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), name


def test_its_post_processing_is_chosen_again(old_run):
    trained = load_trained(old_run / "run")
    evaluation = build_evaluation(trained.config, old_run / "run")
    chosen = json.loads((FIXTURE / "results.json").read_text())["postprocess"]
    assert evaluation.assessor.choose(trained.network, evaluation.split.val) == (PostProcess(**chosen),)


def test_predict_gives_the_masks_that_were_scored(old_run, tmp_path):
    """A test patient's files and the prepared set share their code: the masks are equal in every voxel."""
    trained = load_trained(old_run / "run")
    evaluation = build_evaluation(trained.config, old_run / "run")
    case = evaluation.split.test[0]
    (assessed,) = evaluation.assessor.assess_each(trained.network, (case,), trained.posts, tolerance=2.0)
    call_predict(old_run / "run", old_run / "kaggle_3m" / case, tmp_path / "masks")
    masks = assessed.masks[..., 0]
    assert masks.any()
    for number, mask in enumerate(masks, start=1):
        with Image.open(tmp_path / "masks" / f"{case}_{number}_pred.tif") as picture:
            np.testing.assert_array_equal(np.asarray(picture) > 0, mask)
