"""Converted weights as a run: names, shapes, what the run supports and what it refuses."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from published_weights import published_state_dict
from scored import score_runs

from brainseg_jax.errors import InputError
from brainseg_jax.runs.trained import load_trained
from brainseg_jax.sharing import published
from brainseg_jax.training.experiment import build_experiment

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A run of 2 features, converted without torch."""
    folder = tmp_path_factory.mktemp("converted") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(published, "read_state_dict", lambda path: published_state_dict(2))
        assert published.convert(Path("weights.pt"), folder) == 30_751  # counted by hand, layer by layer
    return folder


def test_the_published_size():
    variables = published.to_variables(published_state_dict(32), Path("weights.pt"))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 7_763_041


def test_a_state_dict_of_data_parallel():
    plain = published_state_dict(2)
    parallel = {f"module.{name}": value for name, value in plain.items()}
    wanted, found = (published.to_variables(arrays, Path("weights.pt")) for arrays in (plain, parallel))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    mixed = {**plain, "module.conv.weight": plain["conv.weight"]}  # another network, not one in DataParallel
    with pytest.raises(InputError, match=r"unknown: module\.conv\.weight"):
        published.to_variables(mixed, Path("weights.pt"))


def test_it_is_a_run(converted):
    trained = load_trained(converted)
    assert (trained.network.normalization, trained.network.image_size, trained.step) == ("volume_zscore", 256, 0)
    assert trained.fingerprint is None and trained.results is None and trained.posts == ((0.5, True, 0),)
    theirs = published_state_dict(2)["upconv2.weight"]
    ours = trained.network.variables["params"]["up_1"]["kernel"]
    np.testing.assert_array_equal(ours[1, 0], theirs[:, :, 0, 1])


def test_it_has_no_patients_to_score(converted):
    with pytest.raises(InputError, match=r"converted weights.*no split.*--predictions"):
        score_runs([converted], part="test", tolerance=1.0)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "rank"])
def test_another_network_is_refused(tmp_path, monkeypatch, change):
    arrays = published_state_dict(2)
    if change == "missing":
        del arrays["encoder2.enc2norm1.running_var"]
    elif change == "unknown":
        arrays["encoder5.enc5conv1.weight"] = np.zeros((2, 2, 3, 3))
    else:
        shape = (4, 2, 5, 5) if change == "shape" else (4,)
        arrays["encoder2.enc2conv1.weight"] = np.zeros(shape, np.float32)
    words = {
        "missing": r"missing: encoder2\.enc2norm1\.running_var",
        "unknown": r"unknown: encoder5\.enc5conv1\.weight",
        "shape": r"encoder_1.*\(5, 5, 2, 4\) in the file, \(3, 3, 2, 4\) expected",
        "rank": r"encoder_1.*\(1, 1, 1, 4\) in the file, \(3, 3, 2, 4\) expected",
    }
    monkeypatch.setattr(published, "read_state_dict", lambda path: arrays)
    with pytest.raises(InputError, match=rf"(?s)weights\.pt has another network.*{words[change]}"):
        published.convert(Path("weights.pt"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_refusals(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(InputError, match="is not empty"):
        published.convert(tmp_path / "weights.pt", tmp_path / "full")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install torch"):
        published.convert(tmp_path / "weights.pt", tmp_path / "run")


def test_test_cases_that_the_first_run_was_trained_on_are_reported(trained_run, caplog, tmp_path):
    folder, config = trained_run
    config = config.copy_and_resolve_references()
    config.train.init_from = str(folder)
    with caplog.at_level("WARNING"):
        build_experiment(config).first_state()
        assert "train.init_from" not in caplog.text  # the same split
        split = json.loads((folder / "split.json").read_text())
        split["train"], split["test"] = split["test"], split["train"]
        (tmp_path / "split.json").write_text(json.dumps(split))
        config.split.file = str(tmp_path / "split.json")
        build_experiment(config).first_state()
    assert f"was trained on or chosen by {len(split['test'])} validation or test cases" in caplog.text


def test_a_training_starts_from_a_run(trained_run, converted):
    folder, config = trained_run
    config = config.copy_and_resolve_references()
    config.train.init_from = str(folder)
    state = build_experiment(config).first_state()
    wanted = load_trained(folder).network.variables
    for tree in (state.variables, {"params": state.params, "batch_stats": state.batch_stats}):
        jax.tree.map(np.testing.assert_array_equal, tree, wanted)
    assert int(state.step) == 0
    config.train.init_from = str(converted)
    with pytest.raises(
        InputError,
        match=r"(?s)train\.init_from=.*another network.*give --config\.model\.name=unet --config\.model\.features=2 .*"
        "in that run",
    ):
        build_experiment(config).first_state()
    config.train.init_from = str(folder / "nothing")
    with pytest.raises(InputError, match="not a run folder"):
        build_experiment(config).first_state()
