"""Segmentation losses: pure functions of logits, one value an example. They need jax and nothing else.

All have one signature, `loss(logits, labels, *, ..., target_weights=None, mask=None) -> [B]`. `logits` are of any real
value and `labels` in {0, 1} (or soft, in [0, 1]), both [B, ..., K], for example [B, H, W, K]. The K targets are binary
problems of their own: the loss of an example is the mean over them, weighted by `target_weights`. `mask` is None, or
[B] (whole examples), or of the rank of the logits: 1 counts, 0 is padding or a pixel of unknown label. The result is
float32 whatever the input dtype; the caller reduces it, once, over the batch. All hold under `jit`, `vmap` and `grad`,
with finite values and gradients for empty masks, full masks and saturated logits, and raise ValueError where shapes
differ.

In the equations p = sigmoid(logit), y is the label and s is `smooth`. Sums run over the pixels of one target in one
example. With `batch_wide` they run over the whole batch at once, and each example gets that one value.
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
