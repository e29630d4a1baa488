"""The report's statements on the checkpoint and on choices and their patients, in every combination; older results."""

import dataclasses
import itertools
import json
import types

import pytest
from synthetic_report import make_report

from brainseg_jax.config import default_config
from brainseg_jax.data.splits import Split
from brainseg_jax.evaluation.report import write_report
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.runs.facts import facts
from brainseg_jax.runs.trained import read_results
from brainseg_jax.scans.description import LGG

CHECKPOINT, POST = "the checkpoint", "the post-processing"
TEST = "test patients: no choice depends on them"


def facts_of(*, part, keep, chose, schedule="cosine", patience=0, folder):
    config = default_config().to_dict()
    config["optimizer"]["schedule"], config["train"]["early_stop_patience"] = schedule, patience
    experiment = types.SimpleNamespace(
        split=Split(("a",), ("b",), ("c",)),
        kept=keep,
        cohort=types.SimpleNamespace(
            fingerprint="0123456789abcdef",
            folder=folder / "lgg_mri" / "one" / "1.0.0",
            description=LGG,
            patients_of=lambda cases: cases,
            groups=("DU",) * 3,
            grades=(1, 1, 1),
        ),
    )
    return facts(config, experiment, part=part, posts=(PostProcess(),), chose_posts=chose, parameters=7, step=30)


@pytest.mark.parametrize(
    ("keep", "chose", "part"), list(itertools.product(("best", "last"), (True, False), ("val", "test")))
)
def test_what_was_chosen_on_the_patients_that_are_scored(tmp_path, keep, chose, part):
    told = facts_of(part=part, keep=keep, chose=chose, folder=tmp_path)
    assert told["Checkpoint"] == f"step 30, {'the last' if keep == 'last' else 'the best on the validation patients'}"
    expected = {
        ("best", True, "val"): f"validation patients: {CHECKPOINT} and {POST} were chosen on them, so these scores "
        "are too good",
        ("best", False, "val"): f"validation patients: {CHECKPOINT} was chosen on them, so these scores are too good",
        ("last", True, "val"): f"validation patients: {POST} was chosen on them, so these scores are too good",
        ("last", False, "val"): "validation patients: neither checkpoint nor post-processing was chosen on them",
    }
    assert told["Scored"] == expected.get((keep, chose, part), TEST)


def test_validation_patients_decide_more_than_the_checkpoint(tmp_path):
    told = facts_of(part="val", keep="last", chose=False, schedule="plateau", patience=15, folder=tmp_path)
    assert told["Scored"].endswith("but they decided when the learning rate fell and when to stop early")


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (["best"], "The checkpoint of the highest mean is the one that is scored here."),
        (["last", "last"], "The checkpoint of the last epoch, whatever its Dice, is the one that is scored here."),
        (["best", "last"], "The entry Checkpoint at the top tells which checkpoint of each run is scored here."),
    ],
)
def test_the_page_says_which_checkpoint_it_scores(tmp_path, kept, words):
    runs, cases = make_report(tmp_path / "page.html", names=[f"run {i}" for i in range(len(kept))])
    runs = [dataclasses.replace(run, kept=one) for run, one in zip(runs, kept, strict=True)]
    write_report(tmp_path / "page.html", runs, cases, tolerance=2.0)
    page = (tmp_path / "page.html").read_text()
    assert words in page and ("of the highest mean" in page) == (kept == ["best"])


@pytest.mark.parametrize("keep", ["best", "last", None])
def test_results_of_older_runs_are_read_under_the_names_of_today(tmp_path, keep):
    config = {"train": {"keep": keep} if keep else {}}  # the oldest runs had no such key
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_results(tmp_path) is None
    (tmp_path / "results.json").write_text(json.dumps({"best_epoch": 3, "best_step": 30, "epochs": 5}))
    assert read_results(tmp_path) == {"kept": keep or "best", "epoch": 3, "step": 30, "epochs": 5}
    new = {"kept": "last", "epoch": 5, "step": 50, "epochs": 5}
    (tmp_path / "results.json").write_text(json.dumps(new))
    assert read_results(tmp_path) == new
