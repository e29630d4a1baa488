"""The anatomy of the synthetic patients: a head with its tissues, and a tumor, on any grid.

Volumes are computed in head coordinates, in which the head is roughly the unit ball: u (left to right), v (front to
back) and w (foot to crown). Except for numpy's random generator, only exactly rounded operations (+ - * / sqrt) touch
the voxels. So every machine with the same numpy version draws the same bytes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

AIR, SCALP, BONE, FLUID, GRAY, WHITE, MUSCLE, VESSEL = range(8)


class Head(NamedTuple):
    """Head coordinates of every voxel, each float32 [S, H, W]."""

    u: np.ndarray
    v: np.ndarray
    w: np.ndarray
    radius: np.ndarray  # distance from the center of the head; 1 is the skin


def smooth_noise(rng: np.random.Generator, cells: tuple[int, int, int], shape: tuple[int, int, int]) -> np.ndarray:
    """Smooth random field in -1..1, float32 [S, H, W]: random values on a grid of `cells`, interpolated."""
    field = rng.random([count + 1 for count in cells], np.float32) * 2 - 1
    for axis, (count, length) in enumerate(zip(cells, shape, strict=True)):
        position = (np.arange(length, dtype=np.float32) + 0.5) * (count / length)
        corner = position.astype(int)
        weight = position - np.floor(position)
        weight = (weight * weight * (3 - 2 * weight)).reshape([-1 if other == axis else 1 for other in range(3)])
        low = np.take(field, corner, axis)
        field = low + (np.take(field, corner + 1, axis) - low) * weight
    return field


def head_coordinates(rng: np.random.Generator, shape: tuple[int, int, int], scale: float) -> Head:
    """Head coordinates of a head with random size, position, rotation, tilt and an uneven outline.

    Args:
      rng: random generator.
      shape: (S, H, W).
      scale: size of the head; at 1 it fills a slice of 256 x 256 pixels.
    """
    slices, height, breadth = shape
    width, length = rng.uniform(78, 94) * scale, rng.uniform(98, 114) * scale  # half axes, in pixels
    sine = rng.uniform(-0.24, 0.24)
    cosine = (1 - sine * sine) ** 0.5
    rows = (np.arange(height, dtype=np.float32) - ((height - 1) / 2 + rng.uniform(-6, 6) * scale))[:, None]
    columns = (np.arange(breadth, dtype=np.float32) - ((breadth - 1) / 2 + rng.uniform(-8, 8) * scale))[None, :]
    u = (columns * cosine - rows * sine) / width
    v = (columns * sine + rows * cosine) / length
    levels = np.linspace(-1.22, 1.12, slices, dtype=np.float32) + rng.uniform(-0.04, 0.04)
    w = levels[:, None, None] + v * rng.uniform(-0.12, 0.12)
    w = np.where(w < 0, w * 0.85, w)  # the neck is wider than the crown
    u = u + smooth_noise(rng, (3, 5, 5), shape) * 0.05
    v = v + smooth_noise(rng, (3, 5, 5), shape) * 0.04
    return Head(u, v, w, np.sqrt(u * u + v * v + w * w))


def tumor_depth(rng: np.random.Generator, head: Head) -> np.ndarray:
    """Depth inside an uneven blob in one hemisphere, float32 [S, H, W]: 0 on its surface, about 1 at its center."""
    center = rng.uniform([0.3, -0.45, -0.05], [0.5, 0.45, 0.35]) * [rng.choice([-1, 1]), 1, 1]
    radii = rng.uniform(0.22, 0.46) * rng.uniform([0.8, 0.8, 1.2], [1.2, 1.2, 1.6])
    u, v, w = (
        (axis - middle) / radius for axis, middle, radius in zip(head[:3], center.tolist(), radii.tolist(), strict=True)
    )
    outline = 0.3 * smooth_noise(rng, (5, 9, 9), head.u.shape) + 0.15 * smooth_noise(rng, (8, 24, 24), head.u.shape)
    return 1 - np.sqrt(u * u + v * v + w * w) + outline


def ball(head: Head, center: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Squared distance to a center, or its mirror image in the other hemisphere, in units of `radii`."""
    u = (np.abs(head.u) - center[0]) / radii[0]
    v = (head.v - center[1]) / radii[1]
    w = (head.w - center[2]) / radii[2]
    return u * u + v * v + w * w


def tissues(rng: np.random.Generator, head: Head, tumor: np.ndarray) -> np.ndarray:
    """Tissue of each voxel, uint8 [S, H, W], drawn from the skin inward. `tumor` (bool) closes the sulci inside it."""
    side, radius = np.abs(head.u), head.radius
    folds = smooth_noise(rng, (9, 22, 22), head.u.shape)
    thickness = rng.uniform(0.9, 1.15)
    tissue = np.zeros(radius.shape, np.uint8)
    tissue[radius < 1] = SCALP
    tissue[radius < 1 - 0.055 * thickness] = BONE
    brain = radius < 1 - 0.11 * thickness
    tissue[brain] = FLUID
    tissue[brain & (radius + 0.06 * folds < 0.855)] = GRAY
    tissue[brain & (radius - 0.2 * folds < 0.68)] = WHITE
    tissue[brain & (radius > 0.64) & (np.abs(folds) < 0.07) & ~tumor] = (
        FLUID  # sulci follow the zero lines of the folds
    )
    tissue[brain & (ball(head, (0.27, 0.02, 0.05), (0.09, 0.2, 0.22)) < 1)] = GRAY
    tissue[brain & (side < 0.016) & ((np.abs(head.v) > 0.45) | (head.w > 0.45)) & ~tumor] = FLUID
    horns = rng.uniform(0.055, 0.08) + 0.55 * head.v * head.v  # the two ventricles diverge at front and back
    size = rng.uniform(0.8, 1.25)
    across, along, up = (side - horns) / (0.055 * size), head.v / 0.38, (head.w - 0.16) / (0.28 * size)
    tissue[across * across + along * along + up * up < 1] = FLUID
    tissue[ball(head, (0, 0.87, 0.1), (0.035, 0.035, 0.6)) < 1] = VESSEL
    face = (radius < 0.94) & (head.w < -0.32 - 0.3 * head.v)  # its upper surface slopes down to the back
    tissue[face] = MUSCLE
    tissue[face & (folds > 0.3)] = SCALP
    tissue[face & (folds < -0.3)] = BONE
    tissue[ball(head, (0.36, -0.66, -0.2), (0.17, 0.15, 0.14)) < 1] = FLUID  # eyes
    return tissue


def soften(brightness: np.ndarray) -> np.ndarray:
    """Blurs the edges over about two pixels, as a scanner does. In place, [C, S, H, W]; borders do not change."""
    inner = brightness[:, :, 1:-1]
    brightness[:, :, 1:-1] = inner + 0.25 * (brightness[:, :, :-2] - 2 * inner + brightness[:, :, 2:])
    inner = brightness[:, :, :, 1:-1]
    brightness[:, :, :, 1:-1] = inner + 0.25 * (brightness[..., :-2] - 2 * inner + brightness[..., 2:])
    return brightness
