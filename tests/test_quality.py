"""The confidence of each mask: agreement, expected Dice with its interval, and the risk-coverage curve."""

import itertools
import json

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.quality import (
    area,
    dice_at,
    learn,
    lowest_first,
    risk_coverage,
    summarize_quality,
    with_expected,
)
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.inference.quality import (
    NO_MASK,
    Curve,
    Expected,
    ExpectedDice,
    Pair,
    Quality,
    Removed,
    agreement,
    increasing,
    rate,
)
from brainseg_jax.runs.trained import read_expected_dice


def cases(count, seed=0, spread=0.3):
    """Pairs with larger errors at lower agreement."""
    rng = np.random.default_rng(seed)
    value = rng.beta(5.0, 1.5, count)
    dice = np.clip(0.95 * value + spread * (1.0 - value) * rng.standard_normal(count), 0.0, 1.0)
    return [Pair(float(v), float(d), f"P{k:03d}") for k, (v, d) in enumerate(zip(value, dice, strict=True))]


def rows(pairs):
    return [{"patient": p.patient, "dice": p.dice, "agreement": p.agreement} for p in pairs]


# --- agreement -------------------------------------------------------------------------------------------------------


def test_agreement_is_the_dice_of_the_masks_at_two_thresholds():
    # From 0.1 on five voxels, from 0.9 on three of them: 2 * 3 / (5 + 3).
    probability = np.array([[[1.0, 0.9, 0.95, 0.4]], [[0.1, 0.09, 0.0, 0.05]]], np.float32)
    assert agreement(probability, probability >= 0.5, PostProcess()) == pytest.approx(0.75)


def test_agreement_is_of_the_components_that_a_mask_keeps():
    # The largest component is four voxels from 0.1 on, and two others from 0.9 on: they do not meet.
    probability = np.array([[[0.9, 0.5, 0.5, 0.2, 0.0, 0.0, 0.95, 0.99]]], np.float32)
    assert agreement(probability, probability >= 0.5, PostProcess(largest_component=True)) == 0.0
    assert agreement(probability, probability >= 0.5, PostProcess()) == pytest.approx(2 * 3 / (6 + 3))


def test_a_mask_that_nothing_is_sure_of_has_agreement_0_and_an_empty_one_has_none():
    probability = np.full((1, 2, 2), 0.6, np.float32)
    assert agreement(probability, probability >= 0.5, PostProcess()) == 0.0
    assert agreement(np.full((1, 2, 2), 0.09), np.ones((1, 2, 2), bool), PostProcess()) == 0.0
    assert agreement(probability, np.zeros((1, 2, 2), bool), PostProcess()) is None


def test_each_target_is_rated_by_its_own_cases():
    probability = np.full((1, 1, 2, 2), 0.9, np.float32)
    masks = np.ones((1, 1, 2, 2), bool)
    masks[..., 1] = False
    expected = ExpectedDice({"edema": tuple(cases(25)), "core": tuple(cases(25, seed=1))}, "phantoms")
    posts = (PostProcess(),) * 2
    edema, core = rate(probability, masks, posts, ("edema", "core"), expected)
    assert edema == Quality(1.0, expected("edema", 1.0)) and str(edema).startswith("expected Dice 0.9")
    assert core == Quality(None, None) and str(core) == NO_MASK
    assert str(rate(probability, masks, posts, ("edema", "core"), None)[0]) == "agreement 1.00, expected Dice unknown"


def test_a_removed_component_is_reported_from_half_of_the_mask_on():
    """Of a line of 4 voxels in slice 1 and one of 2 in slices 2 and 3, the mask keeps the first; 2 / 4 is reported."""
    probability = np.zeros((4, 3, 8, 1), np.float32)
    probability[0, 0, :4] = probability[2:, 2, 6] = 0.6
    probability[3, 0, 0] = 0.4  # below the threshold
    post = PostProcess(largest_component=True)
    mask = post(probability[..., 0])[..., None]
    removed = lambda post, mask: rate(probability, mask, [post], ["tumor"], None)[0].removed
    assert mask.sum() == 4 and removed(post, mask) == Removed(0.5, 2, 3)
    assert removed(PostProcess(), probability >= 0.5) is None  # all components are kept
    probability[3, 2, 6] = 0.0
    assert removed(post, mask) is None  # 1 / 4
    assert removed(PostProcess(min_voxels=9), np.zeros_like(mask)) is None  # the message for an empty mask warns


def test_a_removed_component_of_one_target_is_not_part_of_another():
    probability = np.full((1, 1, 7, 2), 0.9, np.float32)
    probability[..., 3, :] = 0.0
    masks = np.zeros(probability.shape, bool)
    masks[:, :, :3, 0] = masks[:, :, 4:, 1] = True  # each region belongs to one target
    assert [quality.removed for quality in rate(probability, masks, [PostProcess()] * 2, "AB", None)] == [None, None]
    masks[:, :, 4:, 1] = False
    masks[:, :, 1, 1] = True
    assert [quality.removed for quality in rate(probability, masks, [PostProcess()] * 2, "AB", None)] == [
        Removed(1.0, 0, 0),
        Removed(3.0, 0, 0),
    ]


# --- expected Dice ---------------------------------------------------------------------------------------------------


def test_monotone_regression_by_hand():
    # 0.6 and 0.2 fall, so they are one block: their mean 0.4 at (2 + 3) / 2.
    x, y = increasing(np.array([3.0, 1.0, 2.0, 4.0]), np.array([0.2, 0.1, 0.6, 0.7]))
    np.testing.assert_allclose(x, [1.0, 2.5, 4.0])
    np.testing.assert_allclose(y, [0.1, 0.4, 0.7])


@pytest.mark.parametrize("seed", range(5))
def test_monotone_regression_as_scipy_has_it(seed):
    rng = np.random.default_rng(seed)
    x = rng.permutation(60).astype(float)
    y = x / 60 + rng.standard_normal(60)
    found = np.unique(np.round(increasing(x, y)[1], 9))
    expected = isotonic_regression(y[np.argsort(x)]).x
    np.testing.assert_allclose(found, np.unique(np.round(expected, 9)), atol=1e-8)


def test_cases_of_one_agreement_have_their_mean():
    x, y = increasing(np.array([0.5, 0.5, 0.9]), np.array([0.0, 1.0, 0.8]))
    np.testing.assert_allclose((x, y), [[0.5, 0.9], [0.5, 0.8]])


def test_nine_of_ten_lie_in_the_interval_and_it_is_wider_where_errors_are_larger():
    covered, widths = [], []
    for seed in range(60):
        curve = Curve(cases(40, seed))
        new = cases(100, 1000 + seed)
        found = [curve(pair.agreement) for pair in new]
        covered += [one.low <= pair.dice <= one.high for one, pair in zip(found, new, strict=True)]
        low, high = curve(0.4), curve(0.95)
        widths.append((low.high - low.low, high.high - high.low))
    assert 0.87 < np.mean(covered) < 0.95
    low, high = np.mean(widths, axis=0)
    assert low > 2.0 * high


def test_the_expected_dice_never_falls_and_is_in_its_interval_within_0_and_1():
    curve = Curve(cases(30, spread=1.0))
    found = [curve(value) for value in np.linspace(0.0, 1.0, 101)]
    assert all(a.dice <= b.dice + 1e-12 for a, b in itertools.pairwise(found))
    assert all(0.0 <= one.low <= one.dice <= one.high <= 1.0 for one in found)


def test_below_the_lowest_known_agreement_the_expected_dice_goes_to_0():
    curve = Curve([Pair(0.9, 0.8, f"P{k}") for k in range(20)])
    assert curve(0.9).dice == curve(0.95).dice == pytest.approx(0.8)
    assert curve(0.45).dice == pytest.approx(0.4) and curve(0.0).dice == 0.0
    assert curve(0.9).low <= 0.8 <= curve(0.9).high


def test_the_interval_by_hand():
    # 19 patients of one agreement, two of them at Dice 0.6, 17 at 0.8. Without one of the two, the mean of the others
    # is (0.8 * 17 + 0.6) / 18. The errors are usual for all, so rank ceil(20 * 0.9) = 18 of 19 is an error of one of
    # the two: this mean less and plus its error.
    curve = Curve([Pair(0.5, 0.6 if k < 2 else 0.8, f"P{k:02d}") for k in range(19)])
    of_two = (0.8 * 17 + 0.6) / 18
    assert curve(0.5).dice == pytest.approx((0.8 * 17 + 1.2) / 19)
    assert curve(0.5).low == pytest.approx(0.6) and curve(0.5).high == pytest.approx(2 * of_two - 0.6)


def test_a_patient_of_known_dice_does_not_tell_its_own():
    pairs = [*cases(30), Pair(0.2, 1.0, "odd"), Pair(0.21, 1.0, "odd")]
    expected = ExpectedDice({"tumor": tuple(pairs)}, "phantoms")
    alone = ExpectedDice({"tumor": tuple(pairs[:30])}, "phantoms")
    assert expected("tumor", 0.2, without="odd") == alone("tumor", 0.2) != expected("tumor", 0.2)


def test_fewer_than_20_patients_give_none():
    pairs = cases(20)
    assert learn(rows(pairs), ("tumor",), "phantoms") is not None
    assert learn(rows(pairs[:19]), ("tumor",), "phantoms") is None
    again = [pair._replace(patient=pairs[0].patient) for pair in pairs]
    assert learn(rows(pairs[:19] + again), ("tumor",), "phantoms") is None
    assert learn([*rows(pairs[:19]), rows(pairs)[19] | {"agreement": None}], ("tumor",), "phantoms") is None


def test_rows_get_what_the_others_say():
    pairs = cases(25)
    expected = learn(rows(pairs), ("tumor",), "phantoms")
    empty = {"patient": "empty", "dice": 0.0, "agreement": None}
    *found, last = with_expected([*rows(pairs), empty], expected, ("tumor",))
    for row, pair in zip(found, pairs, strict=True):
        wanted = expected("tumor", pair.agreement, without=pair.patient)
        assert Expected(row["expected_dice"], row["expected_dice_low"], row["expected_dice_high"]) == wanted
    assert [last[name] for name in ("expected_dice", "expected_dice_low", "expected_dice_high")] == [None] * 3
    assert with_expected(rows(pairs), None, ("tumor",))[0]["expected_dice"] is None
    assert lowest_first([*found, last])[0]["patient"] == "empty"
    figures = summarize_quality([*found, last])
    assert figures["cases"] == 26 and figures["masks"] == 25 and 20 <= figures["covered"] <= 25


def test_it_is_the_same_after_a_file(tmp_path):
    assert read_expected_dice(tmp_path, ("tumor",)) is None
    expected = ExpectedDice({"tumor": tuple(cases(22))}, "phantoms")
    (tmp_path / "expected_dice.json").write_text(json.dumps(expected.to_json()))
    read = read_expected_dice(tmp_path, ("tumor",))
    assert (read.targets, read.source, read.digest) == (expected.targets, expected.source, expected.digest)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(version=2), "version 2"),
        (lambda c: c.update(detector="another"), "another"),
        (lambda c: c.pop("targets"), "targets"),
        (lambda c: c["targets"]["tumor"].pop(), "19 patients for tumor"),
        (
            lambda c: c["targets"].update(other=c["targets"].pop("tumor")),
            "its targets are other, those of the",
        ),
        (lambda c: c["targets"]["tumor"][3].__setitem__(1, 1.5), r"outside of \[0, 1\]"),
        (lambda c: c["targets"]["tumor"][3].__setitem__(0, float("nan")), r"outside of \[0, 1\]"),
        (lambda c: c["targets"]["tumor"][3].pop(), "ValueError|values to unpack"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, change, words):
    content = json.loads(json.dumps(ExpectedDice({"tumor": tuple(cases(20))}, "phantoms").to_json()))
    change(content)
    (tmp_path / "expected_dice.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=words) as raised:
        read_expected_dice(tmp_path, ("tumor",))
    assert "expected_dice.json" in str(raised.value) and "remove the file" in str(raised.value)


# --- risk and coverage -----------------------------------------------------------------------------------------------


def test_the_risk_coverage_curve_by_hand():
    # In order of confidence the Dice are 0.9, 0.5, 1.0, 0.2: risks 0.1, 0.5, 0.0, 0.8, and their running means.
    confidence, dice = [0.3, 0.9, None, 0.8], [1.0, 0.9, 0.2, 0.5]
    np.testing.assert_allclose(risk_coverage(confidence, dice), [0.1, 0.3, 0.2, 0.35])
    assert area(confidence, dice) == pytest.approx(0.2375)
    assert dice_at(0.5, confidence, dice) == pytest.approx(0.7)
    assert dice_at(0.6, confidence, dice) == pytest.approx(0.8)  # three of four
    assert dice_at(1.0, confidence, dice) == pytest.approx(0.65)


def test_confidence_that_is_alike_for_all_has_the_risk_of_all():
    np.testing.assert_allclose(risk_coverage([0.5] * 3, [0.9, 0.6, 0.3]), [0.4] * 3)
    # Two alike, between the others: 0.1, then 0.1 and twice the mean of 0.2 and 0.6.
    np.testing.assert_allclose(risk_coverage([3, 2, 2, 1], [0.9, 0.8, 0.4, 0.0]), [0.1, 0.25, 0.3, 0.475])


def test_no_order_is_better_than_that_of_the_dice_itself():
    rng = np.random.default_rng(0)
    dice = rng.random(30)
    assert area(dice, dice) < min(area(rng.permutation(30), dice) for _ in range(50)) <= area(-dice, dice)
