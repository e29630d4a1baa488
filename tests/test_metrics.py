"""Scores by patient, by hand and against numpy over whole volumes."""

import jax
import jax.numpy as jnp
import numpy as np

from brainseg_jax.evaluation.scores import add_up, padded_batches, summarize
from brainseg_jax.metrics import PatientSums, patient_scores, patient_sums, soft_batch_iou


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


def test_batches_add_up_to_whole_volumes():
    rng = np.random.default_rng(0)
    index = np.sort(rng.integers(0, 3, 21)).astype(np.int32)
    truth, predicted = rng.random((21, 6, 5, 1)) < 0.15, rng.random((21, 6, 5, 1)) < 0.15
    truth[:4] = False

    def eval_batch(i, valid):
        return patient_sums(jnp.array(predicted[i]), jnp.array(truth[i]), jnp.array(index[i]), 3, jnp.array(valid))

    totals = add_up(eval_batch, np.arange(21), batch_size=8)  # the last batch holds three slices of padding
    dice = patient_scores(totals)["dice"]
    for patient in range(3):
        t, p = truth[index == patient], predicted[index == patient]
        assert dice[patient] == 2 * (t & p).sum() / (t.sum() + p.sum())
        some_t, some_p = t.any(axis=(1, 2, 3)), p.any(axis=(1, 2, 3))
        assert totals.slices[patient] == len(t)
        assert totals.tumor_slices[patient] == some_t.sum()
        assert totals.found_slices[patient] == (t & p).any(axis=(1, 2, 3)).sum()
        assert totals.false_positive_slices[patient] == (some_p & ~some_t).sum()


def test_a_patient_is_not_an_average_of_slices():
    # Slice Dice 1 (one voxel) and 0 (nine voxels missed): the volume's Dice is 2 / 11, not 1/2.
    truth = np.zeros((2, 3, 3, 1), bool)
    truth[0, 0, 0], truth[1] = True, True
    predicted = truth.copy()
    predicted[1] = False
    counts = patient_sums(jnp.array(predicted), jnp.array(truth), jnp.zeros(2, jnp.int32), 1, jnp.ones(2, bool))
    np.testing.assert_allclose(patient_scores(counts)["dice"], [2 / 11])


def test_padded_batches_hold_each_slice_once():
    seen = [(i, v) for i, v in padded_batches(np.array([5, 6, 7, 8, 9]), 2)]
    assert [i.tolist() for i, _ in seen] == [[5, 6], [7, 8], [9, 9]]
    assert [v.tolist() for _, v in seen] == [[True, True], [True, True], [True, False]]


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
