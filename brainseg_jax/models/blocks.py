"""Layers of U-Net and Attention U-Net."""

from functools import partial
from typing import Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from brainseg_jax import ops

NormPlacement = Literal["block", "conv", "none"]
KERNEL_INIT = nn.initializers.he_normal()  # Ronneberger et al. 2015, section 3: std sqrt(2 / fan-in)


def batch_norm(momentum: float, dtype: jnp.dtype, *, train: bool) -> nn.BatchNorm:
    """Batch normalization over the global batch, rows and columns, with the epsilon of Keras; statistics in float32.

    Args:
      momentum: Decay of the running statistics.
      dtype: Dtype of the output.
      train: Normalize with the statistics of the batch, and update the running statistics.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=momentum, epsilon=1e-3, dtype=dtype)


def promote_and_order(
    x: jax.Array, *parameters: jax.Array | None, dtype: jnp.dtype, formulation: ops.Formulation
) -> list[jax.Array | None]:
    """Casts the arrays of a layer to its dtype. On CPU it also orders the backward pass, to save memory.

    By default XLA on CPU computes all parameter gradients at the end of the backward pass. Until then it keeps the
    input of each layer and the cotangent of its output. To make XLA compute these gradients first, the cotangent of `x`
    gets a data dependency on them: zero times one element of each gradient. XLA cannot drop this term, because zero
    times a non-finite number is not zero. An optimization barrier does not work here: XLA removes it on CPU.

    With several devices XLA then sums the gradients of each layer as soon as they are known. Forward-mode
    differentiation is not supported. With the "lax" formulation XLA chooses the order.

    Args:
      x: [B, H, W, C].
      parameters: Parameters of the layer; None for a missing bias.
      dtype: Dtype of the results.
      formulation: See `ops.Formulation`.

    Returns:
      x and the parameters.
    """
    arrays = nn.dtypes.promote_dtype(x, *parameters, dtype=dtype)
    return arrays if ops.is_lax(formulation) else _parameters_first(*arrays)


@jax.custom_vjp
def _parameters_first(*arrays: jax.Array | None) -> list[jax.Array | None]:
    return list(arrays)


def _parameters_first_backward(_: None, cotangents: list[jax.Array | None]) -> tuple[jax.Array | None, ...]:
    x_cotangent, *gradients = cotangents
    zero = sum(0 * gradient.ravel()[0] for gradient in jax.tree.leaves(gradients))
    return x_cotangent + zero, *gradients


_parameters_first.defvjp(lambda *arrays: (list(arrays), None), _parameters_first_backward)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with ReLU: one level of the encoder or the decoder.

    Attributes:
      features: Number of output channels.
      norm: "block": conv - ReLU - conv - norm - ReLU, with biases (the Keras project); "conv": (conv - norm - ReLU)
        twice, without biases (Buda et al.); "none": (conv - ReLU) twice (Ronneberger et al.).
      momentum: Decay of the running statistics of batch normalization.
      dtype: Compute dtype; parameters are float32.
      formulation: See `ops.Formulation`.
    """

    features: int
    norm: NormPlacement = "block"
    momentum: float = 0.99
    dtype: jnp.dtype = jnp.float32
    formulation: ops.Formulation = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features]."""
        for is_last in (False, True):
            x = nn.Conv(
                self.features,
                (3, 3),
                use_bias=self.norm != "conv",
                kernel_init=KERNEL_INIT,
                dtype=self.dtype,
                conv_general_dilated=lambda x, kernel, *_, **__: ops.conv3x3(x, kernel, self.formulation),
                promote_dtype=partial(promote_and_order, formulation=self.formulation),
            )(x)
            x = checkpoint_name(x, "convolution")
            if self.norm == "conv" or (self.norm == "block" and is_last):
                x = batch_norm(self.momentum, self.dtype, train=train)(x)
            x = nn.relu(x)
        return x


class UpConv(nn.Module):
    """2x2 transposed convolution of stride 2 with bias; same parameters as `flax.linen.ConvTranspose`.

    Attributes:
      features: Number of output channels.
      dtype: Compute dtype; parameters are float32.
      formulation: See `ops.Formulation`.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    formulation: ops.Formulation = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, 2H, 2W, features]."""
        kernel = self.param("kernel", KERNEL_INIT, (2, 2, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        promoted = promote_and_order(x, kernel, bias, dtype=self.dtype, formulation=self.formulation)
        x, kernel, bias = cast(list[jax.Array], promoted)
        x = ops.conv_transpose2x2(x, kernel, self.formulation) + bias[None, None, None, :]
        return checkpoint_name(x, "convolution")
