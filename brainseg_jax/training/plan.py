"""The plan: one rule per config key chooses its value from the data, and gives a reason.

The plan fills in values that are `config.AUTO`, or "auto" for text. It keeps all other values.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from brainseg_jax.config import AUTO, PLANNED
from brainseg_jax.data.canvas import ALL_VIEWS, SLACK, VIEWS
from brainseg_jax.data.prepared import read_summary
from brainseg_jax.data.prepared_cases import read_cases
from brainseg_jax.scans.description import Description

ANISOTROPIC = 1.5  # if the largest spacing is at least so many times the median, only one view is used
MIN_BOTTLENECK = 8  # minimum pixels a side at the lowest resolution of the network
MAX_DEPTH = 4  # poolings
MIN_SLICES = 16  # minimum median number of slices along each axis for several views
MAX_BATCH = 32  # slices; more steps are better than larger ones
SIDE_WORDS = {"left", "right", "l", "r", "lh", "rh"}  # in the name of a target on one side of the head
SPARSE = 0.5  # below this share of slices with a target, sampling prefers them


class PlannedValue(NamedTuple):
    """A value that the plan filled in, and the reason."""

    key: str
    value: float | int | str
    reason: str


class Extent(NamedTuple):
    """Shape and spacing of a case."""

    shape: tuple[int, int, int]  # S, H, W
    spacing: tuple[float, float, float] | None


def plan(config: ConfigDict, dataset_folder: Path) -> tuple[ConfigDict, list[PlannedValue]]:
    """Reads the extents of all cases and calls `plan_for`. Reads nothing if the config has no value to plan."""
    sections = (key.split(".") for key in PLANNED)
    if not any(config[section][name] in (AUTO, "auto") for section, name in sections):
        return config, []
    description = read_summary(dataset_folder).description
    extents: list[Extent] = []
    with_target, slices = np.zeros(3, int), np.zeros(3, int)  # along each axis
    for case in read_cases(dataset_folder):
        labels = case.volume.labels
        assert labels is not None  # all prepared cases have labels
        extents.append(Extent(labels.shape, case.volume.spacing))
        is_target = np.any(description.masks(labels), axis=-1)
        with_target += [is_target.any(axis=others).sum() for others in ((1, 2), (0, 2), (0, 1))]
        slices += labels.shape
    shares = {view: with_target[axis] / slices[axis] for view, axis in VIEWS.items()}
    return plan_for(config, description, extents, shares | {ALL_VIEWS: with_target.sum() / slices.sum()})


def plan_for(
    config: ConfigDict, description: Description, extents: Sequence[Extent], target_shares: Mapping[str, float]
) -> tuple[ConfigDict, list[PlannedValue]]:
    """Fills in every value that is `AUTO` or "auto".

    Args:
      config: From `default_config`; it does not change.
      description: Description of the data.
      extents: Shapes and spacings of all cases.
      target_shares: Share of the slices that contain a target, by view.

    Returns:
      A copy of the config without `AUTO`, and the planned values in the order of the rules.
    """
    config = config.copy_and_resolve_references()
    planned: list[PlannedValue] = []

    def fill(section: str, name: str, rule: Callable[..., tuple[float | int | str, str]], *arguments: object) -> None:
        if config[section][name] in (AUTO, "auto"):
            value, reason = rule(config, *arguments)
            config[section][name] = value
            planned.append(PlannedValue(f"{section}.{name}", value, reason))

    fill("data", "view", _view, extents)
    in_plane = [_in_plane(extent, config.data.view) for extent in extents]
    fill("data", "pixel_spacing", _pixel_spacing, in_plane, all(extent.spacing for extent in extents))
    fill("data", "image_size", _image_size, in_plane)
    fill("model", "depth", _depth)
    fill("train", "batch_size", _batch_size)
    fill("model", "features", _features)
    fill("data", "tumor_sampling", _sampling, target_shares[config.data.view])
    fill("augment", "flip", _flip, description)
    return config, planned


def _in_plane(extent: Extent, view: str) -> tuple[tuple[int, float], ...]:
    """(pixels, spacing) of both axes of a slice; of all three axes for several views. An unknown spacing is 1."""
    spacing = extent.spacing or (1.0, 1.0, 1.0)
    pairs = list(zip(extent.shape, spacing, strict=True))
    if view != ALL_VIEWS:
        del pairs[VIEWS[view]]
    return tuple(pairs)


def _view(config: ConfigDict, extents: Sequence[Extent]) -> tuple[str, str]:
    del config
    spacings = [extent.spacing for extent in extents if extent.spacing]
    if not spacings:
        return "axial", "the files have no spacing, so slices stay as they are"
    spacing, shape = np.median(spacings, axis=0), np.median([extent.shape for extent in extents], axis=0)
    thickest = int(np.argmax(spacing))
    lengths = " x ".join(f"{value:.3g}" for value in spacing)
    if spacing[thickest] < ANISOTROPIC * np.median(spacing):
        if shape.min() < MIN_SLICES:
            return (
                "axial",
                f"fewer than {MIN_SLICES} slices along an axis ({' x '.join(f'{n:g}' for n in shape)} voxels)",
            )
        return ALL_VIEWS, f"voxels have about the same length along each axis ({lengths} mm): three views are averaged"
    name = next(name for name, axis in VIEWS.items() if axis == thickest)
    return name, f"the spacing is largest along this axis ({lengths} mm)"


def _pixel_spacing(config: ConfigDict, in_plane: Sequence, has_spacing: bool) -> tuple[float, str]:
    pixels = [axis for case in in_plane for axis in case]
    finest = float(np.median([min(spacing for _, spacing in case) for case in in_plane]))
    unit, reason = ("mm", "") if has_spacing else ("pixels", "; some files have no spacing")
    longest = max(count * spacing for count, spacing in pixels)
    limit = config.plan.image_size
    if longest / finest <= limit:
        # Rounded up: with less, the longest slice could need one pixel more than the limit.
        spacing = math.ceil(finest * 1e4 - 1e-6) / 1e4
        return spacing, f"the median over cases of the finest in-plane spacing ({unit}){reason}"
    coarser = math.ceil(longest / limit * 1000) / 1000
    return coarser, f"the longest slice ({longest:.4g} {unit}) in {limit} pixels, the limit of this scale{reason}"


def _image_size(config: ConfigDict, in_plane: Sequence) -> tuple[int, str]:
    multiple = 2**MAX_DEPTH if config.model.depth == AUTO else 2**config.model.depth
    longest = max(count * spacing for case in in_plane for count, spacing in case)
    if not config.data.pixel_spacing:
        return config.plan.image_size, "slices are resized to the image size of this scale"
    size = max(multiple, -(-math.ceil(longest / config.data.pixel_spacing - SLACK) // multiple) * multiple)
    return size, f"the longest slice has {longest / config.data.pixel_spacing:.0f} pixels; a multiple of {multiple}"


def _depth(config: ConfigDict) -> tuple[int, str]:
    depth = 1
    size = config.data.image_size
    while depth < MAX_DEPTH and size % 2 ** (depth + 1) == 0 and size // 2 ** (depth + 1) >= MIN_BOTTLENECK:
        depth += 1
    limits = f"at least {MIN_BOTTLENECK} pixels, at most {MAX_DEPTH} poolings"
    return depth, f"{depth} poolings reduce {size} pixels to {size // 2**depth}; {limits}"


def _batch_size(config: ConfigDict) -> tuple[int, str]:
    scale = config.plan.image_size**2 / config.data.image_size**2
    size = 2 ** round(math.log2(max(2.0, min(MAX_BATCH, config.plan.batch_size * scale))))
    return size, f"the power of two nearest to this scale's pixels per step, 2 to {MAX_BATCH} slices"


def _features(config: ConfigDict) -> tuple[int, str]:
    return (
        config.plan.features,
        "the features of this scale; smaller images make the steps faster, so there are more steps",
    )


def _sampling(config: ConfigDict, target_share: float) -> tuple[float, str]:
    del config
    if target_share < SPARSE:
        return 0.5, f"{target_share:.0%} of the slices contain a target, so half of each batch is drawn from these"
    return 0.0, f"{target_share:.0%} of the slices contain a target, so each slice is drawn equally often"


def _flip(config: ConfigDict, description: Description) -> tuple[float, str]:
    if config.data.view in ("sagittal", ALL_VIEWS):
        return 0.0, "sagittal slices have no left and right to mirror"
    sided = [name for name in description.names if SIDE_WORDS & set(re.split("[^a-z]+", name.lower()))]
    if sided:
        return 0.0, f"targets are on one side ({', '.join(sided)}), which a mirror image would swap"
    return 0.5, "no target name refers to a side"
