"""Brings the values of a volume to the 0..255 that the networks were trained on, and reports how."""

from collections.abc import Sequence

import numpy as np
import scipy  # whose parts are loaded where they are first asked for

from brainseg_jax.errors import InputError

BLACKEST, WHITEST = 0.1, 99.9  # percentiles of a volume that become 0 and 255; what lies beyond are artifacts
MOST_LABELS = 10  # a volume of no more distinct whole numbers is a label map
_HANDFUL = 64  # voxels; fewer cannot tell a label map from a scan
_INSIDE = 1e-3  # of the voxels: more that are not finite, and not at the border, mean a damaged scan
_PADDING = 0.001  # of the voxels share one value, the lowest or highest, where that is padding
_SAME = 1e-3  # of a padding value: what differs from it by no more is that value
_FAR = (0.1, 1.0)  # of the range of the other values: how far low and high padding lie from these
_BULK, _BEYOND = (1.0, 99.0), 3.0  # percentiles, and how many times their distance beyond them a value is an outlier


def to_8_bits(volume: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Maps one sequence to 8 bits.

    Some voxels are background and become 0:

    - what is not a finite number, and is connected with the border of the volume by voxels of that kind; elsewhere no
      more than one voxel in a thousand may be so;
    - padding: a negative value that 0.1 % of the voxels share (to a thousandth of it), where all others are larger by
      more than a tenth of their range; a value that 0.1 % share, where all others are smaller by more than their range.

    Whole numbers from 0 to 255 are taken as they are, as the Kaggle set holds such. All else is mapped linearly and
    rounded, the 0.1th percentile to 0 and the 99.9th to 255, by these rules:

    - A scan is positive where at least half of its values other than 0 are, and these are at least twice as many as
      the negative ones. Values more than twice as far below 0 as the 99th percentile lies above it do not count for the
      second: they are padding that was interpolated. In a positive scan background and negative values count as 0.
    - In any other scan, such as one around 0, background does not count.
    - Outliers do not count: what lies beyond the 1st or 99th percentile by more than three times their distance. They
      are clipped.

    Args:
      volume: [...] of any type of plain numbers.

    Returns:
      uint8 of the same shape, and what was done in words; None where the values were taken as they are.

    Raises:
      InputError: too many values are not finite; or there are few distinct whole numbers: a mask, a label map, nothing.
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
        notes.append(f"{int((values < 0).sum())} voxels below 0, down to {lowest:g}, taken as 0")
        return volume.clip(0, 255).astype(np.uint8), "; ".join(notes)
    notes.append(f"values {black:g} to {white:g} brought to 0 to 255")
    if black - lowest > 0.1 * (white - black):
        notes.append(f"{int((values < black).sum())} voxels below, down to {lowest:g}, taken as 0")
    if highest - white > 2 * (white - black):
        notes.append(f"{int((values > white).sum())} voxels above, up to {highest:g}, taken as 255")
    scaled = np.empty_like(volume, np.uint8)
    axis = int(np.argmax(np.abs(volume.strides))) if volume.ndim else 0
    # Block by block, as the whole volume takes eight times its memory in float64.
    for target, block in zip(np.moveaxis(scaled, axis, 0), np.moveaxis(volume, axis, 0), strict=True):
        target[...] = np.rint((block.astype(np.float64) - black) * (255.0 / (white - black))).clip(0, 255)
    if background is not None:
        scaled[background] = 0
    return scaled, "; ".join(notes)


def _background(volume: np.ndarray) -> tuple[np.ndarray | None, list[str]]:
    """Where the volume is background, None for nowhere, and what that is in words; see `to_8_bits`."""
    background, notes = np.zeros(volume.shape, bool), []
    if volume.dtype.kind == "f" and not (finite := np.isfinite(volume)).all():
        background |= ~finite
        count = int(background.sum())
        if (inside := _not_at_border(background)) > _INSIDE * volume.size or count == volume.size:
            raise InputError(
                f"{count} voxels are NaN or infinite, {inside} of them inside of the volume; replace them, by 0 where "
                "they are outside of the head"
            )
        notes.append(f"{count} voxels that are NaN or infinite taken as background")
    while (value := _padding_value(volume[~background])) is not None:
        equal = _same(volume, value) & ~background
        background |= equal
        notes.append(f"{int(equal.sum())} voxels of {value:g}, far from all others, taken as padding")
    return (background if background.any() else None), notes


def _not_at_border(found: np.ndarray) -> int:
    """How many voxels are not connected, through their faces, with the border of the volume."""
    parts, _ = scipy.ndimage.label(found)
    at_border = np.zeros(parts.max() + 1, bool)
    at_border[0] = True  # what is not found
    for axis, length in enumerate(parts.shape):
        if length > 1:  # a single slice has no border along its normal
            at_border[np.take(parts, (0, -1), axis=axis)] = True
    return int((~at_border[parts]).sum())


def _padding_value(values: np.ndarray) -> float | None:
    """The lowest or highest value where that is padding; see `to_8_bits`."""
    if not values.size or _is_8_bits(values):
        return None
    lowest, highest = float(values.min()), float(values.max())
    for value, far in ((lowest, _FAR[0]), (highest, _FAR[1])):
        if value == lowest and lowest >= 0:
            continue
        same = _same(values, value)
        # As many as the percentiles of the range do not leave out.
        if np.count_nonzero(same) < max(2, _PADDING * (values.size - 1)) or same.all():
            continue
        others = values[~same].astype(np.float64)
        low, high = np.percentile(others, (BLACKEST, WHITEST))
        nearest = others.min() if value == lowest else others.max()
        if high > low and abs(nearest - value) > far * (high - low):
            return value
    return None


def _same(values: np.ndarray, value: float) -> np.ndarray:
    """Where the values are a padding value, as exact as interpolation leaves it."""
    margin = _SAME * abs(value)
    return (values >= value - margin) & (values <= value + margin)


def refuse_labels(values: np.ndarray) -> None:
    """Raises InputError where few whole numbers are all there is: a mask, a label map, nothing.

    Args:
      values: [N], all values of a volume.
    """
    if len(np.unique(values[:: max(1, values.size // 10_000)])) > MOST_LABELS:  # most scans show it at a glance
        return
    found = np.unique(values)
    listed = " and ".join(f"{value:g}" for value in found) if len(found) <= 2 else ""
    if len(found) <= 2:
        raise InputError(
            f"holds no other values than {listed or 'background'}: a mask, or an empty volume; give a scan"
        )
    if len(found) <= MOST_LABELS and values.size > _HANDFUL and (found == np.floor(found)).all():
        listed = ", ".join(f"{value:g}" for value in found)
        raise InputError(f"holds no other values than {listed}: a label map, or an empty volume; give a scan")


def _range(values: np.ndarray, background: int) -> tuple[float, float]:
    """The values that become 0 and 255, of [N] values beside so many voxels of background; see `to_8_bits`."""
    # A copy of their own type: as float64 a large volume takes several times the memory.
    values = values.astype(np.float64 if values.dtype.itemsize > 8 else values.dtype.newbyteorder("="))
    if _is_positive(values):
        np.maximum(values, 0, out=values)
        values = np.concatenate([values, np.zeros(background, values.dtype)]) if background else values
    low, high = _percentiles(values, _BULK, 0, values.size)
    first, last = 0, values.size
    if high > low:
        beyond = _BEYOND * (high - low)
        first = np.count_nonzero(values < np.float64(low - beyond))
        last -= np.count_nonzero(values > np.float64(high + beyond))
    black, white = _percentiles(values, (BLACKEST, WHITEST), first, last)
    if white <= black:
        (white,) = _percentiles(values, (100.0,), first, last)
    if white <= black:  # nearly all voxels hold the highest value
        (black,) = _percentiles(values, (0.0,), first, last)
    if not np.isfinite(white - black):
        raise InputError(f"values from {black:g} to {white:g}, a range that no scan has; fix the header")
    return black, white


def _percentiles(values: np.ndarray, percents: Sequence[float], first: int, last: int) -> list[float]:
    """Percentiles of the values of rank `first` to `last` - 1, exactly as `np.percentile` has them of float64.

    Args:
      values: [N] of numbers, sorted in part, in place.
      percents: from 0 to 100.
      first: of the ranks, from 0.
      last: one more than the last rank.
    """
    ranks = (last - first - 1) * (np.array(percents) / 100)
    below = np.floor(ranks).astype(int)
    shares, below = ranks - below, first + below
    above = np.minimum(below + 1, last - 1)
    values.partition(np.unique([below, above]))
    low, high = values[below].astype(np.float64), values[above].astype(np.float64)
    # From the nearer end, as numpy does.
    return np.where(shares < 0.5, low + (high - low) * shares, high - (high - low) * (1 - shares)).tolist()


def _is_positive(values: np.ndarray) -> bool:
    """Whether 0 is black, and what lies below it noise, artifacts or padding, of values [N]; see `to_8_bits`."""
    near = np.float64(2 * _percentiles(values, _BULK[1:], 0, values.size)[0])
    positive, negative = np.count_nonzero(values > 0), np.count_nonzero(values < 0)
    return positive >= max(negative, 2 * np.count_nonzero((values < 0) & (values >= -near)))


def _is_8_bits(values: np.ndarray) -> bool:
    """Whether all are whole numbers from 0 to 255."""
    if not values.size or values.min() < 0 or values.max() > 255:
        return False
    return values.dtype.kind in "ui" or bool((values == np.floor(values)).all())
