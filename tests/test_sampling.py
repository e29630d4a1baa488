"""The stream of training slices: each slice or patient once per pass, from any step, with the wanted share of tumor."""

import numpy as np
import pytest

from brainseg_jax.data.sampling import BatchSampler, PatientSampler
from brainseg_jax.errors import InputError

SLICES = np.arange(100, 123)
HAS_TUMOR = np.arange(23) % 4 == 0  # six of them


def sampler(**options):
    return BatchSampler(**{"slices": SLICES, "has_tumor": HAS_TUMOR, "batch_size": 5, "seed": 3} | options)


def test_each_slice_once_a_pass():
    stream = np.concatenate([sampler()(step) for step in range(23)])  # 115 draws: five passes of 23
    passes = stream.reshape(5, 23)
    for one in passes:
        assert sorted(one) == SLICES.tolist()
    assert len({tuple(one) for one in passes}) == 5  # each in another order


def test_a_step_does_not_depend_on_the_ones_before():
    in_order = [sampler()(step) for step in range(12)]
    for step in (11, 0, 7):
        np.testing.assert_array_equal(sampler()(step), in_order[step])


def test_seeds_differ():
    assert not np.array_equal(sampler()(0), sampler(seed=4)(0))


def test_tumor_share():
    draws = sampler(tumor_share=0.4)
    tumor = set(SLICES[HAS_TUMOR])
    batches = [draws(step) for step in range(3)]
    assert [sum(i in tumor for i in batch) for batch in batches] == [2, 2, 2]
    assert {i for batch in batches for i in batch if i in tumor} == tumor  # six draws: one whole pass


def test_a_share_that_cannot_be_drawn():
    with pytest.raises(InputError, match=r"with tumor.*tumor_sampling=0"):
        sampler(has_tumor=np.zeros(23, bool), tumor_share=0.5)
    with pytest.raises(InputError, match=r"1\.5 must be in \[0, 1\]"):
        sampler(tumor_share=1.5)


def test_the_order_is_fixed_for_good():
    """Raw Philox output, computed with another implementation of it: the order may never change under a saved run."""

    def philox(key, counter):
        mask, low, high = (1 << 64) - 1, key & ((1 << 64) - 1), 0
        a, b, c, d = counter
        for _ in range(10):
            first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
            a, b, c, d = (second >> 64) ^ b ^ low, second & mask, (first >> 64) ^ d ^ high, first & mask
            low, high = (low + 0x9E3779B97F4A7C15) & mask, (high + 0xBB67AE8584CAA73B) & mask
        return [a, b, c, d]

    words = [w for block in range(6) for w in philox(3, [block + 1, 0, 0, 0])][:23]  # numpy counts up before it draws
    order = sorted(range(23), key=lambda i: words[i])
    np.testing.assert_array_equal(sampler()(0), SLICES[order[:5]])


PATIENTS = np.repeat([7, 2, 5], [12, 8, 3])
AREA = np.where(HAS_TUMOR, np.arange(23) ** 2, 0) * (PATIENTS != 5)  # of patient 5 no slice has tumor


def by_patient(**options):
    return PatientSampler(SLICES, PATIENTS, AREA, **{"batch_size": 5, "seed": 3} | options)


def test_each_patient_once_a_pass():
    owner = dict(zip(SLICES, PATIENTS, strict=True))
    stream = np.concatenate([by_patient(tumor_share=0.5)(step) for step in range(30)])  # 150 draws: 50 passes of 3
    passes = np.array([owner[i] for i in stream]).reshape(50, 3)
    assert (np.sort(passes, axis=1) == [2, 5, 7]).all()
    np.testing.assert_array_equal(by_patient(tumor_share=0.5)(7), stream[35:40])
    assert not np.array_equal(by_patient(tumor_share=0.5, seed=4)(7), stream[35:40])


def test_probabilities_of_a_patients_slices():
    """With 1 / 1.1 and 1, (s + 0.1 * mean of s) / (1.1 * sum of s), s the areas: the weights of Buda et al.'s code."""
    for patient in (7, 2):
        slices, probability = by_patient(tumor_share=1 / 1.1, area_power=1.0).probabilities[patient]
        s = AREA[patient == PATIENTS].astype(float)
        np.testing.assert_array_equal(slices, SLICES[patient == PATIENTS])
        np.testing.assert_allclose(probability, (s + 0.1 * s.mean()) / (1.1 * s.sum()), rtol=1e-12)
    # Patient 2 has areas of 12 ** 2 and 16 ** 2: half of the draws in the ratio 3 to 4, the other half over 8 slices.
    _, probability = by_patient(tumor_share=0.5, area_power=0.5).probabilities[2]
    np.testing.assert_allclose(probability, [1 / 16 + 3 / 14, *[1 / 16] * 3, 1 / 16 + 4 / 14, *[1 / 16] * 3])
    _, probability = by_patient(tumor_share=0.5, area_power=0.5).probabilities[5]
    np.testing.assert_allclose(probability, [1 / 3] * 3)


def test_draws_follow_the_probabilities():
    draws = by_patient(batch_size=30, tumor_share=0.6, area_power=0.5)
    stream = np.concatenate([draws(step) for step in range(1000)])  # 10,000 of each patient
    for slices, probability in draws.probabilities.values():
        share = np.array([(stream == i).sum() for i in slices]) / 10_000
        assert (abs(share - probability) < 5 * np.sqrt(probability * (1 - probability) / 10_000)).all()


@pytest.mark.parametrize("kind", ["batches", "batches, half tumor", "patients"])
def test_the_expected_mean_is_that_of_many_batches(kind):
    """Class weights rest on it. 23 000 draws of a spread below 0.3: four standard errors are 0.008."""
    values = np.random.default_rng(0).random(23)
    draws = {
        "batches": sampler(),
        "batches, half tumor": sampler(batch_size=6, tumor_share=0.5),
        "patients": by_patient(tumor_share=0.6, area_power=0.5),
    }[kind]
    of_slice = dict(zip(SLICES, values, strict=True))
    drawn = [of_slice[i] for step in range(4600) for i in draws(step)]
    assert draws.expected_mean(values) == pytest.approx(np.mean(drawn), abs=0.008)


def test_the_expected_mean_by_hand():
    values = np.arange(23.0)
    assert sampler().expected_mean(values) == 11.0
    # Tumor in 0, 4, ..., 20 (mean 10); the 17 others sum to 253 - 60. Two of five draws have tumor.
    assert sampler(tumor_share=0.4).expected_mean(values) == pytest.approx(0.4 * 10 + 0.6 * 193 / 17)
    # Slices 0 to 11, 12 to 19 and 20 to 22 of three patients: 5.5, 15.5 and 21, each patient equally often.
    assert by_patient().expected_mean(values) == pytest.approx((5.5 + 15.5 + 21.0) / 3)
