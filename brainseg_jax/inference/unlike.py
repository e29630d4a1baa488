"""Training scans made unlike on purpose, from which `TrainingScans` learns what to flag."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from brainseg_jax.inference.head import Head

# Depths below the surface of the head, as shares of its radius.
_STRIPPED = (0.08, 0.12, 0.2)  # down to the skull, the brain, a part of the brain
_SKULL = (0.06, 0.15)


def stripped(head: Head) -> list[np.ndarray]:
    """Without scalp and skull, [S, H, W] float32 each, cut at several depths."""
    return [head.voxels * (head.depth > share * head.radius) for share in _STRIPPED]


def fluid_bright(head: Head) -> list[np.ndarray]:
    """As in T2-weighted scans: the darker than the head's median a voxel of the brain is, the brighter it becomes."""
    brain = head.depth > _SKULL[1] * head.radius
    return [np.where(brain, head.voxels + 2.6 * (1.0 - head.voxels).clip(0), head.voxels)]


def inverted(head: Head) -> list[np.ndarray]:
    """The head with bright and dark exchanged; air stays dark."""
    white = np.percentile(head.voxels[head.inside], 99.5)
    return [np.where(head.inside, (white - head.voxels).clip(0), 0.0)]


def like_ct(head: Head) -> list[np.ndarray]:
    """Bright skull and flat brain, in a window for soft tissue and in one for all."""
    skull = (head.depth > _SKULL[0] * head.radius) & (head.depth <= _SKULL[1] * head.radius)
    fluid = (head.depth > _SKULL[1] * head.radius) & (head.voxels < 0.6)
    scans = []
    for scalp, bone, water in ((0.4, 3.0, 0.6), (0.95, 1.8, 0.98)):
        values = np.where(head.inside, np.where(head.depth <= _SKULL[0] * head.radius, scalp, 1.0), 0.0)
        values[skull], values[fluid] = bone, water
        scans.append(values)
    return scans


# Name of what such a scan looks like: how a training scan is made so.
KINDS: dict[str, Callable[[Head], list[np.ndarray]]] = {
    "a skull-stripped scan": stripped,
    "a scan with bright fluid, as T2": fluid_bright,
    "CT": like_ct,
    "a scan of inverted contrast": inverted,
}


def tilts(head: Head) -> list[np.ndarray]:
    """The head tilted by 8 degrees to either side, which must not matter."""
    return [ndimage.rotate(head.voxels, angle, axes=(2, 1), reshape=False, order=1) for angle in (-8, 8)]
