"""What is done to predicted masks before they are scored: whole volumes of patients, on the host."""

import numpy as np
from scipy import ndimage

_NEIGHBORS = np.ones((3, 3, 3), bool)  # 26: voxels that meet in a corner belong together


def keep_largest_component(volume: np.ndarray) -> np.ndarray:
    """Leaves of a patient's prediction the one connected part that has the most voxels.

    A lower-grade glioma is nearly always one lesion; Buda et al. 2019 keep the largest part too (in the authors' code,
    github.com/mateuszbuda/brain-segmentation-pytorch). Parts are connected through faces, edges or corners.

    Args:
      volume: [S, H, W] bool, the slices of one patient in order.

    Returns:
      [S, H, W] bool; empty where `volume` is. Of parts of one size the first in memory order is kept.
    """
    labels, parts = ndimage.label(volume, _NEIGHBORS)
    if parts < 2:
        return volume.astype(bool)
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
