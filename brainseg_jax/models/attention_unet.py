"""Attention U-Net (Oktay et al. 2018, "Attention U-Net: Learning Where to Look for the Pancreas", figures 1 and 2)."""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from brainseg_jax import ops
from brainseg_jax.errors import InputError
from brainseg_jax.models.blocks import NormPlacement, batch_norm, promote_and_order
from brainseg_jax.models.unet import UNet


class AttentionGate(nn.Module):
    """Additive attention gate: α = sigmoid(ψ(ReLU(W_x x + W_g g))), output norm(α x). Oktay et al. 2018, eqs. 1 and 2.

    Attributes:
      upsampling: Resampling of α from the resolution of the gating signal to that of the skip: "nearest" (the
        reproduced Keras network) or "bilinear" (the paper).
      norm: "none": no batch normalization of the gated skip.
      norm_momentum: Decay of the running statistics.
      dtype: Compute dtype; parameters are float32.
      formulation: See `ops.Formulation`.
    """

    upsampling: Literal["nearest", "bilinear"] = "nearest"
    norm: NormPlacement = "block"
    norm_momentum: float = 0.99
    dtype: jnp.dtype = jnp.float32
    formulation: ops.Formulation = "auto"

    @nn.compact
    def __call__(self, skip: jax.Array, gating: jax.Array, *, train: bool) -> jax.Array:
        """Multiplies the skip by an attention map computed from the skip and the gating signal.

        `apply(..., mutable="intermediates")` returns the attention map [B, H, W, 1] in [0, 1] as "attention".

        Args:
          skip: x [B, H, W, F].
          gating: g [B, H / 2, W / 2, G].
          train: As in `UNet.__call__`.

        Returns:
          [B, H, W, F].

        Raises:
          InputError: The gating signal has another size.
        """
        batch, height, width, features = skip.shape
        if gating.shape[:-1] != (batch, height // 2, width // 2):
            raise InputError(
                f"the gating signal must have half the height and width of the skip connection {skip.shape}, "
                f"but its shape is {gating.shape}"
            )
        conv = partial(
            nn.Conv,
            kernel_size=(1, 1),
            dtype=self.dtype,
            promote_dtype=partial(promote_and_order, formulation=self.formulation),
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
    """U-Net with an `AttentionGate` on each skip connection; 32 086 917 trainable parameters by default.

    Attributes:
      gate_upsampling: See `AttentionGate`.
    """

    gate_upsampling: Literal["nearest", "bilinear"] = "nearest"

    def filter_skip(self, skip: jax.Array, gating: jax.Array, *, level: int, train: bool) -> jax.Array:
        """Returns the gated skip, see `UNet.filter_skip`."""
        gate = AttentionGate(
            self.gate_upsampling, self.norm, self.norm_momentum, self.dtype, self.formulation, name=f"gate_{level}"
        )
        return gate(skip, gating, train=train)
