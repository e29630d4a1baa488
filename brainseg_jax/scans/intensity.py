"""Brings the values of a volume to the 0..255 that the networks were trained on, and says how."""

import numpy as np

from brainseg_jax.errors import InputError

WHITEST = 99.9  # percentile of a volume that becomes 255; the few voxels above are flow and artifacts


def to_8_bits(volume: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Maps one sequence to 8 bits.

    Whole numbers from 0 to 255 are taken as they are, as the Kaggle set holds such. All else is mapped linearly, the
    least value of the volume to 0 and its 99.9th percentile to 255, and rounded.

    Args:
      volume: [...] of any type of plain numbers.

    Returns:
      uint8 of the same shape, and the mapping in words; None where there was none.

    Raises:
      InputError: values that are no finite numbers, or no more than two values: a mask, or nothing.
    """
    if not_finite := int(volume.size - np.isfinite(volume).sum()):
        raise InputError(
            f"{not_finite} voxels are NaN or infinite; replace them, by 0 where they are outside of the head"
        )
    least, greatest = volume.min(), volume.max()
    if ((volume == least) | (volume == greatest)).all():
        raise InputError(
            f"holds no other values than {least:g} and {greatest:g}: a mask, or an empty volume; give a scan"
        )
    if least >= 0 and greatest <= 255 and (volume == np.floor(volume)).all():
        return volume.astype(np.uint8), None
    white = np.percentile(volume, WHITEST)
    white = white if white > least else greatest
    scaled = (volume.astype(np.float64) - least) * (255.0 / (float(white) - float(least)))
    return np.rint(scaled).clip(0, 255).astype(np.uint8), f"values {least:g} to {white:g} brought to 0 to 255"
