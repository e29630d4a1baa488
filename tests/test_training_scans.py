"""A scan unlike the training scans is flagged; a scan like them is not, whatever its size, scale or tumor."""

import csv
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from conftest import call_predict
from PIL import Image
from scipy import ndimage

from brainseg_jax.data.splits import Split
from brainseg_jax.errors import InputError
from brainseg_jax.inference import training_scans as module
from brainseg_jax.inference.head import CUBE, RINGS, SIDE, find_head, measure
from brainseg_jax.inference.training_scans import FILE, MIN_PATIENTS, TrainingScans
from brainseg_jax.runs.training_scans import write_training_scans
from brainseg_jax.scans.description import LGG, Description, Target
from brainseg_jax.scans.volume import Volume

SHOWN = LGG.shown
WIDTH = 144


def head(seed, *, t1=False, tumor=None):
    """A head like an egg, [14, WIDTH, WIDTH] uint8: scalp, dark skull, gray and white matter, ventricles, a tumor, air.

    Args:
      seed: of size, brightness, noise and tumor.
      t1: white matter is brighter than gray, and the tumor dark.
      tumor: its radius; None for a random one.
    """
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(np.linspace(-1, 1, 14), *[np.linspace(-1.2, 1.2, WIDTH)] * 2, indexing="ij")
    wide = rng.uniform(0.7, 0.8) * (1 + 0.15 * y)  # narrower in front
    radius = np.sqrt((x / wide) ** 2 + (y / rng.uniform(0.95, 1.05)) ** 2 + (0.45 * (z + 1)) ** 2)
    white, gray = (1.2, 0.9) if t1 else (0.9, 1.2)
    tissue = [white, gray * rng.uniform(0.95, 1.05), rng.uniform(0.1, 0.25), rng.uniform(1.5, 2.2)]
    voxels = np.select([radius < 0.55, radius < 0.8, radius < 0.92, radius < 1], tissue, 0.02)
    voxels[(np.abs(x) < 0.15) & (np.abs(y + 0.1) < 0.3) & (np.abs(z) < 0.5)] = 0.3
    voxels[(radius < 0.9) & (y < -0.75) & (z < 0)] = 2.0  # fat behind the eyes
    center = rng.uniform(-0.35, 0.35, 2)
    size = rng.uniform(0, 0.45) if tumor is None else tumor
    ball = (x - center[0]) ** 2 + (y - center[1]) ** 2 + z**2 < size**2
    voxels[ball & (radius < 0.8)] = 0.6 if t1 else 1.9
    voxels = ndimage.gaussian_filter(voxels, (0, 1, 1)) + rng.normal(0, 0.03, voxels.shape)
    return (80 * rng.uniform(0.9, 1.1) * voxels).clip(0, 255).astype(np.uint8)


def volume(*channels):
    return Volume(np.stack(channels, axis=-1), None, tuple(range(1, len(channels[0]) + 1)))


def patient(seed):
    return volume(head(seed, t1=True), head(seed), head(seed, t1=True))


@pytest.fixture(scope="module")
def training():
    return TrainingScans.of(map(patient, range(24)), [f"P{seed}" for seed in range(24)], LGG)


def flags(training, channel):
    return training.flags(volume(channel, channel, channel), SHOWN)


def box():
    """2 slices of 64 x 64: a square of 40 x 40 pixels (50 inside an outer ring of 4 pixels of 150), air around both."""
    channel = np.zeros((2, 64, 64), np.uint8)
    channel[:, 10:50, 20:60] = 150
    channel[:, 14:46, 24:56] = 50
    return channel


def test_a_head_is_cut_out_and_measured_from_its_surface_inward():
    found = find_head(box())
    # 40 pixels become 64, so that the ring of 4 pixels is 6.4 wide; the median of all is that of the 1024 inner ones.
    assert found.slices == 2
    assert found.inside.all()
    np.testing.assert_allclose(found.voxels[0, 32, [0, 5, 7, 32]], [3, 3, 1, 1])
    assert found.depth[0, 32, [0, 5, 31]].tolist() == [1, 6, 32]
    assert found.radius == pytest.approx(SIDE / np.sqrt(np.pi))
    profile = measure(box()).features[:RINGS].reshape(-1, 3)
    assert profile[:5].tolist() == [[3, 3, 3]] * 5  # depths 1 to 6
    assert profile[6:].tolist() == [[1, 1, 1]] * 4  # from 9 on


def test_of_several_regions_the_largest_is_the_head():
    channel = box()
    channel[:, 2:8, 2:8] = 255
    channel[:, 54:60, 54:60] = 100
    assert find_head(channel).slices == 2
    np.testing.assert_array_equal(measure(channel).cube, measure(box()).cube)


@pytest.mark.parametrize(
    "change",
    [
        lambda channel: channel // 2 * 2 // 2,
        lambda channel: channel.repeat(2, axis=1).repeat(2, axis=2),
        lambda channel: np.pad(channel, ((2, 2), (10, 30), (5, 0))),
        lambda channel: channel[:, ::2].repeat(2, axis=1),
    ],
    ids=["half as bright", "twice the pixels", "padded", "other spacing"],
)
def test_scale_size_and_place_do_not_matter(change):
    even = head(3) // 2 * 2
    ours, theirs = measure(even), measure(change(even))
    assert ours.slices == theirs.slices
    other = measure(head(3, t1=True))
    assert np.abs(theirs.features - ours.features).mean() < 0.5 * np.abs(other.features - ours.features).mean()
    assert np.corrcoef(theirs.cube.ravel(), ours.cube.ravel())[0, 1] > 0.85


def test_nothing_bright_is_no_head():
    assert measure(np.zeros((3, 20, 20), np.uint8)) is None


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 300, 2), (2, 3, 3), (200, 7, 9)])
def test_any_shape_can_be_compared(training, shape):
    noise = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    assert flags(training, noise)


def test_scans_like_those_of_training_are_not_flagged(training):
    assert len([seed for seed in range(30, 50) if training.flags(patient(seed), SHOWN)]) <= 1
    flair = head(30)
    assert not flags(training, flair)  # in all channels, as where a sequence is missing
    assert not flags(training, flair // 2)
    assert not flags(training, flair[:, :, ::-1])  # left and right look alike
    assert not flags(training, flair.repeat(2, axis=1).repeat(2, axis=2))


@pytest.mark.parametrize("radius", [0.0, 0.2, 0.45])
def test_a_tumor_is_no_reason(training, radius):
    assert not flags(training, head(31, tumor=radius))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda flair: np.full_like(flair, 7), r"FLAIR is 7 everywhere"),
        (lambda flair: np.where(np.arange(len(flair)) == 5, flair.T, 0).T, r"1 slice with a head in FLAIR; 14 to 14"),
        (lambda flair: flair[:, ::-1], r"FLAIR has another orientation \(upside down\)"),
        (lambda flair: flair[:, ::-1, ::-1], r"FLAIR has another orientation \(upside down\)"),
        (lambda flair: np.rot90(flair, axes=(1, 2)), r"FLAIR has another orientation \(rotated by 90 degrees\)"),
        (lambda flair: flair[::-1], r"FLAIR has another orientation \(its slices run from crown to foot\)"),
        (
            lambda flair: flair.transpose(1, 0, 2)[:, ::-1],
            r"FLAIR has another orientation \(its slices are not axial\)",
        ),
        (
            lambda flair: head(32, t1=True),
            r"intensities of FLAIR are like those of a (pre|post)-contrast scan: score -",
        ),
        (lambda flair: flair * (find_mask(flair) > 0), r"intensities of FLAIR are like those of a skull-stripped scan"),
    ],
    ids=["constant", "one slice", "rows", "half a turn", "90 degrees", "slices", "coronal", "T1", "stripped"],
)
def test_a_scan_unlike_those_of_training_is_flagged(training, change, words):
    assert re.search(words, "; ".join(flags(training, change(head(32)))))


def find_mask(flair):
    """The brain: everything deeper than the skull of `head`."""
    z, y, x = np.meshgrid(np.linspace(-1, 1, 14), *[np.linspace(-1.2, 1.2, WIDTH)] * 2, indexing="ij")
    return (x / (0.75 * (1 + 0.15 * y))) ** 2 + y**2 + (0.45 * (z + 1)) ** 2 < 0.82**2


@pytest.mark.parametrize("contrast", ["inverted", "noise", "CT"])
def test_other_contrasts_are_flagged(training, contrast):
    flair = head(33)
    changed = {
        "inverted": 255 - flair,
        "noise": np.random.default_rng(0).integers(0, 255, flair.shape),
        "CT": np.select([flair > 120, flair > 40, flair > 5], [60, 90, 255], 0),
    }
    assert flags(training, changed[contrast].astype(np.uint8))


@pytest.mark.parametrize("turn", module._ORIENTATIONS)
def test_each_way_to_turn_a_head_is_found(turn):
    axes, flips = turn
    mean = np.random.default_rng(0).normal(size=(CUBE,) * 3)
    # `turn` brings this cube to the mean: flipped first, as it is flipped last on the way there, and transposed back.
    cube = np.flip(mean, [axis for axis in range(3) if flips[axis]]).transpose(np.argsort(axes))
    own, turned, found = module._compare_orientations(cube, mean)
    if turn in module._UPRIGHT:
        assert own == pytest.approx(1)
        assert turned < 0.2
    else:
        assert turned == pytest.approx(1)
        assert own < 0.2
        assert found == turn


def test_the_line_between_two_kinds():
    rng = np.random.default_rng(0)
    alike, others = rng.normal(size=(5000, 2)) * [1, 3], rng.normal(size=(5000, 2)) * [1, 3] + [2, 2]
    weights, bias = module._discriminant(alike, others)
    assert alike.mean(axis=0) @ weights + bias == pytest.approx(1)
    assert others.mean(axis=0) @ weights + bias == pytest.approx(-1)
    # Independent features: weights are as the differences of the means over the variances, 2 / 1 to 2 / 9.
    assert weights[0] / weights[1] == pytest.approx(9, rel=0.2)


def test_the_distance_of_a_profile():
    profiles = np.random.default_rng(0).normal(size=(20_000, 3)) * [1, 2, 4]
    center, precision = module._mean_and_precision(profiles)
    # Independent features: one standard deviation in each of three, (1 + 1 + 1) / 3.
    assert module._distance(np.array([1.0, 2.0, 4.0]), center, precision) == pytest.approx(1, rel=0.03)


def test_a_rule_that_parts_nothing_is_not_used(training):
    kinds = [rule.kind for rule in training.rules]
    assert {"a skull-stripped scan", "CT", "a pre-contrast scan"} <= set(kinds)
    same = [volume(one, one, head(50 + seed)) for seed in range(24) for one in [head(seed)]]
    found = TrainingScans.of(same, [f"P{seed}" for seed in range(24)], LGG)
    assert not [rule.kind for rule in found.rules if "contrast scan" in rule.kind]  # post-contrast scans are FLAIR


def test_few_scans_say_nothing():
    few = [patient(seed) for seed in range(MIN_PATIENTS - 1)]
    assert TrainingScans.of(few, [f"P{seed}" for seed in range(len(few))], LGG) is None


def test_many_scans_of_few_patients_say_nothing(tmp_path):
    """Each scan is compared with those of the 18 other patients."""
    many = [patient(seed) for seed in range(MIN_PATIENTS + 2)]
    assert TrainingScans.of(many, [f"P{seed % 19}" for seed in range(len(many))], LGG) is None
    cohort = FakeCohort(24)
    cohort.patients = tuple(f"P{seed % 19}" for seed in range(24))
    line = write_training_scans(tmp_path, cohort, Split(cohort.cases[:22], cohort.cases[22:23], cohort.cases[23:]))
    assert line == f"no {FILE}, so predict will not flag scans: 19 training patients, 20 are needed"
    assert not (tmp_path / FILE).exists()


def test_its_digest_differs_from_others(training, tmp_path):
    training.write(tmp_path / FILE)
    assert TrainingScans.read(tmp_path / FILE).digest == training.digest
    (rule, *others) = training.rules
    other = dataclasses.replace(training, rules=(dataclasses.replace(rule, below=rule.below + 0.01), *others))
    assert other.digest != training.digest


def test_a_cohort_of_one_channel():
    description = Description(("T1w",), (Target("tumor", (1,)),))
    found = TrainingScans.of((volume(head(seed)) for seed in range(20)), [str(seed) for seed in range(20)], description)
    assert not found.flags(volume(head(40)), 0)
    assert "T1w has another orientation" in found.flags(volume(head(40)[:, ::-1]), 0)[0]


def test_written_and_read_back(training, tmp_path):
    training.write(tmp_path / FILE)
    assert (tmp_path / FILE).stat().st_size < 150_000
    found = TrainingScans.read(tmp_path / FILE)
    assert [rule.kind for rule in found.rules] == [rule.kind for rule in training.rules]
    for channel in (head(40), head(40)[:, ::-1], head(40, t1=True), 255 - head(40)):
        assert flags(found, channel) == flags(training, channel)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content | {"version": 99},
        lambda content: content | {"center": [1.0] * (RINGS - 1)},
        lambda content: {key: value for key, value in content.items() if key != "mean"},
        lambda content: content | {"distance": [1, 2]},
        lambda content: content | {"distance": [1, 2, float("nan")]},
        lambda content: content | {"distance": ["1", "2", "3"]},
        lambda content: content | {"distance": "123"},
        lambda content: content | {"distance": [1, 2, 10**400]},
        lambda content: content | {"correlation": None},
        lambda content: content | {"center": ["text"] * RINGS},
        lambda content: content | {"center": [float("inf")] * RINGS},
        lambda content: content | {"scans": "many"},
        lambda content: content | {"channel": 3},
        lambda content: content | {"rules": [content["rules"][0] | {"bias": float("nan")}]},
        lambda content: content | {"rules": [content["rules"][0] | {"below": "0.2"}]},
        lambda content: content | {"rules": [content["rules"][0] | {"scores": [1.0, None]}]},
        lambda content: content | {"rules": [content["rules"][0] | {"kind": None}]},
        lambda content: content | {"rules": [{"kind": "CT"}]},
        lambda content: content | {"rules": None},
        lambda content: [],
    ],
)
def test_a_damaged_file_is_named(training, tmp_path, damage):
    path = tmp_path / FILE
    training.write(path)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=f"{path} cannot be read .*restore a complete copy"):
        TrainingScans.read(path)


class FakeCohort:
    """Cases P0, P1, ..., of one patient each."""

    description = LGG

    def __init__(self, count):
        self.cases = tuple(f"P{seed}" for seed in range(count))
        self.patients, self.spacings = self.cases, (None,) * count
        self.numbers = (tuple(range(1, 15)),) * count

    def indices(self, cases):
        return np.array([int(case[1:]) for case in cases], np.int64)

    def read_voxels(self, case):
        voxels = patient(int(case[1:])).voxels
        return voxels[:, ::-1] if case == "P23" else voxels


def test_a_run_writes_what_its_training_scans_look_like(tmp_path):
    cohort, heard = FakeCohort(24), []
    split = Split(cohort.cases[:20], cohort.cases[20:22], cohort.cases[22:])
    line = write_training_scans(tmp_path, cohort, split, before_case=lambda: heard.append(1))
    assert len(heard) == 24
    found = TrainingScans.read(tmp_path / FILE)
    assert found.scans == 20
    others = [cohort.read_voxels(case) for case in (*split.val, *split.test)]
    flagged = [bool(found.flags(Volume(voxels, None, ()), SHOWN)) for voxels in others]
    assert flagged[-1]  # that which is upside down
    assert line.endswith(f"unlike the 20 training scans: it flags {sum(flagged)} of the 4 validation and test scans")
    few = dataclasses.replace(split, train=split.train[:19])
    assert "19 training patients, 20 are needed" in write_training_scans(tmp_path / "other", cohort, few)
    assert not (tmp_path / "other").exists()


@pytest.fixture
def scans(tmp_path):
    """Two scans as slices of TIFF, the second upside down."""
    for name, turned in (("A", False), ("B", True)):
        voxels = patient(60).voxels
        (tmp_path / "scans" / name).mkdir(parents=True)
        for number, image in enumerate(voxels[:, ::-1] if turned else voxels, start=1):
            Image.fromarray(image).save(tmp_path / "scans" / name / f"{name}_{number}.tif")
    return tmp_path / "scans"


def test_predict_prints_and_lists_flags(trained_run, training, scans, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(trained_run[0], run)
    training.write(run / FILE)
    call_predict(run, scans, tmp_path / "masks")
    printed = "".join(capfd.readouterr())
    assert "note: B: unlike the training scans: FLAIR has another orientation (upside down)" in printed.replace(
        "\n", " "
    )
    assert "note: A" not in printed
    assert "1 of 2 scans unlike the training scans" in printed
    rows = list(csv.DictReader((tmp_path / "masks" / "predictions.csv").open()))
    assert [row["case"] for row in rows] == ["A", "B"]
    assert rows[0]["flags"] == ""
    assert rows[1]["flags"].startswith("FLAIR has another orientation (upside down)")
    assert list((tmp_path / "masks").rglob("B_1_pred.tif"))  # segmented nevertheless


def test_predict_without_the_file_does_not_compare(trained_run, scans, tmp_path, capfd):
    call_predict(trained_run[0], scans, tmp_path / "masks")
    assert f"no run has a {FILE}" in "".join(capfd.readouterr())
    rows = list(csv.DictReader((tmp_path / "masks" / "predictions.csv").open()))
    assert {row["flags"] for row in rows} == {"not compared"}
