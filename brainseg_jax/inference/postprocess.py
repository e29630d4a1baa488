"""From probabilities to the mask that is scored or given out: whole volumes of patients, on the host."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy  # whose parts are loaded where they are first asked for

from brainseg_jax.data.canvas import Canvas
from brainseg_jax.metrics import dice
from brainseg_jax.scans.description import Description

GRID = 256  # pixels a side of the slices on which `min_voxels` is counted: those of the LGG set
NEIGHBORS = np.ones((3, 3, 3), bool)  # 26: voxels that meet in a corner belong together


class PostProcess(NamedTuple):
    """What makes a mask of a volume's probabilities.

    Attributes:
      threshold: probability from which a voxel counts as target.
      largest_component: whether the largest connected 3-D part is kept alone.
      min_voxels: connected 3-D components of fewer voxels are taken out, 0 and 1 keep all. It is counted on slices of
        256 x 256 pixels, see `on_grid`.
    """

    threshold: float = 0.5
    largest_component: bool = False
    min_voxels: int = 0

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """Maps the probabilities of a volume, [S, H, W] with the slices in order, to its mask, [S, H, W] bool."""
        return self.keep_parts(probability >= self.threshold)

    def on_grid(self, size: tuple[int, int]) -> "PostProcess":
        """The same for slices of another grid, on which a component of the same size has another count of voxels.

        The LGG set does not say how large its voxels are, so no minimum in mm³ is known. What is known is the share of
        the image: a component that covers 50 pixels of 256 x 256 covers 200 of 512 x 512. Slices are not counted anew,
        as the distance between them is not known either.

        Args:
          size: height and width, in pixels, of the square image that the network was shown (`Canvas.padded`).

        Returns:
          a copy whose `min_voxels` is times `size[0] * size[1] / 256²`, rounded up; itself for 256 x 256.
        """
        if self.min_voxels < 2:
            return self
        return self._replace(min_voxels=math.ceil(self.min_voxels * size[0] * size[1] / GRID**2))

    def keep_parts(self, volume: np.ndarray) -> np.ndarray:
        """What is left of a thresholded volume, [S, H, W] bool.

        Parts are connected through faces, edges or corners. A lower-grade glioma is nearly always one lesion; Buda et
        al. 2019 keep the largest part too (in the authors' code, github.com/mateuszbuda/brain-segmentation-pytorch). Of
        parts of one size the first in memory order is the largest.
        """
        result = volume.astype(bool)
        if not self.largest_component and self.min_voxels < 2:
            return result
        box = _bounding_box(result)  # labels take four times the memory of a mask
        labels, parts = scipy.ndimage.label(result[box], NEIGHBORS)
        if not parts:
            return result
        sizes = np.zeros(parts + 1, np.int64)
        for image in labels:
            sizes += np.bincount(image.ravel(), minlength=parts + 1)
        sizes[0] = 0
        kept = sizes >= max(1, self.min_voxels)
        if self.largest_component:
            kept &= np.arange(len(sizes)) == np.argmax(sizes)
        result[box] = kept[labels]
        return result


def _bounding_box(volume: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds a mask [S, H, W] bool; empty where that is."""
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
    """From the probabilities of all targets to their masks.

    Of targets that exclude each other a voxel belongs to the one of the highest probability, of those that reach their
    threshold. Connected components are kept target by target after that. Of a target whose labels are a part of
    another's, what lies outside of that other one is taken out. At last the masks are painted as a label map and read
    back, but for targets that no label map can hold.

    Args:
      probability: [S, H, W, K], on the volume's own grid.
      posts: of each target.
      description: says whether the targets exclude each other.
      canvas: of the volume; `min_voxels` depends on it, see `PostProcess.on_grid`.

    Returns:
      [S, H, W, K] bool.
    """
    masks = np.empty(probability.shape, bool)
    thresholds = np.array([post.threshold for post in posts], np.float32)
    for reached, image in zip(masks, probability, strict=True):  # slice by slice, as of a volume these arrays are large
        np.greater_equal(image, thresholds, out=reached)
        if description.exclusive and len(posts) > 1:
            highest = np.argmax(np.where(reached, image, -1.0), axis=-1)
            reached &= np.arange(len(posts)) == highest[..., None]
    for k, post in enumerate(posts):
        masks[..., k] = post.on_grid(canvas.padded).keep_parts(masks[..., k])
    # What is scored is what a label map of these masks holds: nested targets stay nested.
    several = len(posts) > 1 and not description.painted_over
    for image in masks:
        for inner, outer in description.nested:
            image[..., inner] &= image[..., outer]
        if several:
            image[...] = description.masks(description.label_map(image))
    return masks


def posts_to_json(posts: Sequence[PostProcess], description: Description) -> dict:
    """For `results.json`: of a single target its fields, of several a block for each by its name."""
    blocks = {name: post._asdict() for name, post in zip(description.names, posts, strict=True)}
    return blocks if len(posts) > 1 else blocks[description.names[0]]


def posts_from_json(content: dict, description: Description) -> tuple[PostProcess, ...]:
    """The inverse of `posts_to_json`."""
    if len(description.names) == 1:
        return (PostProcess(**content),)
    return tuple(PostProcess(**content[name]) for name in description.names)


class Chooser:
    """Finds the candidate of the highest mean 3-D Dice, patient by patient, so that no volume is kept."""

    def __init__(self) -> None:
        """Has seen no patient yet."""
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
          canvas: of the volume, see `make_masks`.
          counted: which voxels count, [S, H, W] bool; None: all.
          patient: whose volume it is. Each patient counts once, however many volumes there are.
        """
        counted = np.ones_like(truth) if counted is None else counted
        posts = [post.on_grid(canvas.padded) for post in CANDIDATES]
        self._dice.setdefault(patient, []).append(
            [dice(post(probability) & counted, truth & counted) for post in posts]
        )

    def best(self) -> tuple[PostProcess, float]:
        """The choice and its mean Dice; of a tie the one that stands first in `CANDIDATES`, the plainest."""
        mean = np.mean([np.mean(cases, axis=0) for cases in self._dice.values()], axis=0)
        best = int(np.argmax(mean))
        return CANDIDATES[best], float(mean[best])
