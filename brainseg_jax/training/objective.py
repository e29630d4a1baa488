"""The loss of a run, by name."""

from collections.abc import Callable, Sequence
from functools import partial

import jax

from brainseg_jax import losses
from brainseg_jax.errors import InputError

# (logits [B, H, W, K], labels [B, H, W, K], mask=[B] or [B, H, W, 1] or None) -> [B]
Loss = Callable[..., jax.Array]


def build_loss(
    name: str,
    *,
    target_fractions: Sequence[float],
    target_weights: Sequence[float],
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
      target_fractions: for each target its share of the pixels of the training masks, each mask as often as it is
        drawn; class weights are computed from it.
      target_weights: of each target in their mean; empty: all alike.
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
    if target_weights and len(target_weights) != len(target_fractions):
        raise InputError(
            f"loss.target_weights={tuple(target_weights)} are {len(target_weights)}, and the data have "
            f"{len(target_fractions)} targets; give one for each"
        )
    weighted = {"target_weights": tuple(target_weights) or None}
    overlap = {"smooth": smooth, "batch_wide": batch_wide, **weighted}
    tversky = {
        "false_positive_weight": 1.0 - false_negative_weight,
        "false_negative_weight": false_negative_weight,
        **overlap,
    }
    focal = {
        "gamma": focal_gamma,
        "tumor_weight": focal_tumor_weight,
        "background_weight": 1.0 - focal_tumor_weight,
        **weighted,
    }
    by_name = {
        "dice": partial(losses.dice_loss, **overlap),
        "dice_cross_entropy": partial(losses.dice_cross_entropy, **overlap),
        "generalized_dice": partial(losses.generalized_dice_loss, batch_wide=batch_wide, **weighted),
        "tversky": partial(losses.tversky_loss, **tversky),
        "focal_tversky": partial(losses.focal_tversky_loss, gamma=focal_tversky_gamma, **tversky),
        "focal": partial(losses.focal_loss, **focal),
    }
    if name in by_name:
        return by_name[name]
    if name != "weighted_cross_entropy":
        known = ", ".join((*by_name, "weighted_cross_entropy"))
        raise InputError(f"loss.name={name!r} is not a loss; choose one of {known}")
    try:
        weights = [losses.class_weights(fraction) for fraction in target_fractions]
    except ValueError as error:
        raise InputError(f"loss.name={name}: {error}; train on other patients (split.*), or with dice") from error
    tumor, background = zip(*weights, strict=True)
    return partial(losses.weighted_cross_entropy, tumor_weight=tumor, background_weight=background, **weighted)
