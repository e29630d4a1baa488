"""The network of this package in plain JAX. It needs only jax, numpy and safetensors, neither Flax nor brainseg_jax.

    python examples/plain_jax.py brainseg_jax/pretrained/lgg

It is a U-Net with norm "conv": (convolution, batch norm, ReLU) twice at each level.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax
from safetensors.numpy import load_file

LAYOUT = ("NHWC", "HWIO", "NHWC")
EPSILON = 1e-3  # of batch norm


def load(folder: Path) -> dict[str, jax.Array]:
    """Returns all arrays by name, float32."""
    arrays = load_file(Path(folder) / "network.safetensors")
    return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}


def unet(arrays: dict[str, jax.Array], images: jax.Array, *, depth: int = 4) -> jax.Array:
    """Maps normalized images [B, H, W, C] to logits [B, H, W, 1]; H and W are multiples of 2 ** depth."""
    x, skips = images, []
    for level in range(depth):
        x = block(arrays, f"encoder_{level}", x)
        skips.append(x)
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = block(arrays, "bottleneck", x)
    for level in reversed(range(depth)):
        kernel, bias = (arrays[f"params/up_{level}/{variable}"] for variable in ("kernel", "bias"))
        x = lax.conv_transpose(x, kernel, (2, 2), "SAME") + bias[None, None, None]
        x = block(arrays, f"decoder_{level}", jnp.concatenate([x, skips[level]], axis=-1))
    return convolve(x, arrays["params/head/kernel"]) + arrays["params/head/bias"][None, None, None]


def block(arrays: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    """(Convolution, batch norm with the running statistics, ReLU) twice."""
    for i in (0, 1):
        norm = f"{name}/BatchNorm_{i}"
        scale, bias = arrays[f"params/{norm}/scale"], arrays[f"params/{norm}/bias"]
        mean, var = arrays[f"batch_stats/{norm}/mean"], arrays[f"batch_stats/{norm}/var"]
        factor = scale * lax.rsqrt(var + EPSILON)
        x = convolve(x, arrays[f"params/{name}/Conv_{i}/kernel"])
        x = jax.nn.relu(x * factor[None, None, None] + (bias - mean * factor)[None, None, None])
    return x


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves; the result has the same height and width."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)


if __name__ == "__main__":
    logits = jax.jit(unet)(load(Path(sys.argv[1])), jnp.zeros((1, 192, 192, 3)))
    print(
        f"logits {logits.shape}, probability of tumor in black images at most {float(jax.nn.sigmoid(logits).max()):.1e}"
    )
