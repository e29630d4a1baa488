"""Simulates scans unlike the training scans, which `TrainingScans` is to flag, and tilted scans, which it is not."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from brainseg_jax.inference.head import Head

# Depths below the surface of the head, as fractions of its radius.
_STRIPPED = (0.08, 0.12, 0.2)  # down to the skull, to the brain, into the brain
_SKULL = (0.06, 0.15)


def stripped(head: Head) -> list[np.ndarray]:
    """Without scalp and skull, cut at several depths; [S, H, W] float32 each."""
    return [head.voxels * (head.depth > depth * head.radius) for depth in _STRIPPED]


def fluid_bright(head: Head) -> list[np.ndarray]:
    """Bright fluid as in T2-weighted scans: brain voxels below the head's median become brighter, the darkest most."""
    brain = head.depth > _SKULL[1] * head.radius
    return [np.where(brain, head.voxels + 2.6 * (1.0 - head.voxels).clip(0), head.voxels)]


def inverted(head: Head) -> list[np.ndarray]:
    """The head with inverted contrast; air stays dark."""
    bright = np.percentile(head.voxels[head.inside], 99.5)
    return [np.where(head.inside, (bright - head.voxels).clip(0), 0.0)]


def like_ct(head: Head) -> list[np.ndarray]:
    """Bright skull and flat brain, in a soft-tissue window and in a full window."""
    skull = (head.depth > _SKULL[0] * head.radius) & (head.depth <= _SKULL[1] * head.radius)
    fluid = (head.depth > _SKULL[1] * head.radius) & (head.voxels < 0.6)
    scans = []
    for scalp, bone, water in ((0.4, 3.0, 0.6), (0.95, 1.8, 0.98)):
        values = np.where(head.inside, np.where(head.depth <= _SKULL[0] * head.radius, scalp, 1.0), 0.0)
        values[skull], values[fluid] = bone, water
        scans.append(values)
    return scans


# What such a scan looks like: the function that simulates it from a training scan.
KINDS: dict[str, Callable[[Head], list[np.ndarray]]] = {
    "a skull-stripped scan": stripped,
    "a scan with bright fluid, as T2": fluid_bright,
    "CT": like_ct,
    "a scan of inverted contrast": inverted,
}


def tilts(head: Head) -> list[np.ndarray]:
    """The head tilted by 8 degrees to either side. Scans like these must not be flagged."""
    return [ndimage.rotate(head.voxels, angle, axes=(2, 1), reshape=False, order=1) for angle in (-8, 8)]
