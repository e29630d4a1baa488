"""Attention U-Net (Oktay et al. 2018, "Attention U-Net: Learning Where to Look for the Pancreas", figures 1 and 2)."""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from brainseg_jax import ops
from brainseg_jax.errors import InputError
from brainseg_jax.models.blocks import NormPlacement, batch_norm, promote_dtype
from brainseg_jax.models.unet import UNet


class AttentionGate(nn.Module):
    """Additive attention gate: α = sigmoid(ψ(ReLU(W_x x + W_g g))), output norm(α x). Oktay et al. 2018, eqs. 1 and 2.

    Attributes:
      upsampling: how α, made at the gating signal's resolution, comes back to the skip's: "nearest" (the reproduced
        Keras network) or "bilinear" (the paper).
      norm: batch normalization of the gated skip, unless "none".
      norm_momentum: share of the running statistics kept at each step.
      dtype: compute dtype; parameters are float32.
      formulation: see `ops.Formulation`.
    """

    upsampling: Literal["nearest", "bilinear"] = "nearest"
    norm: NormPlacement = "block"
    norm_momentum: float = 0.99
    dtype: jnp.dtype = jnp.float32
    formulation: ops.Formulation = "auto"

    @nn.compact
    def __call__(self, skip: jax.Array, gating: jax.Array, *, train: bool) -> jax.Array:
        """Weighs the skip by where the gating signal finds it relevant.

        The attention map [B, H, W, 1] in [0, 1] is kept for pictures: `apply(..., mutable="intermediates")` returns it
        under "attention".

        Args:
          skip: x [B, H, W, F].
          gating: g [B, H / 2, W / 2, G].
          train: as in `UNet.__call__`.

        Returns:
          [B, H, W, F].

        Raises:
          InputError: for a gating signal of another size.
        """
        batch, height, width, features = skip.shape
        if gating.shape[:-1] != (batch, height // 2, width // 2):
            raise InputError(
                f"a skip connection of shape {skip.shape} is gated by a signal of half its height and width; "
                f"this one has shape {gating.shape}"
            )
        conv = partial(
            nn.Conv,
            kernel_size=(1, 1),
            dtype=self.dtype,
            promote_dtype=partial(promote_dtype, formulation=self.formulation),
        )
        theta = conv(
            features,
            strides=(2, 2),
            conv_general_dilated=lambda x, kernel, *_, **__: ops.conv1x1_stride2(x, kernel, self.formulation),
            name="skip",
        )(skip)
        phi = conv(features, name="gating")(gating)
        theta, phi = checkpoint_name((theta, phi), "convolution")
        psi = checkpoint_name(conv(1, name="attention_logit")(nn.relu(theta + phi)), "convolution")
        attention = ops.upsample2x(nn.sigmoid(psi), self.upsampling, self.formulation)
        self.sow("intermediates", "attention", attention)
        gated = attention * skip
        if self.norm == "none":
            return gated
        return batch_norm(self.norm_momentum, self.dtype, train=train)(gated)


class AttentionUNet(UNet):
    """U-Net whose skip connections pass an `AttentionGate`; the defaults have 32 086 917 trainable parameters.

    Attributes:
      gate_upsampling: see `AttentionGate`.
    """

    gate_upsampling: Literal["nearest", "bilinear"] = "nearest"

    def filter_skip(self, skip: jax.Array, gating: jax.Array, *, level: int, train: bool) -> jax.Array:
        """The gated skip, see `UNet.filter_skip`."""
        gate = AttentionGate(
            self.gate_upsampling, self.norm, self.norm_momentum, self.dtype, self.formulation, name=f"gate_{level}"
        )
        return gate(skip, gating, train=train)
