"""Scores of a cohort against the same computation by hand: numpy and scipy around the bare network."""

import dataclasses
import gc
from functools import partial

import jax
import numpy as np
import pytest
from scipy import ndimage

from brainseg_jax import sharding
from brainseg_jax.data.normalization import Normalization
from brainseg_jax.evaluation import case_pictures
from brainseg_jax.evaluation.assessment import Assessor, CaseAssessment, LargestSlice
from brainseg_jax.inference.network import Inputs, Network, Runner
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.losses import dice_loss
from brainseg_jax.models import build_model
from brainseg_jax.scans.description import LGG, Description, Target

pytestmark = pytest.mark.usefixtures("optax_promotion")
LOSS = partial(dice_loss, smooth=1.0)
SUPPORT = PostProcess()


def random_network(targets=1, mirror=False, seed=0, description=LGG, channels=3):
    """A network with random weights that predicts tumor in about half of the pixels."""
    model = build_model("attention_unet", features=2, depth=2, targets=targets)
    variables = model.init(jax.random.key(0), np.zeros((1, 64, 64, channels), np.float32), train=False)
    rng = np.random.default_rng(seed)
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    variables["params"] = jax.tree.map(
        lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype), variables["params"]
    )
    return Network(model, variables, description, 64, 0.0, "axial", "volume_zscore", mirror)


def normalized_by_hand(cohort, indices):
    constants = [np.asarray(c, np.float64)[cohort.case_index[indices]][:, None, None] for c in cohort.normalization]
    lower, upper, mean, inverse_std = constants
    images = (np.clip(cohort.slices.images[indices].astype(np.float64), lower, upper) - mean) * inverse_std
    return images.astype(np.float32)


def logits_by_hand(network, images):
    apply = jax.jit(partial(network.model.apply, train=False))
    return np.asarray(apply(network.variables, np.ascontiguousarray(images)), np.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def on_native_grid(probability):
    return ndimage.zoom(probability, (1, 4, 4, 1), order=1, grid_mode=True, mode="nearest")


@pytest.mark.parametrize("mirror", [False, True])
def test_cases_are_scored_on_their_own_grid(cohort, mirror):
    """Batches of 24 slices of three patients of 16: slices of two are in one batch, and the last holds padding."""
    network, cases = random_network(mirror=mirror), [cohort.cases[i] for i in (5, 0, 2)]
    assessor = Assessor(cohort, Runner(sharding.data_mesh(), 24), LOSS)
    assessed = assessor.assess(network, cases, (SUPPORT,), tolerance=2.0)
    each = {one.name: one for one in assessor.assess_each(network, cases, (SUPPORT,), tolerance=2.0)}
    loss, soft_iou = assessor.loss.loss, assessor.loss.soft_iou
    quick = assessor.quick(network, cases, (SUPPORT,))
    assert quick["loss"] == loss

    indices = cohort.slices_of(cases)
    images = normalized_by_hand(cohort, indices)
    logits = logits_by_hand(network, images)
    probability = sigmoid(logits)
    if mirror:
        mirrored = sigmoid(logits_by_hand(network, images[:, :, ::-1]))[:, :, ::-1]
        assert np.abs(probability - mirrored).max() > 0.05  # the network tells left from right
        probability = (probability + mirrored) / 2
    predicted = on_native_grid(probability)[..., 0] >= 0.5
    truth = np.concatenate([cohort.labels[i] for i in (0, 2, 5)]) > 0
    assert 0.01 < predicted.mean() < 0.99
    dice = {}
    for position, case in enumerate(sorted(cases)):
        part = slice(16 * position, 16 * position + 16)
        assert (each[case].masks[..., 0] == predicted[part]).mean() > 0.9999  # except for rounding at the threshold
        dice[case] = 2 * (predicted & truth)[part].sum() / (predicted[part].sum() + truth[part].sum())
    assert [row["patient"] for row in assessed.rows] == cases
    np.testing.assert_allclose([row["dice"] for row in assessed.rows], [dice[case] for case in cases], rtol=1e-3)
    np.testing.assert_allclose(quick["dice_mean"], np.mean(list(dice.values())), rtol=1e-3)
    np.testing.assert_allclose(quick["dice_median"], np.median(list(dice.values())), rtol=1e-3)
    np.testing.assert_allclose(quick["iou_mean"], np.mean([d / (2 - d) for d in dice.values()]), rtol=1e-3)

    masks = cohort.slices.target_bits[indices]
    np.testing.assert_allclose(loss, LOSS(logits.astype(np.float32), masks).mean(), rtol=1e-4)
    parts = []
    for batch in (slice(0, 24), slice(24, 48)):  # of the logits as they are, also where mirror images are averaged
        p, y = sigmoid(logits[batch]), masks[batch].astype(np.float64)
        parts.append(((p * y).sum() + 0.1) / (p.sum() + y.sum() - (p * y).sum() + 0.1))
    np.testing.assert_allclose(soft_iou, np.mean(parts), rtol=1e-4)


def test_attention_is_shown_where_the_network_has_gates(cohort):
    assessor = Assessor(cohort, Runner(sharding.data_mesh(), 24))
    (one,) = assessor.assess_each(random_network(), cohort.cases[:1], (SUPPORT,), tolerance=2.0)
    assert one.attention.shape == (16, 256, 256) and 0 <= one.attention.min() < one.attention.max() <= 1


def test_the_slice_kept_of_each_case_is_that_of_the_largest_reference(cohort):
    assessor, cases = Assessor(cohort, Runner(sharding.data_mesh(), 24)), cohort.cases[1:3]
    assessed = assessor.assess(random_network(), cases, (SUPPORT,), tolerance=2.0)
    for one in assessor.assess_each(random_network(), cases, (SUPPORT,), tolerance=2.0):
        labels = cohort.labels[cohort.indices([one.name])[0]]
        index, kept = int((labels > 0).sum(axis=(1, 2)).argmax()), assessed.largest[one.name]
        assert kept.index == index
        np.testing.assert_array_equal(kept.scan, cohort.read_voxels(one.name)[index, ..., 1])
        np.testing.assert_array_equal(kept.attention, one.attention[index])
        for mask, expected in zip(kept.masks, (labels[index] > 0, one.masks[index, ..., 0]), strict=True):
            np.testing.assert_array_equal(mask[..., 0], expected)
        assert all(array.base is None for array in (kept.scan, kept.attention, kept.bits))  # no view of a whole volume


def test_without_a_reference_the_largest_prediction_is_shown():
    truth, predicted = np.zeros((2, 4, 3, 3, 1), bool)
    predicted[1, 0, 0] = predicted[2, :, :2] = True
    scan = np.arange(36, dtype=np.uint8).reshape(4, 3, 3)
    assert LargestSlice.of(scan, truth, predicted, None).index == 2
    truth[1, 0, 0] = True
    assert LargestSlice.of(scan, truth, predicted, None).index == 1
    assert LargestSlice.of(scan, truth & False, predicted & False, None).index == 0


def test_a_case_with_another_name_than_its_patient_has_both(cohort):
    plain = dataclasses.replace(cohort, grades=None, patients=tuple(cohort.cases))
    identity_of = lambda cohort: Assessor(cohort, Runner(sharding.data_mesh(), 24)).identity(0)
    assert identity_of(plain) == {"patient": plain.cases[0], "group": plain.groups[0]}
    patients = tuple(f"P{index}" for index in range(len(plain.cases)))  # one case each
    renamed = dataclasses.replace(plain, patients=patients)
    assert identity_of(renamed) == {"patient": "P0", "case": plain.cases[0], "group": plain.groups[0]}


def test_pictures_leave_out_ignored_voxels_as_the_scores_do(cohort):
    description = dataclasses.replace(cohort.description, ignore=9)
    labels = [np.where(np.arange(256) < 128, 9, one).astype(np.uint8) for one in cohort.labels]
    changed = dataclasses.replace(cohort, description=description, labels=labels)
    network = random_network(description=description)
    (one,) = Assessor(changed, Runner(sharding.data_mesh(), 24)).assess_each(
        network, cohort.cases[:1], (SUPPORT,), tolerance=2.0
    )
    _, prediction = one.largest.masks
    assert one.masks[one.largest.index, :, :128].any() and not prediction[:, :128].any() and prediction.any()


def test_volumes_are_let_go_case_by_case(cohort, monkeypatch):
    """At most two of six cases are in memory: the scored one and the one before."""
    found, of_case = [], LargestSlice.of

    def count(*arrays):
        found.append(sum(type(one) is CaseAssessment for one in gc.get_objects()))
        return of_case(*arrays)

    monkeypatch.setattr(LargestSlice, "of", count)
    Assessor(cohort, Runner(sharding.data_mesh(), 24)).assess(
        random_network(), cohort.cases[:6], (SUPPORT,), tolerance=2.0
    )
    assert len(found) == 6 and max(found) <= 1  # before those of this case exist


def test_a_share_of_a_report_measures_as_the_whole(cohort, monkeypatch):
    """If one case has no spacing, no shard uses mm; two cases of 16 slices show every second slice."""
    monkeypatch.setattr(case_pictures, "MAX_SLICES", 20)
    spacings = ((5.0, 1.0, 1.0), None, *cohort.spacings[2:])
    mixed = dataclasses.replace(cohort, spacings=spacings)
    assessor, cases = Assessor(mixed, Runner(sharding.data_mesh(), 24)), mixed.cases[:2]
    whole = assessor.assess(random_network(), cases, (SUPPORT,), tolerance=2.0)
    for index, case in enumerate(cases):
        (share,) = assessor.assess_each(random_network(), [case], (SUPPORT,), tolerance=2.0, report_cases=cases)
        assert share.rows == [whole.rows[index]] and share.rows[0]["unit"] == "voxel"
        assert share.pictures == whole.cases[index] and share.pictures.step == 2


def test_a_patient_is_the_mean_of_cases_and_targets(cohort):
    """Two cases of one patient count as one; ignored voxels are in neither mask."""
    description = Description(LGG.channels, (Target("a", (1,)), Target("b", (2,))), stand_in="FLAIR", ignore=9)
    labels = [np.where(of_case > 0, 1, 0).astype(np.uint8) for of_case in cohort.labels]
    for of_case in labels:
        of_case[:8] *= 2
        of_case[:, :100] = 9
    changed = dataclasses.replace(
        cohort,
        description=description,
        labels=tuple(labels),
        patients=("x", "y", "x", *cohort.patients[3:]),
        grades=None,
    )
    network = random_network(targets=2, description=description)
    assessor = Assessor(changed, Runner(sharding.data_mesh(), 16), LOSS)
    scores = assessor.quick(network, changed.cases[:3], (SUPPORT,) * 2)
    probability = on_native_grid(sigmoid(logits_by_hand(network, normalized_by_hand(cohort, np.arange(48)))))
    predicted = probability >= 0.5
    predicted[..., 0] &= probability[..., 0] >= np.where(predicted[..., 1], probability[..., 1], 0)
    predicted[..., 1] &= ~predicted[..., 0]  # the targets exclude each other
    dice = np.zeros((3, 2))
    for case in range(3):
        counted = labels[case] != 9
        for k in (0, 1):
            p, t = predicted[16 * case : 16 * case + 16, ..., k] & counted, labels[case] == k + 1
            dice[case, k] = 2 * (p & t).sum() / (p.sum() + t.sum())
    by_patient = np.array([(dice[0] + dice[2]) / 2, dice[1]])
    np.testing.assert_allclose(scores["dice_mean"], by_patient.mean(), rtol=1e-3)
    np.testing.assert_allclose(scores["dice_median"], np.median(by_patient.mean(axis=1)), rtol=1e-3)


def test_volumes_of_all_sizes_pass_through_one_runner():
    """A new size ends the batch; the result of a volume does not depend on its neighbors."""
    network, runner = random_network(), Runner(sharding.data_mesh(), 8)
    rng = np.random.default_rng(0)
    constants = Normalization(*(np.full(3, value, np.float32) for value in (0.0, 255.0, 90.0, 0.02)))
    sizes = [(3, 64), (6, 64), (2, 32), (20, 64), (1, 64)]
    volumes = [Inputs(rng.integers(0, 256, (n, s, s, 3)).astype(np.uint8), constants) for n, s in sizes]
    counted = []
    together = list(runner.run(network, volumes, on_slices=counted.append))
    assert sum(counted) == 32 and counted == [8, 1, 2, 8, 8, 5]
    for volume, output in zip(volumes, together, strict=True):
        (alone,) = runner.run(network, [volume])
        assert output.members.shape == (1, *volume.images.shape[:3], 1)
        np.testing.assert_allclose(output.members, alone.members, atol=1e-6)
        images = (volume.images.astype(np.float32) - 90) * 0.02
        np.testing.assert_allclose(output.probability, sigmoid(logits_by_hand(network, images)), atol=1e-3)
