"""Fills in what a config leaves to the data: image, pixel, network, batch, sampling. A rule each, with its reason.

A value to be planned is `config.AUTO`, or "auto" for a word. Whatever else stands there is kept.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from brainseg_jax.config import AUTO, PLANNED
from brainseg_jax.data.canvas import ALL_VIEWS, SLACK, VIEWS
from brainseg_jax.data.prepared import read_summary
from brainseg_jax.data.prepared_cases import read_cases
from brainseg_jax.scans.description import Description

ANISOTROPIC = 1.5  # times the spacing of the other axes: slices so thick are not cut across
SMALLEST = 8  # pixels a side at the bottom of the network, at the least
DEEPEST = 4  # poolings
FEWEST = 16  # slices along each axis, in the median, of volumes that are seen in several views
LARGEST_BATCH = 32  # slices; more steps are better than larger ones
SIDES = {"left", "right", "l", "r", "lh", "rh"}  # words in the name of a target that is on one side
SPARSE = 0.5  # share of slices with a target; where it is lower, slices with one are preferred


class Planned(NamedTuple):
    """A value that was filled in."""

    key: str
    value: float | int | str
    reason: str


class Extent(NamedTuple):
    """What the plan knows of a case."""

    shape: tuple[int, int, int]  # S, H, W
    spacing: tuple[float, float, float] | None


def plan(config: ConfigDict, dataset_folder: Path) -> tuple[ConfigDict, list[Planned]]:
    """Fills in every value that is to be planned, see `plan_for`; where there is none, the data are not read."""
    sections = (key.split(".") for key in PLANNED)
    if not any(config[section][name] in (AUTO, "auto") for section, name in sections):
        return config, []
    description = read_summary(dataset_folder).description
    extents, with_target, slices = [], 0, 0
    for case in read_cases(dataset_folder):
        labels = case.volume.labels
        extents.append(Extent(labels.shape, case.volume.spacing))
        with_target += int(description.masks(labels).any(axis=(1, 2, 3)).sum())
        slices += len(labels)
    return plan_for(config, description, extents, with_target / slices)


def plan_for(
    config: ConfigDict, description: Description, extents: Sequence[Extent], target_share: float
) -> tuple[ConfigDict, list[Planned]]:
    """Fills in every value that is to be planned.

    Args:
      config: of `default_config`; it is not changed.
      description: of the data.
      extents: of all cases.
      target_share: of the slices, the share that holds a target.

    Returns:
      the config without `AUTO`, and what was filled in, in the order of the keys.
    """
    config = config.copy_and_resolve_references()
    planned: list[Planned] = []

    def fill(section: str, name: str, rule: object, *arguments: object) -> None:
        if config[section][name] in (AUTO, "auto"):
            value, reason = rule(config, *arguments)
            config[section][name] = value
            planned.append(Planned(f"{section}.{name}", value, reason))

    fill("data", "view", _view, extents)
    in_plane = [_in_plane(extent, config.data.view) for extent in extents]
    fill("data", "pixel_spacing", _pixel_spacing, in_plane, all(extent.spacing for extent in extents))
    fill("data", "image_size", _image_size, in_plane)
    fill("model", "depth", _depth)
    fill("train", "batch_size", _batch_size)
    fill("model", "features", _features)
    fill("data", "tumor_sampling", _sampling, target_share)
    fill("augment", "flip", _flip, description)
    return config, planned


def _in_plane(extent: Extent, view: str) -> tuple[tuple[int, float], ...]:
    """(pixels, spacing) of rows and columns of the slices; a spacing of 1 where none is known."""
    spacing = extent.spacing or (1.0, 1.0, 1.0)
    pairs = list(zip(extent.shape, spacing, strict=True))
    if view != ALL_VIEWS:
        del pairs[VIEWS[view]]
    return tuple(pairs)


def _view(config: ConfigDict, extents: Sequence[Extent]) -> tuple[str, str]:
    del config
    known = [extent.spacing for extent in extents if extent.spacing]
    if not known:
        return "axial", "the files do not say the spacing, so slices stay as they are"
    spacing, shape = np.median(known, axis=0), np.median([extent.shape for extent in extents], axis=0)
    thickest = int(np.argmax(spacing))
    words = " x ".join(f"{value:.3g}" for value in spacing)
    if spacing[thickest] < ANISOTROPIC * np.median(spacing):
        if shape.min() < FEWEST:
            return "axial", f"fewer than {FEWEST} slices along an axis ({' x '.join(f'{n:g}' for n in shape)} voxels)"
        return ALL_VIEWS, f"voxels are about as long along each axis ({words} mm): three views are averaged"
    name = next(name for name, axis in VIEWS.items() if axis == thickest)
    return name, f"the slices lie furthest apart along this axis ({words} mm)"


def _pixel_spacing(config: ConfigDict, in_plane: Sequence, known: bool) -> tuple[float, str]:
    pixels = [axis for case in in_plane for axis in case]
    finest = float(np.median([min(spacing for _, spacing in case) for case in in_plane]))
    unit = "mm" if known else "pixels, as the files do not say the spacing"
    longest = max(count * spacing for count, spacing in pixels)
    limit = config.plan.image_size
    if longest / finest <= limit:
        return round(finest, 4), f"the median in-plane spacing of the data ({unit})"
    coarser = math.ceil(longest / limit * 1000) / 1000
    return coarser, f"the longest slice ({longest:.4g} {unit}) in {limit} pixels, the limit of this scale"


def _image_size(config: ConfigDict, in_plane: Sequence) -> tuple[int, str]:
    multiple = 2**DEEPEST if config.model.depth == AUTO else 2**config.model.depth
    longest = max(count * spacing for case in in_plane for count, spacing in case)
    if not config.data.pixel_spacing:
        return config.plan.image_size, "slices are fitted to the size of this scale"
    size = max(multiple, -(-math.ceil(longest / config.data.pixel_spacing - SLACK) // multiple) * multiple)
    return size, f"the longest slice has {longest / config.data.pixel_spacing:.0f} pixels; a multiple of {multiple}"


def _depth(config: ConfigDict) -> tuple[int, str]:
    depth = 1
    size = config.data.image_size
    while depth < DEEPEST and size % 2 ** (depth + 1) == 0 and size // 2 ** (depth + 1) >= SMALLEST:
        depth += 1
    return depth, f"{size} pixels are {size // 2**depth} at the bottom; at least {SMALLEST}, at most {DEEPEST} poolings"


def _batch_size(config: ConfigDict) -> tuple[int, str]:
    scale = config.plan.image_size**2 / config.data.image_size**2
    size = 2 ** round(math.log2(max(2.0, min(LARGEST_BATCH, config.plan.batch_size * scale))))
    return size, f"as many pixels a step as this scale is made for, but no more than {LARGEST_BATCH} slices"


def _features(config: ConfigDict) -> tuple[int, str]:
    return config.plan.features, "what this scale is made for; smaller images make the steps faster, so there are more"


def _sampling(config: ConfigDict, target_share: float) -> tuple[float, str]:
    del config
    if target_share < SPARSE:
        return 0.5, f"{target_share:.0%} of the slices hold a target, so half of each batch is drawn from these"
    return 0.0, f"{target_share:.0%} of the slices hold a target, so each slice is drawn equally often"


def _flip(config: ConfigDict, description: Description) -> tuple[float, str]:
    if config.data.view in ("sagittal", ALL_VIEWS):
        return 0.0, "sagittal slices have no left and right to be mirrored"
    sided = [name for name in description.names if SIDES & set(re.split("[^a-z]+", name.lower()))]
    if sided:
        return 0.0, f"targets are on one side ({', '.join(sided)}), which a mirror image would swap"
    return 0.5, "left and right are alike to the targets"
