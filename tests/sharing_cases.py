"""Small networks of every kind as `load_trained` gives them, and scans, for the tests of what is shared."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from test_models import random_variables

from brainseg_jax.evaluation.postprocess import PostProcess
from brainseg_jax.models import build_model

KINDS = [  # (network, norm, gate up-sampling)
    ("unet", "block", "nearest"),
    ("unet", "conv", "nearest"),
    ("unet", "none", "nearest"),
    ("attention_unet", "block", "nearest"),
    ("attention_unet", "conv", "bilinear"),
    ("attention_unet", "none", "bilinear"),
]


def small_trained(kind=KINDS[0], *, normalization="rescale", side=32, mirror=False):
    name, norm, upsampling = kind
    model = build_model(name, features=2, depth=2, norm=norm, gate_upsampling=upsampling)
    variables = random_variables(model, 0, jnp.zeros((1, side, side, 3)))
    # All over (0, 1), not next to one half: random weights say little.
    variables["params"]["head"] = jax.tree.map(lambda x: 4 * x, variables["params"]["head"])
    return SimpleNamespace(
        model=model,
        variables=variables,
        image_size=side,
        normalization=normalization,
        mirror=mirror,
        postprocess=PostProcess(0.4),
    )


def scans(size=64):
    rng = np.random.default_rng(0)
    soft = rng.gamma(2.0, 25.0, (5, 8, 8, 3)).repeat(size // 8, 1).repeat(size // 8, 2) + rng.normal(
        0, 9, (5, size, size, 3)
    )
    yield "random", soft.clip(0, 255).round().astype(np.uint8)
    yield "one slice", soft[:1].clip(0, 255).round().astype(np.uint8)
    yield "black", np.zeros((2, size, size, 3), np.uint8)
    flat = np.full((2, size, size, 3), 7, np.uint8)
    flat[..., 1] = soft[:2, ..., 1].clip(0, 255)
    yield "one channel alone varies", flat
    mostly_air = np.zeros((3, size, size, 3), np.uint8)
    mostly_air[1, :8, :8] = soft[0, :8, :8].clip(1, 255)
    yield "mostly air", mostly_air
