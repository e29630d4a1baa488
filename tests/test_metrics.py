"""Scores by patient, against values by hand and numpy over whole volumes."""

import jax
import jax.numpy as jnp
import numpy as np

from brainseg_jax.evaluation.scores import summarize
from brainseg_jax.metrics import PatientSums, dice, patient_scores, soft_batch_iou, volume_sums


def sums(**counts):
    zero = np.zeros(len(next(iter(counts.values()))), np.int32)
    return PatientSums(**{name: np.array(counts.get(name, zero)) for name in PatientSums._fields})


def test_scores_by_hand():
    # Patient 0: 6 of 8 predicted voxels are among 12 true ones. Then: both empty, missed, invented.
    scores = patient_scores(sums(overlap=[6, 0, 0, 0], predicted=[8, 0, 0, 5], actual=[12, 0, 9, 0]))
    np.testing.assert_allclose(scores["dice"], [12 / 20, 1, 0, 0])
    np.testing.assert_allclose(scores["iou"], [6 / 14, 1, 0, 0])
    np.testing.assert_allclose(scores["precision"], [6 / 8, 1, 0, 0])
    np.testing.assert_allclose(scores["recall"], [6 / 12, 1, 0, 0])


def test_volumes_are_counted():
    rng = np.random.default_rng(0)
    truth, predicted = rng.random((21, 6, 5)) < 0.15, rng.random((21, 6, 5)) < 0.15
    truth[:4] = False
    counts = volume_sums(predicted, truth)
    score = 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum())
    assert patient_scores(counts)["dice"] == dice(predicted, truth) == score
    some_true, some_predicted = truth.any(axis=(1, 2)), predicted.any(axis=(1, 2))
    assert (counts.slices, counts.tumor_slices) == (21, some_true.sum())
    assert counts.found_slices == (truth & predicted).any(axis=(1, 2)).sum()
    assert counts.false_positive_slices == (some_predicted & ~some_true).sum()


def test_a_patient_is_not_an_average_of_slices():
    # Slice Dice 1 (one voxel) and 0 (nine voxels missed): the volume's Dice is 2 / 11, not 1/2.
    truth = np.zeros((2, 3, 3), bool)
    truth[0, 0, 0], truth[1] = True, True
    predicted = truth.copy()
    predicted[1] = False
    np.testing.assert_allclose(dice(predicted, truth), 2 / 11)
    assert dice(truth & False, truth & False) == 1.0


def test_soft_batch_iou_by_hand():
    # Σpy = 0.5, Σp = 0.75, Σy = 1: 0.6 / 1.35; the padded example counts nowhere.
    probability = jnp.array([0.5, 0.25, 1.0, 1.0]).reshape(2, 2, 1, 1)
    labels = jnp.array([1, 0, 1, 0], jnp.uint8).reshape(2, 2, 1, 1)
    value = jax.jit(soft_batch_iou)(probability, labels, jnp.array([True, False]))
    np.testing.assert_allclose(value, 0.6 / 1.35, rtol=1e-6)


def test_summary_by_hand():
    rows = [
        {"dice": d, "iou": d / 2, "precision": 1.0, "recall": 0.5, "slices": 10, "tumor_slices": 4,
         "found_slices": f, "false_positive_slices": 1}
        for d, f in ((0.2, 1), (0.9, 4), (0.7, 3))
    ]  # fmt: skip
    out = summarize(rows)
    assert out["patients"] == 3
    np.testing.assert_allclose([out["dice_mean"], out["dice_median"], out["iou_mean"]], [0.6, 0.7, 0.3])
    np.testing.assert_allclose(out["dice_std"], np.sqrt((0.4**2 + 0.3**2 + 0.1**2) / 2))
    low, high = out["dice_mean_ci95"]
    assert 0.2 <= low < 0.6 < high <= 0.9
    counts = [out[k] for k in ("tumor_slices", "found_slices", "empty_slices", "false_positive_slices")]
    assert counts == [12, 8, 18, 3]
    assert summarize(rows[:1])["dice_mean_ci95"] is None
