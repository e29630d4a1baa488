"""The loss of a run, by name."""

from collections.abc import Callable
from functools import partial

import jax

from brainseg_jax import losses
from brainseg_jax.errors import InputError

# (logits [B, H, W, 1], labels [B, H, W, 1], mask=[B] or None) -> [B]
Loss = Callable[..., jax.Array]


def build_loss(
    name: str,
    *,
    tumor_fraction: float,
    smooth: float,
    batch_wide: bool,
    false_negative_weight: float,
    focal_tversky_gamma: float,
    focal_gamma: float,
    focal_tumor_weight: float,
) -> Loss:
    """The loss of this name; of the values only those that it has matter.

    Args:
      name: of `losses`, without "_loss".
      tumor_fraction: of the pixels of the training masks, each mask as often as it is drawn; class weights are made
        from it.
      smooth: of the losses of overlap, but for generalized Dice.
      batch_wide: of the losses of overlap.
      false_negative_weight: of the two Tversky losses; their false positives weigh 1 less this.
      focal_tversky_gamma: of the focal Tversky loss.
      focal_gamma: of the focal loss.
      focal_tumor_weight: of the focal loss; its background weighs 1 less this.

    Returns:
      (logits, labels, mask=None) -> [B].

    Raises:
      InputError: for an unknown name, and for class weights of a training set without tumor.
    """
    overlap = {"smooth": smooth, "batch_wide": batch_wide}
    tversky = {
        "false_positive_weight": 1.0 - false_negative_weight,
        "false_negative_weight": false_negative_weight,
        **overlap,
    }
    focal = {
        "gamma": focal_gamma,
        "tumor_weight": focal_tumor_weight,
        "background_weight": 1.0 - focal_tumor_weight,
    }
    made = {
        "dice": partial(losses.dice_loss, **overlap),
        "dice_cross_entropy": partial(losses.dice_cross_entropy, **overlap),
        "generalized_dice": partial(losses.generalized_dice_loss, batch_wide=batch_wide),
        "tversky": partial(losses.tversky_loss, **tversky),
        "focal_tversky": partial(losses.focal_tversky_loss, gamma=focal_tversky_gamma, **tversky),
        "focal": partial(losses.focal_loss, **focal),
    }
    if name in made:
        return made[name]
    if name != "weighted_cross_entropy":
        known = ", ".join((*made, "weighted_cross_entropy"))
        raise InputError(f"loss.name={name!r} is not a loss; choose one of {known}")
    try:
        weights = losses.class_weights(tumor_fraction)
    except ValueError as error:
        raise InputError(f"loss.name={name}: {error}; train on other patients (split.*), or with dice") from error
    return partial(losses.weighted_cross_entropy, **weights._asdict())
