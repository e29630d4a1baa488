"""Every loss against MONAI or optax, on random and on degenerate inputs.

`python -m pytest -s tests/interop/test_losses_monai.py` prints the table of largest differences.
"""

import numpy as np
import optax
import pytest

from brainseg_jax import losses

torch = pytest.importorskip("torch")
monai = pytest.importorskip("monai.losses")
pytestmark = [
    pytest.mark.usefixtures("optax_promotion"),
    pytest.mark.filterwarnings("ignore::UserWarning:monai", "ignore::FutureWarning:monai"),
]
SHAPE = (4, 24, 20, 1)


def inputs():
    rng = np.random.default_rng(0)
    for scale in (0.1, 1.0, 8.0):
        for share in (0.01, 0.3, 0.9):
            yield "random", rng.normal(size=SHAPE) * scale, rng.random(SHAPE) < share
    empty, full = np.zeros(SHAPE), np.ones(SHAPE)
    one_pixel = np.zeros(SHAPE)
    one_pixel[:, 3, 5] = 1
    for logits in (rng.normal(size=SHAPE), np.zeros(SHAPE)):
        yield "empty mask", logits, empty
        yield "full mask", logits, full
        yield "one pixel", logits, one_pixel
    for level in (30.0, -30.0, 1e4, -1e4):
        for labels in (empty, full, one_pixel):
            yield "saturated", np.full(SHAPE, level), labels
    yield "saturated", 1e4 * (2 * one_pixel - 1), one_pixel


def two_classes(logits, labels):
    """[B, 2, H, W] of background and tumor, as MONAI's generalized Dice wants it."""
    p = torch.sigmoid(logits)
    return torch.cat([1 - p, p], 1), torch.cat([1 - labels, labels], 1)


def by_monai(kind, **options):
    made = getattr(monai, kind)(reduction="none", **options)
    return lambda x, y: made(x, y).reshape(len(x), -1).mean(1)


def generalized_dice(x, y):
    # Smoothing 0: its 1e-5 is no smaller than a class's share where weights are 1 / pixels².
    loss = monai.GeneralizedDiceLoss(reduction="none", smooth_nr=0.0, smooth_dr=0.0)
    return loss(*two_classes(x, y)).reshape(len(x), -1).mean(1)


def weighted(x, y):
    """MONAI has no weighted binary cross-entropy; torch's weighs the tumor alone."""
    pixels = torch.nn.functional.binary_cross_entropy_with_logits(
        x, y, pos_weight=torch.tensor(9.0, dtype=x.dtype), reduction="none"
    )
    return 0.1 * pixels.reshape(len(x), -1).mean(1)


def by_optax(loss):
    def value(x, y):
        return loss(*(np.asarray(a, np.float32).transpose(0, 2, 3, 1) for a in (x, y)))

    return value


TVERSKY = {"alpha": 0.3, "beta": 0.7, "sigmoid": True, "smooth_nr": 1.0, "smooth_dr": 1.0}
DICE = {"sigmoid": True, "smooth_nr": 1.0, "smooth_dr": 1.0}
PAIRS = {  # (ours, reference, its name)
    "dice_loss": (losses.dice_loss, by_monai("DiceLoss", **DICE), "monai DiceLoss"),
    "dice_loss, batch_wide": (
        lambda x, y: losses.dice_loss(x, y, batch_wide=True),
        lambda x, y: monai.DiceLoss(batch=True, **DICE)(x, y).expand(len(x)),
        "monai DiceLoss(batch=True)",
    ),
    "generalized_dice_loss": (losses.generalized_dice_loss, generalized_dice, "monai GeneralizedDiceLoss"),
    "tversky_loss": (losses.tversky_loss, by_monai("TverskyLoss", **TVERSKY), "monai TverskyLoss"),
    "focal_tversky_loss": (
        losses.focal_tversky_loss,
        lambda x, y: by_monai("TverskyLoss", **TVERSKY)(x, y).clip(min=0) ** 0.75,
        "monai TverskyLoss ** (3 / 4)",
    ),
    "focal_loss": (losses.focal_loss, by_monai("FocalLoss", gamma=2.0, alpha=0.25), "monai FocalLoss"),
    "focal_loss, optax": (
        losses.focal_loss,
        by_optax(lambda x, y: optax.losses.sigmoid_focal_loss(x, y, alpha=0.25, gamma=2.0).mean((1, 2, 3))),
        "optax sigmoid_focal_loss",
    ),
    "weighted_cross_entropy": (
        lambda x, y: losses.weighted_cross_entropy(x, y, tumor_weight=0.9, background_weight=0.1),
        weighted,
        "torch binary_cross_entropy_with_logits",
    ),
    "weighted_cross_entropy, 1": (
        losses.weighted_cross_entropy,
        by_optax(lambda x, y: optax.losses.sigmoid_binary_cross_entropy(x, y).mean((1, 2, 3))),
        "optax sigmoid_binary_cross_entropy",
    ),
    "dice_cross_entropy": (
        losses.dice_cross_entropy,
        lambda x, y: torch.stack(
            [monai.DiceCELoss(**DICE)(*pair) for pair in zip(x[:, None], y[:, None], strict=True)]
        ),
        "monai DiceCELoss",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_losses_agree(name):
    ours, reference, reference_name = PAIRS[name]
    largest: dict[str, float] = {}
    for kind, logits, labels in inputs():
        x, y = (torch.from_numpy(np.asarray(a, np.float64).transpose(0, 3, 1, 2)) for a in (logits, labels))
        expected = np.asarray(reference(x, y), np.float64)
        value = np.asarray(ours(logits.astype(np.float32), labels.astype(np.float32)), np.float64)
        difference = np.abs(value - expected) / np.maximum(1.0, np.abs(expected))  # relative where above 1
        largest[kind] = max(largest.get(kind, 0.0), float(difference.max()))
    print(f"\n| {name} | {reference_name} |", " | ".join(f"{kind} {d:.1e}" for kind, d in largest.items()), "|")
    # Torch sums in double precision, we in single: a sum of 480 equal values strays by some units of the last place.
    assert all(difference <= 5e-6 for difference in largest.values()), largest
