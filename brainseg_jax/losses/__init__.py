"""Segmentation losses: pure functions of logits that return one value per example. They need only jax.

All losses share one signature: `loss(logits, labels, *, ..., target_weights=None, mask=None) -> [B]`.

- `logits`: real numbers, [B, ..., K], for example [B, H, W, K].
- `labels`: in {0, 1} or soft in [0, 1], same shape as `logits`.
- `target_weights`: the K targets are independent binary problems. The loss of an example is their mean with these
  weights.
- `mask`: None, [B] (whole examples), or the rank of the logits. 1 counts; 0 is padding or a pixel without a label.

The result is float32 for any input dtype; the caller reduces it over the batch. All losses work under `jit`, `vmap` and
`grad`. Values and gradients are finite for empty masks, full masks and saturated logits. ValueError: the shapes differ.

In the equations p = sigmoid(logit), y is the label and s is `smooth`. Sums run over the pixels of one target in one
example. With `batch_wide` they run over the whole batch, and every example gets the same value.
"""

from brainseg_jax.losses.combined import dice_cross_entropy
from brainseg_jax.losses.overlap import dice_loss, focal_tversky_loss, generalized_dice_loss, tversky_loss
from brainseg_jax.losses.pixelwise import ClassWeights, class_weights, focal_loss, weighted_cross_entropy

__all__ = [
    "ClassWeights",
    "class_weights",
    "dice_cross_entropy",
    "dice_loss",
    "focal_loss",
    "focal_tversky_loss",
    "generalized_dice_loss",
    "tversky_loss",
    "weighted_cross_entropy",
]
