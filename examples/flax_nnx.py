"""The network of this package as a flax.nnx module, without brainseg_jax.

    python examples/flax_nnx.py brainseg_jax/pretrained/lgg

It is a U-Net with norm "conv": (convolution, batch norm, ReLU) twice at each level.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from safetensors.numpy import load_file


class Block(nnx.Module):
    """(Convolution, batch norm, ReLU) twice."""

    def __init__(self, inputs: int, features: int, *, rngs: nnx.Rngs) -> None:
        """Creates the layers, with the names in the file."""
        self.Conv_0 = nnx.Conv(inputs, features, (3, 3), use_bias=False, rngs=rngs)
        self.Conv_1 = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.BatchNorm_0 = nnx.BatchNorm(features, epsilon=1e-3, rngs=rngs)
        self.BatchNorm_1 = nnx.BatchNorm(features, epsilon=1e-3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, inputs] to [B, H, W, features]."""
        x = nnx.relu(self.BatchNorm_0(self.Conv_0(x)))
        return nnx.relu(self.BatchNorm_1(self.Conv_1(x)))


class UNet(nnx.Module):
    """U-Net with padded convolutions."""

    def __init__(self, features: int = 16, depth: int = 4, channels: int = 3, *, rngs: nnx.Rngs) -> None:
        """Creates the layers, with the names in the file."""
        self.depth, inputs = depth, channels
        for level in range(depth):
            setattr(self, f"encoder_{level}", Block(inputs, features * 2**level, rngs=rngs))
            inputs = features * 2**level
        self.bottleneck = Block(inputs, features * 2**depth, rngs=rngs)
        for level in range(depth):
            width = features * 2**level
            setattr(self, f"up_{level}", nnx.ConvTranspose(2 * width, width, (2, 2), strides=(2, 2), rngs=rngs))
            setattr(self, f"decoder_{level}", Block(2 * width, width, rngs=rngs))
        self.head = nnx.Conv(features, 1, (1, 1), rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps normalized images [B, H, W, C] to logits [B, H, W, 1]."""
        x, skips = images, []
        for level in range(self.depth):
            x = getattr(self, f"encoder_{level}")(x)
            skips.append(x)
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = self.bottleneck(x)
        for level in reversed(range(self.depth)):
            x = getattr(self, f"up_{level}")(x)
            x = getattr(self, f"decoder_{level}")(jnp.concatenate([x, skips[level]], axis=-1))
        return self.head(x)


def load(folder: Path, **shape: int) -> UNet:
    """Returns the network with the arrays of a stored network, in evaluation mode; `shape` are arguments of `UNet`."""
    network = UNet(**shape, rngs=nnx.Rngs(0))
    for name, array in load_file(Path(folder) / "network.safetensors").items():
        _, *modules, variable = name.split("/")  # params or batch_stats, then the path to the variable
        module = network
        for child in modules:
            module = getattr(module, child)
        getattr(module, variable)[...] = jnp.asarray(array, jnp.float32)
    network.eval()
    return network


if __name__ == "__main__":
    logits = nnx.jit(load(Path(sys.argv[1])))(jnp.zeros((1, 192, 192, 3)))
    print(
        f"logits {logits.shape}, probability of tumor in black images at most {float(jax.nn.sigmoid(logits).max()):.1e}"
    )
