"""Segmentation losses: pure functions of logits, one value an example. They need jax and nothing else.

All have one signature, `loss(logits, labels, *, ..., mask=None) -> [B]`. `logits` are of any real value and `labels` in
{0, 1} (or soft, in [0, 1]), both [B, ..., 1], for example [B, H, W, 1]; `mask` is None, or [B] (whole examples) or of
the rank of the logits: 1 counts, 0 is padding. The result is float32 whatever the input dtype; the caller reduces it,
once, over the batch. All hold under `jit`, `vmap` and `grad`, with finite values and gradients for empty masks, full
masks and saturated logits, and raise ValueError where shapes differ.

In the equations p = sigmoid(logit), y is the label and s is `smooth`; sums run over the pixels of an example, or with
`batch_wide` over those of the whole batch at once, in which case each example gets that one value.
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
