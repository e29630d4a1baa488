"""A result of `predict` as a NIfTI image on the grid of its scan."""

import nibabel as nib
import numpy as np

from brainseg_jax.scans.description import Description
from brainseg_jax.scans.grid import Grid
from brainseg_jax.scans.scan import MASK


def result_image(
    kind: str, values: np.ndarray, description: Description, grid: Grid, header: nib.Nifti1Header | None = None
) -> nib.Nifti1Image:
    """Converts a result to an image.

    Args:
      kind: `MASK` becomes uint8, see `Description.label_map`; `PROBABILITY` and `UNCERTAINTY` become float32.
      values: [S, H, W, K] on the axial slices of the grid.
      description: of the K targets.
      grid: of the scan.
      header: of the scan's file; the image keeps its affine and unit.

    Returns:
      an image [I, J, K] for masks and for maps of one target. Maps of several targets have a fourth axis; a comment in
      a header extension lists their names.
    """
    if kind == MASK:
        volume = grid.from_slices(description.label_map(values))
    else:
        single = len(description.targets) == 1
        volume = grid.from_slices(values[..., 0] if single else values).astype(np.float32, copy=False)
    if header is None:
        image = nib.Nifti1Image(volume, grid.affine)
    else:
        header = header.copy()
        header["cal_min"] = header["cal_max"] = 0  # display range of the scan, wrong for results
        header.set_intent("none")
        header.set_data_dtype(volume.dtype)
        image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        image = image_class(volume, header.get_best_affine(), header)
    if volume.ndim == 4:
        names = f"fourth axis: {', '.join(description.names)}"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", names.encode()))
    return image
