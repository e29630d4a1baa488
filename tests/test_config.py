"""The configs: each file at each scale, overrides, and invalid values."""

import importlib.util
from pathlib import Path

import pytest

from brainseg_jax.config import _CHOICES, check_config, default_config, idle_keys
from brainseg_jax.data.normalization import METHODS
from brainseg_jax.errors import InputError
from brainseg_jax.models import DTYPES, MODELS, PRECISIONS
from brainseg_jax.runs.run_folder import flatten
from brainseg_jax.training.optimizer import OPTIMIZERS, SCHEDULES
from experiments.studies import _changes_of_best

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_file_says_what_its_name_says(path):
    network, loss = {"best": ("unet", "both"), "cohort": ("unet", "both")}.get(path.stem) or path.stem.split("_")
    for arguments in ((), ("cpu",), ("quick",)):
        config = load(path)(*arguments)
        assert config.model.name == {"unet": "unet", "attn": "attention_unet"}[network]
        assert config.loss.name == {"wce": "weighted_cross_entropy", "dice": "dice", "both": "dice_cross_entropy"}[loss]
        assert config.is_locked
        check_config(config)
    assert f"--config=configs/{path.name}" in path.read_text()
    assert len(path.read_text().splitlines()) <= 45


def test_best_runs_against_the_clock_where_cores_are_few():
    (best,) = [load(path) for path in CONFIGS if path.stem == "best"]
    assert [best(scale).train.max_minutes for scale in (None, "cpu", "quick")] == [0.0, 60.0, 0.0]


def test_best_at_paper_scale_is_the_recipe_of_the_small_scale_on_whole_native_images():
    (best,) = [load(path) for path in CONFIGS if path.stem == "best"]
    paper, small = (flatten(best(scale).to_dict()) for scale in (None, "cpu"))
    changed = {key: value for key, value in paper.items() if value != small[key] and not key.startswith("plan.")}
    assert changed == {
        "model.features": 64,
        "data.image_size": 256,
        "data.crop_size": 0,
        "split.test": 0.1,
        "optimizer.learning_rate": 7e-4,
        "optimizer.ema_decay": 0.995,
        "optimizer.warmup_epochs": 1.0,
        "train.epochs": 50,
        "train.batch_size": 32,
        "train.max_minutes": 0.0,
    }
    assert (paper["optimizer.name"], paper["optimizer.schedule"], paper["train.keep"]) == ("adamw", "cosine", "last")
    assert paper["augment.rotation"] == 20.0 and paper["augment.contrast"] == 0.1
    assert idle_keys(best()) == []


def test_the_studies_of_best_train_what_they_trained():
    assert _changes_of_best("cpu") == {
        "model.norm": "conv",
        "loss.name": "dice_cross_entropy",
        "augment.contrast": 0.1,
        "augment.gamma": 0.1,
        "data.by_patient": True,
        "data.tumor_sampling": 0.7,
        "data.area_power": 0.5,
        "data.image_size": 192,
        "data.crop_size": 128,
        "train.keep": "last",
        "eval.largest_component": True,
    }


def test_the_default_is_the_recipe_of_the_reproduced_project():
    config = default_config()
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.b2) == ("adam", 1e-4, 0.99)
    assert (config.train.batch_size, config.train.epochs, config.train.early_stop_patience) == (32, 25, 15)
    plateau = config.optimizer.plateau_factor, config.optimizer.plateau_patience, config.optimizer.plateau_min
    assert (config.optimizer.schedule, *plateau) == ("plateau", 0.1, 5, 1e-6)
    assert (config.data.image_size, config.data.normalization, config.model.features) == (256, "rescale", 64)
    assert (config.loss.smooth, config.loss.batch_wide) == (0.1, True)
    assert not any(config.augment.values())


def test_an_unknown_scale():
    with pytest.raises(InputError, match=r"'huge' is unknown.*cpu, quick"):
        default_config("huge")


@pytest.mark.parametrize(("crop", "words"), [(144, "128 pixels a side"), (100, "a multiple of 16")])
def test_a_crop_that_is_no_window_of_the_network_is_refused(crop, words):
    config = default_config("cpu")
    config.data.crop_size = crop
    with pytest.raises(InputError, match=words):
        check_config(config)
    config.data.crop_size = 96
    check_config(config)


def test_every_number_out_of_range_is_reported():
    config = default_config("cpu")
    config.optimizer.learning_rate, config.augment.flip, config.loss.smooth = -1.0, float("nan"), -0.1
    config.seed, config.loss.name = -1, "hinge"
    with pytest.raises(
        InputError,
        match=r"(?s)loss\.name='hinge': give one of dice, w.*seed=-1.*smooth=-0\.1.*flip=nan: give 0\.0 to 1\.0.*"
        r"learning_rate=-1\.0",
    ):
        check_config(config)


def test_the_choices_are_those_of_the_factories():
    assert set(_CHOICES["model.name"]) == set(MODELS) and set(_CHOICES["model.dtype"]) == set(DTYPES)
    assert _CHOICES["model.precision"] == PRECISIONS
    assert set(_CHOICES["data.normalization"]) == set(METHODS)
    assert _CHOICES["optimizer.name"] == OPTIMIZERS and _CHOICES["optimizer.schedule"] == SCHEDULES


def test_only_known_keys_can_be_set():
    with pytest.raises(AttributeError, match="epoch"):
        default_config().train.epoch = 3
