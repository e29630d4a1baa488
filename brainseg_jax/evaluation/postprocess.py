"""From probabilities to the mask that is scored or given out: whole volumes of patients, on the host."""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy  # whose parts are loaded where they are first asked for

GRID = 256  # pixels a side of the slices on which `min_voxels` is counted: those of the LGG set
NEIGHBORS = np.ones((3, 3, 3), bool)  # 26: voxels that meet in a corner belong together


class PostProcess(NamedTuple):
    """What makes a mask of a volume's probabilities.

    Attributes:
      threshold: probability from which a voxel counts as tumor.
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
        if not self.largest_component and self.min_voxels < 2:
            return volume.astype(bool)
        labels, parts = scipy.ndimage.label(volume, NEIGHBORS)
        if not parts:
            return volume.astype(bool)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        kept = sizes >= max(1, self.min_voxels)
        if self.largest_component:
            kept &= np.arange(len(sizes)) == np.argmax(sizes)
        return kept[labels]


CANDIDATES = tuple(
    PostProcess(threshold, largest, min_voxels)
    for threshold, (largest, min_voxels) in itertools.product(
        (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8), ((False, 0), (False, 50), (False, 200), (True, 0))
    )
)


def choose(volumes: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[PostProcess, float]:
    """The candidate of the highest mean 3-D Dice; of a tie the one that stands first in `CANDIDATES`, the plainest.

    Args:
      volumes: probability [S, H, W] and true mask [S, H, W] bool of each patient; one at least.

    Returns:
      the choice, and its mean Dice.
    """
    dice = np.mean([[_dice(post(probability), truth) for post in CANDIDATES] for probability, truth in volumes], axis=0)
    best = int(np.argmax(dice))
    return CANDIDATES[best], float(dice[best])


def _dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    total = int(predicted.sum()) + int(truth.sum())
    return 2.0 * int((predicted & truth).sum()) / total if total else 1.0
