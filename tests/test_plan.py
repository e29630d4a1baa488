"""Settings planned from the data: each rule by hand."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from brainseg_jax.config import AUTO, PLANNED, default_config
from brainseg_jax.scans.description import LGG, Description, Target
from brainseg_jax.training import plan as plan_module
from brainseg_jax.training.plan import Extent, plan_for

HIPPOCAMPUS = Description(("T1",), (Target("anterior", (1,)), Target("posterior", (2,))))
CROPS = [Extent((40, 59, 43), (1.0, 1.0, 1.0)), Extent((24, 40, 31), (1.0, 1.0, 1.0))]
SPARSE = {"axial": 0.9, "coronal": 0.3, "sagittal": 0.8, "all": 0.7}  # share of the slices with a target


def often(share):
    return dict.fromkeys(SPARSE, share)


def to_plan(scale, **kept):
    config = default_config(scale)
    for key in PLANNED:
        section, name = key.split(".")
        config[section][name] = "auto" if isinstance(config[section][name], str) else AUTO
    for key, value in kept.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


def test_small_crops_of_one_millimeter():
    """59 pixels need 64; 64 / 2^3 = 8 at the bottom; 16 x 128² pixels per step are 64 x 64²; the maximum is 32."""
    config, planned = plan_for(to_plan("cpu"), HIPPOCAMPUS, CROPS, often(0.8))
    assert config.data.view == "all"
    assert (config.data.pixel_spacing, config.data.image_size, config.model.depth) == (1.0, 64, 3)
    assert (config.train.batch_size, config.model.features) == (32, 16)
    assert (config.data.tumor_sampling, config.augment.flip) == (0.0, 0.0)
    assert {one.key for one in planned} == set(PLANNED) and all(one.reason for one in planned)


def test_thick_slices_are_not_cut_across():
    """Coronal slices, 5 mm apart along the rows, of 0.9 x 0.9 mm; 230 mm in 128 pixels are 1.797 mm."""
    extents = [Extent((256, 20, 200), (0.9, 5.0, 0.9))] * 3
    config, planned = plan_for(to_plan("cpu"), HIPPOCAMPUS, extents, SPARSE)
    reasons = {one.key: one.reason for one in planned}
    assert config.data.view == "coronal" and "0.9 x 5 x 0.9 mm" in reasons["data.view"]
    assert config.data.pixel_spacing == pytest.approx(1.8) and config.data.image_size == 128
    assert config.data.tumor_sampling == 0.5 and "30%" in reasons["data.tumor_sampling"]


def test_the_longest_slice_fits_the_limit_of_the_scale():
    """230 mm in 256 pixels of 0.8984375 mm: rounded down to 0.8984, they would not fit and need 272."""
    extents = [Extent((20, 256, 256), (5.0, 230 / 256, 230 / 256))] * 3
    config, _ = plan_for(to_plan(None), HIPPOCAMPUS, extents, often(0.8))
    assert config.data.image_size == 256 and config.data.pixel_spacing == pytest.approx(0.8985)


def test_slices_with_a_target_are_counted_in_each_view(tmp_path):
    """Labels in 2 of 3 axial, 1 of 4 coronal and 1 of 5 sagittal slices: 4 of 12 in all views."""
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[1:, 2, 3] = 1
    case = SimpleNamespace(volume=SimpleNamespace(labels=labels, spacing=(1.0, 1.0, 1.0)))
    with (
        mock.patch.object(plan_module, "read_summary", lambda _: SimpleNamespace(description=HIPPOCAMPUS)),
        mock.patch.object(plan_module, "read_cases", lambda _: [case, case]),
        mock.patch.object(plan_module, "plan_for") as plan_for_mock,
    ):
        plan_module.plan(to_plan("cpu"), tmp_path)
    shares = plan_for_mock.call_args.args[3]
    assert shares == {"axial": 2 / 3, "coronal": 1 / 4, "sagittal": 1 / 5, "all": 4 / 12}


def test_unknown_spacing_counts_pixels():
    config, planned = plan_for(to_plan("cpu"), LGG, [Extent((20, 100, 90), None)], often(0.3))
    assert config.data.pixel_spacing == 1.0 and config.data.image_size == 112
    assert "have no spacing" in {one.key: one.reason for one in planned}["data.pixel_spacing"]


def test_what_is_set_by_hand_stays():
    given = to_plan("cpu", data__image_size=96, model__features=20, model__depth=3)
    config, planned = plan_for(given, HIPPOCAMPUS, CROPS, often(0.8))
    assert (config.data.image_size, config.model.features, config.model.depth) == (96, 20, 3)
    assert not {"data.image_size", "model.features", "model.depth"} & {one.key for one in planned}
    assert given.train.batch_size == AUTO  # the config given is not changed


def test_a_side_is_not_mirrored_away():
    sided = Description(("T1",), (Target("Left-Hippocampus", (1,)), Target("hippocampus R", (2,))))
    config, _ = plan_for(to_plan("cpu"), sided, CROPS, often(0.8))
    assert config.augment.flip == 0.0
    config, _ = plan_for(to_plan("cpu", data__view="sagittal"), HIPPOCAMPUS, CROPS, often(0.8))
    assert config.augment.flip == 0.0


def test_a_few_slices_are_not_seen_from_the_side():
    flat = [Extent((1, 40, 44), (1.0, 1.0, 1.0))] * 2
    config, planned = plan_for(to_plan("cpu"), HIPPOCAMPUS, flat, often(0.8))
    assert config.data.view == "axial"
    assert "fewer than 16 slices" in {one.key: one.reason for one in planned}["data.view"]
