"""Builds the loss that a config names."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
    """Builds the loss. Values that this loss does not use are ignored.

    Args:
      name: Name of a function in `losses`, without "_loss".
      target_fractions: For each target, its share of the pixels of the training masks. Each mask counts as often as it
        is drawn. The class weights are computed from these shares.
      target_weights: Weights of the targets in their mean; empty: equal weights.
      smooth: Constant in numerator and denominator of the overlap losses, except generalized Dice.
      batch_wide: Whether the overlap losses sum over the whole batch, not over each image.
      false_negative_weight: For the two Tversky losses. The weight of false positives is 1 minus this.
      focal_tversky_gamma: For the focal Tversky loss.
      focal_gamma: For the focal loss.
      focal_tumor_weight: For the focal loss. The weight of the background is 1 minus this.

    Returns:
      (logits, labels, mask=None) -> [B].

    Raises:
      InputError: The name is unknown, the number of target weights is wrong, or class weights are needed and the
        training masks have no tumor.
    """
    if target_weights and len(target_weights) != len(target_fractions):
        raise InputError(
            f"loss.target_weights={tuple(target_weights)} has {len(target_weights)} weights, but the data have "
            f"{len(target_fractions)} targets; give one weight per target"
        )
    weighted: dict[str, Any] = {"target_weights": tuple(target_weights) or None}
    overlap: dict[str, Any] = {"smooth": smooth, "batch_wide": batch_wide, **weighted}
    tversky: dict[str, Any] = {
        "false_positive_weight": 1.0 - false_negative_weight,
        "false_negative_weight": false_negative_weight,
        **overlap,
    }
    focal: dict[str, Any] = {
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
        choices = ", ".join((*by_name, "weighted_cross_entropy"))
        raise InputError(f"loss.name={name!r} is not a loss; choose one of {choices}")
    try:
        weights = [losses.class_weights(fraction) for fraction in target_fractions]
    except ValueError as error:
        raise InputError(
            f"loss.name={name}: {error}; train on other patients (split.*), or set loss.name=dice"
        ) from error
    tumor, background = zip(*weights, strict=True)
    return partial(losses.weighted_cross_entropy, tumor_weight=tumor, background_weight=background, **weighted)
