"""What U-Net and Attention U-Net are built from."""

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
      momentum: share of the running statistics kept at each step.
      dtype: of the output.
      train: normalize with the batch's statistics and update the running ones.

    Returns:
      the module, a child of the one whose `__call__` makes it.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=momentum, epsilon=1e-3, dtype=dtype)


def promote_dtype(
    x: jax.Array, *parameters: jax.Array | None, dtype: jnp.dtype, formulation: ops.Formulation
) -> list[jax.Array | None]:
    """What a layer computes with, in its dtype; in the backward pass the parameters' gradients are found first.

    Nothing in a backward pass waits for the gradient of a parameter. XLA on a CPU leaves these to the end, and till
    then keeps what they are made of: the input of each layer and the cotangent of its output. So the cotangent of x is
    made to wait, by a term of zero times a number of each gradient, which XLA has to compute for what it makes of a
    number that is not finite (barriers it drops). Over several devices gradients are then exchanged layer by layer, and
    not all at once. No forward-mode derivative passes. Of XLA's own operators the order is left to XLA.

    Args:
      x: [B, H, W, C].
      parameters: of the layer; None for one that it does without.
      dtype: of the result.
      formulation: see `ops.Formulation`.

    Returns:
      x and parameters.
    """
    arrays = nn.dtypes.promote_dtype(x, *parameters, dtype=dtype)
    return arrays if ops.is_lax(formulation) else _parameters_first(*arrays)


@jax.custom_vjp
def _parameters_first(*arrays: jax.Array | None) -> list[jax.Array | None]:
    return list(arrays)


def _parameters_first_backward(_: None, cotangents: list[jax.Array | None]) -> tuple[jax.Array | None, ...]:
    of_x, *of_parameters = cotangents
    zero = sum(0 * gradient.ravel()[0] for gradient in jax.tree.leaves(of_parameters))
    return of_x + zero, *of_parameters


_parameters_first.defvjp(lambda *arrays: (list(arrays), None), _parameters_first_backward)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with ReLU: what stands at each level of either network.

    Attributes:
      features: channels of the output.
      norm: "block": conv - ReLU - conv - norm - ReLU, with biases (the Keras project); "conv": (conv - norm - ReLU)
        twice, without biases (Buda et al.); "none": (conv - ReLU) twice (Ronneberger et al.).
      momentum: of the batch normalization.
      dtype: compute dtype; parameters are float32.
      formulation: see `ops.Formulation`.
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
                promote_dtype=partial(promote_dtype, formulation=self.formulation),
            )(x)
            x = checkpoint_name(x, "convolution")
            if self.norm == "conv" or (self.norm == "block" and is_last):
                x = batch_norm(self.momentum, self.dtype, train=train)(x)
            x = nn.relu(x)
        return x


class UpConv(nn.Module):
    """2x2 transposed convolution of stride 2 with bias; parameters as `flax.linen.ConvTranspose`.

    Attributes:
      features: channels of the output.
      dtype: compute dtype; parameters are float32.
      formulation: see `ops.Formulation`.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    formulation: ops.Formulation = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, 2H, 2W, features]."""
        kernel = self.param("kernel", KERNEL_INIT, (2, 2, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        promoted = promote_dtype(x, kernel, bias, dtype=self.dtype, formulation=self.formulation)
        x, kernel, bias = cast(list[jax.Array], promoted)
        x = ops.conv_transpose2x2(x, kernel, self.formulation) + bias[None, None, None, :]
        return checkpoint_name(x, "convolution")
