"""U-Net (Ronneberger, Fischer and Brox 2015, MICCAI, figure 1), with padded convolutions and batch normalization."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from brainseg_jax import ops
from brainseg_jax.errors import InputError
from brainseg_jax.models.blocks import ConvBlock, NormPlacement, UpConv

Precision = Literal["default", "highest"]


class UNet(nn.Module):
    """Encoder and decoder joined by skip connections at each of `depth` resolutions.

    The defaults are the reproduced Keras network, with 31 037 633 trainable parameters. `features=32, norm="conv"` is
    the network of Buda et al. 2019, with 7 763 041.

    Attributes:
      features: Channels of the first level; they double at each level down.
      depth: Number of 2x2 poolings.
      targets: K, number of outputs. Each output is a separate binary problem.
      norm: Position of batch normalization, see `ConvBlock`.
      norm_momentum: Decay of the running statistics.
      dtype: Compute dtype, e.g. bfloat16; parameters and logits are float32.
      precision: Precision of float32 products and their gradients. "default": the device chooses; a GPU rounds both
        factors to TF32, with 10 bits of mantissa. "highest": all 23 bits. A CPU always uses all 23 bits.
      deep_supervision: Adds a 1x1 head at each decoder level except the finest, for training only (Lee et al. 2015,
        "Deeply-Supervised Nets"). The collection "side_logits" holds its logits.
      formulation: Formulation of the operators, see `ops.Formulation`. It does not change parameters or values.
    """

    features: int = 64
    depth: int = 4
    targets: int = 1
    norm: NormPlacement = "block"
    norm_momentum: float = 0.99
    dtype: jnp.dtype = jnp.float32
    precision: Precision = "default"
    deep_supervision: bool = False
    formulation: ops.Formulation = "auto"

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits.

        Args:
          images: [B, H, W, C], normalized; H and W divisible by 2 ** depth.
          train: Normalize with the statistics of the batch, and update the collection "batch_stats".

        Returns:
          [B, H, W, K] float32 logits of the targets.

        Raises:
          InputError: 2 ** depth does not divide H or W, or the images do not have four axes.
        """
        if images.ndim != 4:
            raise InputError(
                f"images must be [B, H, W, C], not of shape {images.shape}; for one image pass image[None]"
            )
        _, height, width, _ = images.shape
        multiple = 2**self.depth
        if height % multiple or width % multiple:
            raise InputError(
                f"images of {height}x{width} do not fit a network of depth {self.depth}: height and width must be "
                f"multiples of {multiple}. Set data.image_size to a multiple, or reduce model.depth"
            )
        network = UNet._network
        if train and not ops.is_lax(self.formulation):
            # The backward pass keeps the convolutions only; the operations between them are cheap to recompute.
            policy = jax.checkpoint_policies.save_only_these_names("convolution")
            network = nn.remat(network, policy=policy, static_argnums=2)
        with jax.default_matmul_precision(self.precision):
            return network(self, images, train)

    @nn.compact
    def _network(self, images: jax.Array, train: bool) -> jax.Array:
        def block(features: int, name: str) -> ConvBlock:
            return ConvBlock(features, self.norm, self.norm_momentum, self.dtype, self.formulation, name=name)

        x, skips = images.astype(self.dtype), []
        logits_dtype = np.promote_types(self.dtype, np.float32)
        for level in range(self.depth):
            x = block(self.features * 2**level, f"encoder_{level}")(x, train=train)
            skips.append(x)
            x = ops.max_pool2x2(x, self.formulation)
        x = block(self.features * 2**self.depth, "bottleneck")(x, train=train)
        for level in reversed(range(self.depth)):
            skip = self.filter_skip(skips[level], x, level=level, train=train)
            x = UpConv(self.features * 2**level, self.dtype, self.formulation, name=f"up_{level}")(x)
            x = block(self.features * 2**level, f"decoder_{level}")(jnp.concatenate([x, skip], axis=-1), train=train)
            if self.deep_supervision and level and (train or self.is_initializing()):
                side = nn.Conv(self.targets, (1, 1), dtype=logits_dtype, name=f"side_head_{level}")(x)
                self.sow("side_logits", f"level_{level}", side)
        return nn.Conv(self.targets, (1, 1), dtype=logits_dtype, name="head")(x)

    def filter_skip(self, skip: jax.Array, gating: jax.Array, *, level: int, train: bool) -> jax.Array:
        """Filters a skip connection before the decoder uses it. This network returns it unchanged.

        Args:
          skip: [B, H, W, F], from the encoder.
          gating: [B, H / 2, W / 2, 2F], the features of the decoder one level below.
          level: 0 is the finest.
          train: As in `__call__`.

        Returns:
          [B, H, W, F].
        """
        del gating, level, train
        return skip
