"""A prepared cohort in memory: what a network trains on, and what each case needs for its scores."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from brainseg_jax.data import normalization as norm
from brainseg_jax.data.canvas import Canvas
from brainseg_jax.data.prepared import quiet_tfds, read_summary
from brainseg_jax.data.prepared_cases import read_cases
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Description


@dataclass(frozen=True, eq=False)
class Cohort:
    """All cases, in the order in which they are stored; N slices of P cases, K targets.

    A case is one scan. A patient can have several, as of several time points. The slices of a case are those of its
    first view, then those of the next one where the network sees several.

    Attributes:
      description: channels and targets.
      images: [N, side, side, C] uint8, the slices as the network sees them.
      target_bits: [N, side, side, 1] unsigned, of the same pixels: bit k is set where a pixel belongs to target k, bit
        K where its label is to be ignored. See `unpack_targets`.
      case_index: [N] int32, index of the slice's case in `cases`.
      cases: P names.
      patients: of each case, whose scan it is.
      groups: of each case, such as its institution; "" where none is known.
      grades: of each case, the code of the LGG set's data.csv, -1 where it is missing; None for another cohort.
      labels: of each case, [S, H, W] uint8 label map on its own grid.
      spacings: of each case, see `Volume.spacing`.
      numbers: of each case, see `Volume.numbers`.
      canvases: of each case, one for each view.
      records: of each case, indices of its axial slices in the prepared data, int [S].
      normalization: constants, each float32 [P, C], fitted to the volumes on their own grid.
      fingerprint: of the prepared data, so that a run can name them.
      folder: of the prepared data.
    """

    description: Description
    images: np.ndarray
    target_bits: np.ndarray
    case_index: np.ndarray
    cases: tuple[str, ...]
    patients: tuple[str, ...]
    groups: tuple[str, ...]
    grades: tuple[int, ...] | None
    labels: tuple[np.ndarray, ...]
    spacings: tuple[tuple[float, float, float] | None, ...]
    numbers: tuple[tuple[int, ...], ...]
    canvases: tuple[tuple[Canvas, ...], ...]
    records: tuple[np.ndarray, ...]
    normalization: norm.Normalization
    fingerprint: str
    folder: Path

    def neighbors(self, context: int) -> np.ndarray:
        """Indices of the slices around each, from `context` before to `context` after it, [N, 2 * context + 1] int32.

        Beyond the ends of a view of a case its first or last slice is repeated, as in `canvas.with_neighbors`.
        """
        bounds = np.concatenate([self.stacks(index) for index in range(len(self.cases))])
        counts = bounds[:, 1] - bounds[:, 0]
        first, last = (np.repeat(ends, counts) for ends in bounds.T)
        around = np.arange(len(self.images))[:, None] + np.arange(-context, context + 1)
        return around.clip(first[:, None], last[:, None] - 1).astype(np.int32)

    def stacks(self, index: int) -> np.ndarray:
        """First slice of a case in each view, and the one after the last, [V, 2] int."""
        shape = self.labels[index].shape
        ends = self._starts[index] + np.cumsum([shape[canvas.axis] for canvas in self.canvases[index]])
        return np.stack([np.append(self._starts[index], ends[:-1]), ends], axis=1)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.searchsorted(self.case_index, np.arange(len(self.cases)))

    @cached_property
    def has_target(self) -> np.ndarray:
        """Which slices hold a pixel of any target, [N] bool."""
        return self.target_area > 0

    @cached_property
    def target_area(self) -> np.ndarray:
        """Pixels of each slice that belong to any target, on the case's own grid, [N] int64."""
        return np.concatenate([masks.any(axis=-1).sum(axis=(1, 2)) for masks, _ in self._slices_on_own_grids()])

    @cached_property
    def target_fractions(self) -> np.ndarray:
        """Share of each slice's pixels that belongs to each target, of those whose label counts, [N, K] float64.

        Class weights are made from it. It is counted on the cases' own grids.
        """
        fractions = []
        for masks, counted in self._slices_on_own_grids():
            pixels = np.prod(masks.shape[1:3]) if counted is None else np.maximum(counted.sum(axis=(1, 2)), 1)[:, None]
            fractions.append(masks.sum(axis=(1, 2), dtype=np.float64) / pixels)
        return np.concatenate(fractions)

    def _slices_on_own_grids(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """The masks of the slices, [n, h, w, K] bool, and which pixels count, [n, h, w] bool or None; view by view."""
        for labels, canvases in zip(self.labels, self.canvases, strict=True):
            for canvas in canvases:
                slices = np.moveaxis(labels, canvas.axis, 0)
                yield self.description.masks(slices), self.description.counted(slices)

    def indices(self, cases: Iterable[str]) -> np.ndarray:
        """Indices of these cases, in the order given, int [n].

        Raises:
          InputError: a case is not in the cohort.
        """
        cases = list(cases)
        index = {name: i for i, name in enumerate(self.cases)}
        if unknown := sorted(set(cases) - index.keys()):
            raise InputError(f"not in the data: {', '.join(unknown)}; prepare the data anew or correct the split")
        return np.array([index[name] for name in cases], np.int64)

    def patients_of(self, cases: Iterable[str]) -> tuple[str, ...]:
        """Whose scans these cases are, each patient once, in order of the name. Raises InputError as `indices` does."""
        return tuple(sorted({self.patients[index] for index in self.indices(cases)}))

    def slices_of(self, cases: Iterable[str]) -> np.ndarray:
        """Indices of all slices of these cases, ascending, int32 [n]. Raises InputError as `indices` does."""
        return np.flatnonzero(np.isin(self.case_index, self.indices(cases))).astype(np.int32)

    def read_voxels(self, case: str) -> np.ndarray:
        """The scan of a case on its own grid, [S, H, W, C] uint8, read from the prepared data."""
        (index,) = self.indices([case])
        with quiet_tfds():
            (source,) = tfds.builder_from_directory(self.folder).as_data_source().values()
        return np.stack([source[int(record)]["image"] for record in self.records[index]])


def load_cohort(
    dataset_folder: Path,
    *,
    image_size: int,
    normalization: str,
    pixel_spacing: float = 0.0,
    view: str = "axial",
) -> Cohort:
    """Reads a prepared dataset.

    Args:
      dataset_folder: the folder that `prepare` returned.
      image_size: height and width of the network's images, in pixels.
      normalization: a name in `normalization.METHODS`.
      pixel_spacing: millimeters of a pixel of the network; 0: each slice is fitted to the image.
      view: a key of `canvas.VIEWS`, or "all" for the slices of all of them.

    Raises:
      InputError: an argument is out of range, a slice does not fit the image, or the folder holds no whole dataset.
    """
    summary = read_summary(dataset_folder)
    description = summary.description
    images, bits, case_index, cases, constants, canvases, too_large = [], [], [], [], [], [], []
    for index, case in enumerate(read_cases(dataset_folder)):
        volume = case.volume
        try:
            views = Canvas.of_views(
                view, volume.labels.shape, spacing=volume.spacing, image_size=image_size, pixel_spacing=pixel_spacing
            )
        except InputError as error:
            raise InputError(f"case {case.name} of {dataset_folder}: {error}, and prepare again") from None
        if (side := max(canvas.side for canvas in views)) > image_size:
            too_large.append(f"{case.name} ({side})")
            continue
        for canvas in views:
            images.append(canvas.to_network(volume.voxels))
            bits.append(_pack(canvas, description, volume.labels))
            case_index += [index] * len(images[-1])
        constants.append(norm.fit(volume.voxels, normalization))
        canvases.append(views)
        cases.append((case.name, case.patient, case.group, case.grade, volume.labels, volume.spacing, volume.numbers))
    if too_large:
        more = f" and {len(too_large) - 5} more" if len(too_large) > 5 else ""
        raise InputError(
            f"slices of {', '.join(too_large[:5])}{more} have more pixels of {pixel_spacing:g} mm a side than "
            f"data.image_size={image_size}; raise it, or data.pixel_spacing"
        )
    names, patients, groups, grades, labels, spacings, numbers = zip(*cases, strict=True)
    ends = np.cumsum([len(of_case) for of_case in labels])
    return Cohort(
        description=description,
        images=_joined(images),
        target_bits=_joined(bits),
        case_index=np.array(case_index, np.int32),
        cases=names,
        patients=patients,
        groups=groups,
        grades=None if None in grades else grades,
        labels=labels,
        spacings=spacings,
        numbers=numbers,
        canvases=tuple(canvases),
        records=tuple(np.arange(end - len(of_case), end) for of_case, end in zip(labels, ends, strict=True)),
        normalization=norm.Normalization(*(np.stack(values) for values in zip(*constants, strict=True))),
        fingerprint=summary.fingerprint,
        folder=dataset_folder,
    )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """`np.concatenate` that lets go of each part once it is copied, so that memory does not hold everything twice."""
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    end = len(whole)
    while parts:
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    return whole


def unpack_targets(bits: jax.Array, description: Description) -> tuple[jax.Array, jax.Array | None]:
    """What `Cohort.target_bits` hold.

    Args:
      bits: [..., 1], of any dtype of whole numbers or floats.
      description: of the cohort.

    Returns:
      targets [..., K] float32 in {0, 1}; and where a pixel counts, [..., 1] float32 in {0, 1}, None where all do.
    """
    bits = bits.astype(jnp.int32)
    targets = [(bits >> k) & 1 for k in range(len(description.targets))]
    counted = None if description.ignore is None else 1.0 - ((bits >> len(targets)) & 1).astype(jnp.float32)
    return jnp.concatenate(targets, axis=-1).astype(jnp.float32), counted


def _pack(canvas: Canvas, description: Description, labels: np.ndarray) -> np.ndarray:
    """Labels [S, H, W] of a volume as `Cohort.target_bits` of its slices, [n, side, side, 1]."""
    masks = description.masks(labels)
    if description.ignore is not None:
        masks = np.concatenate([masks, (labels == description.ignore)[..., None]], axis=-1)
    masks = canvas.masks_to_network(masks)
    count = masks.shape[-1]
    dtype = np.uint8 if count <= 8 else np.uint16 if count <= 16 else np.uint32
    bits = np.zeros((*masks.shape[:-1], 1), dtype)
    for k in range(count):
        bits[..., 0] |= masks[..., k].astype(dtype) << dtype(k)
    return bits
