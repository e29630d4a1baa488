"""What U-Net and Attention U-Net are built from."""

from collections.abc import Callable
from typing import Literal

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


def convolve(layer: nn.Module, x: jax.Array, formulation: ops.Formulation) -> jax.Array:
    """`layer(x)`, named "convolution"; its backward pass finds the gradients of the layer's parameters first.

    Nothing in a backward pass waits for the gradient of a parameter. XLA on a CPU leaves these to the end, and till
    then keeps what they are made of: the input of each layer and the cotangent of its output. So the cotangent of x is
    made to wait, by a term of zero times a number of each gradient, which XLA has to compute for what it makes of a
    number that is not finite (barriers it drops). Over several devices gradients are then exchanged layer by layer, and
    not all at once. No forward-mode derivative passes. For XLA's own operators this is `layer(x)` alone.

    Args:
      layer: a convolution with its parameters, called by x alone.
      x: [B, H, W, C].
      formulation: see `ops.Formulation`.

    Returns:
      what the layer makes of x. `jax.checkpoint_policies.save_only_these_names("convolution")` keeps it.
    """
    if ops.is_lax(formulation):
        return layer(x)

    def call(layer: nn.Module, x: jax.Array) -> jax.Array:
        return layer(x)

    def backward(vjp: Callable, cotangent: jax.Array) -> tuple[dict, jax.Array]:
        of_parameters, of_x = vjp(cotangent)
        zero = sum(0 * gradient.ravel()[0] for gradient in jax.tree.leaves(of_parameters))
        return of_parameters, of_x + zero.astype(of_x.dtype)

    y = nn.custom_vjp(call, lambda layer, x: nn.vjp(call, layer, x), backward)(layer, x)
    return checkpoint_name(y, "convolution")


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
            conv = nn.Conv(
                self.features,
                (3, 3),
                use_bias=self.norm != "conv",
                kernel_init=KERNEL_INIT,
                dtype=self.dtype,
                conv_general_dilated=lambda x, kernel, *_, **__: ops.conv3x3(x, kernel, self.formulation),
            )
            x = convolve(conv, x, self.formulation)
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
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return ops.conv_transpose2x2(x, kernel, self.formulation) + bias[None, None, None, :]
