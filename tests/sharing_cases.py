"""Small networks of every kind, as `load_trained` returns them, and scans, for the tests of export and sharing."""

import jax
import jax.numpy as jnp
import numpy as np
from test_models import random_variables

from brainseg_jax.data.canvas import with_neighbors
from brainseg_jax.data.normalization import fit, normalize
from brainseg_jax.inference.network import Network
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.models import build_model
from brainseg_jax.scans.description import LGG, Description, Target

KINDS = [  # (network, norm, gate up-sampling)
    ("unet", "block", "nearest"),
    ("unet", "conv", "nearest"),
    ("unet", "none", "nearest"),
    ("attention_unet", "block", "nearest"),
    ("attention_unet", "conv", "bilinear"),
    ("attention_unet", "none", "bilinear"),
]
SEQUENCES = ("t1n", "t1c", "t2w", "t2f")
NESTED = Description(
    SEQUENCES,
    (Target("whole tumor", (1, 2, 3)), Target("tumor core", (1, 3)), Target("enhancing tumor", (3,))),
    painted=(2, 1, 3),
)
EXCLUSIVE = Description(SEQUENCES, (Target("edema", (2,)), Target("necrosis", (1,)), Target("enhancing", (4,))))
POSTS = (PostProcess(0.4), PostProcess(0.5), PostProcess(0.6))


def small_network(
    kind=KINDS[0], *, normalization="rescale", side=32, mirror=False, description=LGG, pixel_spacing=0.0, context=0
):
    name, norm, upsampling = kind
    targets = len(description.targets)
    model = build_model(name, features=2, depth=2, norm=norm, gate_upsampling=upsampling, targets=targets)
    channels = (2 * context + 1) * len(description.channels)
    variables = random_variables(model, 0, jnp.zeros((1, side, side, channels)))
    # Spread over (0, 1), not close to one half as with random weights.
    variables["params"]["head"] = jax.tree.map(lambda x: 4 * x, variables["params"]["head"])
    if targets > 1:  # so that each target, and none, is found in many pixels
        scan = next(scans(side, len(description.channels)))[1]
        images = jax.vmap(normalize, in_axes=(0, None))(scan, fit(scan, normalization))
        logits = model.apply(variables, with_neighbors(np.asarray(images), context), train=False)
        variables["params"]["head"]["bias"] -= np.percentile(logits, 70, axis=(0, 1, 2)).astype(np.float32)
    return Network(
        model=model,
        variables=variables,
        description=description,
        image_size=side,
        pixel_spacing=pixel_spacing,
        view="axial",
        context=context,
        normalization=normalization,
        mirror=mirror,
    )


def posts_for(network):
    """Post-processing of the targets, each with another threshold."""
    return POSTS[: len(network.description.targets)]


def scans(size=64, channels=3):
    rng = np.random.default_rng(0)
    soft = rng.gamma(2.0, 25.0, (5, 8, 8, channels)).repeat(size // 8, 1).repeat(size // 8, 2) + rng.normal(
        0, 9, (5, size, size, channels)
    )
    yield "random", soft.clip(0, 255).round().astype(np.uint8)
    yield "one slice", soft[:1].clip(0, 255).round().astype(np.uint8)
    yield "black", np.zeros((2, size, size, channels), np.uint8)
    flat = np.full((2, size, size, channels), 7, np.uint8)
    flat[..., 1] = soft[:2, ..., 1].clip(0, 255)
    yield "one channel alone varies", flat
    mostly_air = np.zeros((3, size, size, channels), np.uint8)
    mostly_air[1, :8, :8] = soft[0, :8, :8].clip(1, 255)
    yield "mostly air", mostly_air
