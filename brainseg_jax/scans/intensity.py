"""Maps the values of a volume to 0..255, the range that the networks were trained on, and reports how."""

from collections.abc import Sequence

import numpy as np
import scipy  # loads its submodules lazily

from brainseg_jax.errors import InputError

BLACKEST, WHITEST = 0.1, 99.9  # percentiles of a volume that become 0 and 255; values beyond them are artifacts
MOST_LABELS = 10  # a volume with at most this many distinct whole numbers is a label map
_HANDFUL = 64  # with at most this many voxels, a scan can look like a label map
_INSIDE = 1e-3  # maximum share of non-finite voxels away from the border; more mean a damaged scan
_PADDING = 0.001  # minimum share of voxels with the lowest or highest value for it to be padding
_SAME = 1e-3  # relative tolerance around a padding value
_FAR = (0.1, 1.0)  # minimum distance of low and high padding from other values, as a share of their range
_BULK, _BEYOND = (1.0, 99.0), 3.0  # percentiles; outliers are beyond them by more than this multiple of their distance


def to_8_bits(volume: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Maps one sequence to 8 bits.

    Background voxels become 0. These are:

    - Non-finite voxels in a connected component of such voxels that touches the border. Elsewhere at most 0.1 % of the
      voxels may be non-finite.
    - Low padding: a negative value that 0.1 % of the voxels share, within 0.1 % of it. All other values are larger by
      more than a tenth of their range.
    - High padding: a value that 0.1 % of the voxels share. All other values are smaller by more than their range.

    Whole numbers from 0 to 255 stay unchanged, since the Kaggle set has such values. Any other volume is mapped
    linearly and rounded, the 0.1th percentile to 0 and the 99.9th to 255. The percentiles follow these rules:

    - A scan is positive if at least half of its non-zero values are, and if negative values are at most half as many.
      The second rule leaves out interpolated padding: values below minus twice the 99th percentile.
    - In a positive scan, background and negative values count as 0. In any other scan, background does not count.
    - Outliers do not count, and are clipped. An outlier is beyond the 1st or 99th percentile by more than three times
      the distance between these two.

    Args:
      volume: [...] of any numeric type.

    Returns:
      uint8 of the same shape, and a description of the mapping; None if the values are unchanged.

    Raises:
      InputError: too many values are not finite, or there are few distinct whole numbers, as in a mask, a label map or
        an empty volume.
    """
    background, notes = _background(volume)
    values = volume.ravel(order="K") if background is None else volume[~background]
    refuse_labels(values)
    if background is not None:
        volume = np.where(background, 0, volume)
    if _is_8_bits(values):
        return volume.astype(np.uint8), "; ".join(notes) or None
    black, white = _range(values, volume.size - values.size)
    lowest, highest = float(values.min()), float(values.max())
    if lowest < 0 <= black and _is_8_bits(values[values >= 0]):
        notes.append(f"{int((values < 0).sum())} voxels below 0, down to {lowest:g}, set to 0")
        return volume.clip(0, 255).astype(np.uint8), "; ".join(notes)
    notes.append(f"values {black:g} to {white:g} mapped to 0 to 255")
    if black - lowest > 0.1 * (white - black):
        notes.append(f"{int((values < black).sum())} voxels below, down to {lowest:g}, set to 0")
    if highest - white > 2 * (white - black):
        notes.append(f"{int((values > white).sum())} voxels above, up to {highest:g}, set to 255")
    scaled = np.empty_like(volume, np.uint8)
    axis = int(np.argmax(np.abs(volume.strides))) if volume.ndim else 0
    # Block by block: the whole volume in float64 would take up to eight times its memory.
    for target, block in zip(np.moveaxis(scaled, axis, 0), np.moveaxis(volume, axis, 0), strict=True):
        target[...] = np.rint((block.astype(np.float64) - black) * (255.0 / (white - black))).clip(0, 255)
    if background is not None:
        scaled[background] = 0
    return scaled, "; ".join(notes)


def _background(volume: np.ndarray) -> tuple[np.ndarray | None, list[str]]:
    """The mask of background, or None if there is none, and notes on it; see `to_8_bits`."""
    background, notes = np.zeros(volume.shape, bool), []
    if volume.dtype.kind == "f" and not (finite := np.isfinite(volume)).all():
        background |= ~finite
        count = int(background.sum())
        if (inside := _not_at_border(background)) > _INSIDE * volume.size or count == volume.size:
            raise InputError(
                f"{count} voxels are NaN or infinite, {inside} of them inside the volume; replace them, outside the "
                "head by 0"
            )
        notes.append(f"{count} voxels that are NaN or infinite count as background")
    while (value := _padding_value(volume[~background])) is not None:
        equal = _same(volume, value) & ~background
        background |= equal
        notes.append(f"{int(equal.sum())} voxels of {value:g}, far from all others, count as padding")
    return (background if background.any() else None), notes


def _not_at_border(mask: np.ndarray) -> int:
    """Counts the voxels of a mask in face-connected components that do not touch the border of the volume."""
    components, _ = scipy.ndimage.label(mask)
    at_border = np.zeros(components.max() + 1, bool)
    at_border[0] = True  # voxels outside the mask
    for axis, length in enumerate(components.shape):
        if length > 1:  # a single slice has no border along its normal
            at_border[np.take(components, (0, -1), axis=axis)] = True
    return int((~at_border[components]).sum())


def _padding_value(values: np.ndarray) -> float | None:
    """The lowest or highest value if it is padding, else None; see `to_8_bits`."""
    if not values.size or _is_8_bits(values):
        return None
    lowest, highest = float(values.min()), float(values.max())
    for value, far in ((lowest, _FAR[0]), (highest, _FAR[1])):
        if value == lowest and lowest >= 0:
            continue
        same = _same(values, value)
        # Fewer are beyond the percentiles of the range anyway.
        if np.count_nonzero(same) < max(2, _PADDING * (values.size - 1)) or same.all():
            continue
        others = values[~same].astype(np.float64)
        low, high = np.percentile(others, (BLACKEST, WHITEST))
        nearest = others.min() if value == lowest else others.max()
        if high > low and abs(nearest - value) > far * (high - low):
            return value
    return None


def _same(values: np.ndarray, value: float) -> np.ndarray:
    """Where the values equal a padding value within `_SAME`, since interpolation changes it slightly."""
    margin = _SAME * abs(value)
    return (values >= value - margin) & (values <= value + margin)


def refuse_labels(values: np.ndarray) -> None:
    """Raises InputError if the values [N] of a volume are those of a mask, a label map or an empty volume."""
    if len(np.unique(values[:: max(1, values.size // 10_000)])) > MOST_LABELS:  # a sample is enough for most scans
        return
    distinct = np.unique(values)
    listed = " and ".join(f"{value:g}" for value in distinct) if len(distinct) <= 2 else ""
    if len(distinct) <= 2:
        raise InputError(f"has only the values {listed or 'of background'}: a mask, or an empty volume; give a scan")
    if len(distinct) <= MOST_LABELS and values.size > _HANDFUL and (distinct == np.floor(distinct)).all():
        listed = ", ".join(f"{value:g}" for value in distinct)
        raise InputError(f"has only the values {listed}: a label map, or an empty volume; give a scan")


def _range(values: np.ndarray, background: int) -> tuple[float, float]:
    """The values that become 0 and 255, from [N] values and the number of background voxels; see `to_8_bits`."""
    # A copy in the same type: float64 would take several times the memory of a large volume.
    values = values.astype(np.float64 if values.dtype.itemsize > 8 else values.dtype.newbyteorder("="))
    if _is_positive(values):
        np.maximum(values, 0, out=values)
        values = np.concatenate([values, np.zeros(background, values.dtype)]) if background else values
    low, high = _percentiles(values, _BULK, 0, values.size)
    first, last = 0, values.size
    if high > low:
        beyond = _BEYOND * (high - low)
        first = int(np.count_nonzero(values < np.float64(low - beyond)))
        last -= int(np.count_nonzero(values > np.float64(high + beyond)))
    black, white = _percentiles(values, (BLACKEST, WHITEST), first, last)
    if white <= black:
        (white,) = _percentiles(values, (100.0,), first, last)
    if white <= black:  # nearly all voxels have the highest value
        (black,) = _percentiles(values, (0.0,), first, last)
    if not np.isfinite(white - black):
        raise InputError(f"values from {black:g} to {white:g}, an impossible range for a scan; fix the header")
    return black, white


def _percentiles(values: np.ndarray, percents: Sequence[float], first: int, last: int) -> list[float]:
    """Percentiles of the values of rank `first` to `last` - 1, equal to those of `np.percentile` in float64.

    Args:
      values: [N]; partitioned in place.
      percents: from 0 to 100.
      first: first rank, from 0.
      last: last rank plus 1.
    """
    ranks = (last - first - 1) * (np.array(percents) / 100)
    below = np.floor(ranks).astype(int)
    shares, below = ranks - below, first + below
    above = np.minimum(below + 1, last - 1)
    values.partition(np.unique([below, above]))
    low, high = values[below].astype(np.float64), values[above].astype(np.float64)
    # Interpolate from the nearer end, as numpy does.
    return np.where(shares < 0.5, low + (high - low) * shares, high - (high - low) * (1 - shares)).tolist()


def _is_positive(values: np.ndarray) -> bool:
    """Whether 0 is black in values [N], so that negative values are noise or padding; see `to_8_bits`."""
    near = np.float64(2 * _percentiles(values, _BULK[1:], 0, values.size)[0])
    positive, negative = np.count_nonzero(values > 0), np.count_nonzero(values < 0)
    return bool(positive >= max(negative, 2 * np.count_nonzero((values < 0) & (values >= -near))))


def _is_8_bits(values: np.ndarray) -> bool:
    """Whether all values are whole numbers from 0 to 255."""
    if not values.size or values.min() < 0 or values.max() > 255:
        return False
    return values.dtype.kind in "ui" or bool((values == np.floor(values)).all())
