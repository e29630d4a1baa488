"""From probabilities to the final masks, on whole volumes on the host."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy  # loads its submodules on first use

from brainseg_jax.data.canvas import Canvas
from brainseg_jax.metrics import dice
from brainseg_jax.scans.description import Description

GRID = 256  # side in pixels of the slices that `min_voxels` refers to: those of the LGG set
NEIGHBORS = np.ones((3, 3, 3), bool)  # 26 neighbors: a common corner connects voxels


class PostProcess(NamedTuple):
    """Settings that convert the probabilities of a volume to a mask.

    Attributes:
      threshold: minimum probability of the target.
      largest_component: whether to keep only the largest connected 3-D component.
      min_voxels: minimum size of a connected 3-D component; 0 and 1 keep all. It refers to slices of 256 x 256 pixels,
        see `on_grid`.
    """

    threshold: float = 0.5
    largest_component: bool = False
    min_voxels: int = 0

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """Converts probabilities [S, H, W], with the slices in order, to a mask [S, H, W] bool."""
        return self.keep_components(probability >= self.threshold)

    def on_grid(self, size: tuple[int, int]) -> "PostProcess":
        """Adapts `min_voxels` to slices of another size.

        The voxel size of the LGG set is unknown, so no minimum in mm³ is possible. Instead, the fraction of the image
        is constant, and 50 pixels of 256 x 256 become 200 of 512 x 512. The number of slices is not adapted, because
        their distance is unknown too.

        Args:
          size: height and width, in pixels, of the square image that the network gets (`Canvas.padded`).

        Returns:
          a copy with `min_voxels * size[0] * size[1] / 256²`, rounded up; unchanged for 256 x 256.
        """
        if self.min_voxels < 2:
            return self
        return self._replace(min_voxels=math.ceil(self.min_voxels * size[0] * size[1] / GRID**2))

    def keep_components(self, volume: np.ndarray) -> np.ndarray:
        """Removes components from a thresholded volume, [S, H, W] bool.

        Components connect through faces, edges or corners. A lower-grade glioma is nearly always one lesion. Buda et
        al. 2019 also keep the largest component (in the authors' code,
        github.com/mateuszbuda/brain-segmentation-pytorch). Among components of equal size, the first in memory order
        counts as the largest.
        """
        result = volume.astype(bool)
        if not self.largest_component and self.min_voxels < 2:
            return result
        box, labels, sizes = _components(result)
        if len(sizes) == 1:
            return result
        keep = sizes >= max(1, self.min_voxels)
        if self.largest_component:
            keep &= np.arange(len(sizes)) == np.argmax(sizes)
        result[box] = keep[labels]
        return result


class Component(NamedTuple):
    """A connected 3-D component of a thresholded volume.

    Attributes:
      size: in voxels.
      first: index of its first slice.
      last: index of its last slice.
    """

    size: int
    first: int
    last: int


def largest_component(volume: np.ndarray) -> Component | None:
    """Returns the largest component of a volume [S, H, W] bool; None if it is empty."""
    box, labels, sizes = _components(volume)
    if len(sizes) == 1:
        return None
    label = int(np.argmax(sizes))
    slices = np.flatnonzero((labels == label).any(axis=(1, 2))) + box[0].start
    return Component(int(sizes[label]), int(slices[0]), int(slices[-1]))


def _components(volume: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray, np.ndarray]:
    """Returns the bounding box of a mask [S, H, W] bool, the component labels in it, and their sizes; sizes[0] is 0."""
    box = _bounding_box(volume)  # labels need four times the memory of a mask
    labels, count = scipy.ndimage.label(volume[box], NEIGHBORS)
    sizes = np.zeros(count + 1, np.int64)
    for image in labels:
        sizes += np.bincount(image.ravel(), minlength=count + 1)
    sizes[0] = 0
    return box, labels, sizes


def _bounding_box(volume: np.ndarray) -> tuple[slice, ...]:
    """Returns the bounding box of a mask [S, H, W] bool; empty for an empty mask."""
    images: np.ndarray = np.any(volume, axis=0)
    lines = [np.any(volume, axis=(1, 2)), np.any(images, axis=1), np.any(images, axis=0)]
    ends = [np.flatnonzero(line)[[0, -1]] if line.any() else (0, -1) for line in lines]
    return tuple(slice(first, last + 1) for first, last in ends)


CANDIDATES = tuple(
    PostProcess(threshold, largest, min_voxels)
    for threshold, (largest, min_voxels) in itertools.product(
        (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8), ((False, 0), (False, 50), (False, 200), (True, 0))
    )
)


def make_masks(
    probability: np.ndarray, posts: Sequence[PostProcess], description: Description, canvas: Canvas
) -> np.ndarray:
    """Converts the probabilities of all targets to their masks.

    1. Each target applies its threshold. If targets exclude each other, a voxel belongs to the one with the highest
       probability among those that reach their threshold.
    2. Each target removes connected components.
    3. If the labels of a target are a subset of another target's labels, its voxels outside of the other are removed.
    4. Several targets are converted to a label map and back, unless a label map cannot represent them.

    Args:
      probability: [S, H, W, K], on the native grid of the volume.
      posts: post-processing of each target.
      description: defines whether the targets exclude each other.
      canvas: canvas of the volume; `min_voxels` depends on it, see `PostProcess.on_grid`.

    Returns:
      [S, H, W, K] bool.
    """
    masks = np.empty(probability.shape, bool)
    thresholds = np.array([post.threshold for post in posts], np.float32)
    for reached, image in zip(masks, probability, strict=True):  # slice by slice, to save memory
        np.greater_equal(image, thresholds, out=reached)
        if description.exclusive and len(posts) > 1:
            highest = np.argmax(np.where(reached, image, -1.0), axis=-1)
            reached &= np.arange(len(posts)) == highest[..., None]
    for k, post in enumerate(posts):
        masks[..., k] = post.on_grid(canvas.padded).keep_components(masks[..., k])
    # Scores use the masks that a label map can represent, so nested targets stay nested.
    use_label_map = len(posts) > 1 and not description.painted_over
    for image in masks:
        for inner, outer in description.nested:
            image[..., inner] &= image[..., outer]
        if use_label_map:
            image[...] = description.masks(description.label_map(image))
    return masks


def posts_to_json(posts: Sequence[PostProcess], description: Description) -> dict:
    """Returns the block for `results.json`: the fields of a single target, or a block per target name."""
    blocks = {name: post._asdict() for name, post in zip(description.names, posts, strict=True)}
    return blocks if len(posts) > 1 else blocks[description.names[0]]


def posts_from_json(content: dict, description: Description) -> tuple[PostProcess, ...]:
    """Inverse of `posts_to_json`."""
    if len(description.names) == 1:
        return (PostProcess(**content),)
    return tuple(PostProcess(**content[name]) for name in description.names)


class Chooser:
    """Selects the candidate with the highest mean 3-D Dice; it stores scores of patients, but no volumes."""

    def __init__(self) -> None:
        """Starts without patients."""
        self._dice: dict[str, list[list[float]]] = {}

    def add(
        self,
        probability: np.ndarray,
        truth: np.ndarray,
        canvas: Canvas,
        counted: np.ndarray | None = None,
        *,
        patient: str,
    ) -> None:
        """Scores all candidates on one volume.

        Args:
          probability: [S, H, W].
          truth: the reference mask, [S, H, W] bool.
          canvas: canvas of the volume, see `make_masks`.
          counted: voxels that count, [S, H, W] bool; None: all.
          patient: id of the patient. Each patient counts once, for any number of volumes.
        """
        counted = np.ones_like(truth) if counted is None else counted
        posts = [post.on_grid(canvas.padded) for post in CANDIDATES]
        self._dice.setdefault(patient, []).append(
            [dice(post(probability) & counted, truth & counted) for post in posts]
        )

    def best(self) -> tuple[PostProcess, float]:
        """Returns the best candidate and its mean Dice; among equals, the first (and simplest) in `CANDIDATES`."""
        means = np.mean([np.mean(cases, axis=0) for cases in self._dice.values()], axis=0)
        best = int(np.argmax(means))
        return CANDIDATES[best], float(means[best])
