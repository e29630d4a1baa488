"""Loads a prepared dataset as a `Cohort`, with the slices at the network's size in memory or in a file."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from brainseg_jax.data import normalization as norm
from brainseg_jax.data.canvas import Canvas
from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.prepared import read_summary
from brainseg_jax.data.prepared_cases import LabelledCase, read_cases
from brainseg_jax.data.progress import slice_progress
from brainseg_jax.data.residence import bytes_of_slices, max_slices
from brainseg_jax.data.slice_store import (
    FOLDER,
    SlicesInMemory,
    SlicesOnDisk,
    bits_type,
    damaged_store,
    read_index,
    write_slices,
)
from brainseg_jax.errors import InputError
from brainseg_jax.files import format_bytes
from brainseg_jax.scans.description import Description

IN_MEMORY, ON_DISK, NO_SLICES = "memory", "disk", "none"
FORMAT = 1  # of the file of slices; increase it when the resampled slices change, so that old files are not used


class _CaseFacts(NamedTuple):
    """The facts of a case that a cohort needs, except its slices and labels."""

    name: str
    patient: str
    group: str
    grade: int | None
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    numbers: tuple[int, ...]
    histograms: np.ndarray  # [C, 256], see `normalization.histograms`
    area: np.ndarray  # target pixels of each slice of each view
    fractions: np.ndarray


class _ImageSettings(NamedTuple):
    """The size, spacing and view of the network's images: the arguments of `load_cohort` of the same names."""

    image_size: int
    pixel_spacing: float
    view: str

    def canvases(self, shape: tuple[int, int, int], spacing: tuple[float, float, float] | None) -> tuple[Canvas, ...]:
        return Canvas.of_views(
            self.view, shape, spacing=spacing, image_size=self.image_size, pixel_spacing=self.pixel_spacing
        )


def load_cohort(
    dataset_folder: Path,
    *,
    image_size: int,
    normalization: str,
    pixel_spacing: float = 0.0,
    view: str = "axial",
    slices: str = IN_MEMORY,
    slices_dir: Path | None = None,
) -> Cohort:
    """Loads a prepared dataset.

    Args:
      dataset_folder: the folder that `prepare` returned.
      image_size: height and width of the network's images, in pixels.
      normalization: a name in `normalization.METHODS`.
      pixel_spacing: millimeters of a pixel of the network's images; 0: each slice is scaled to fill the image.
      view: a key of `canvas.VIEWS`, or "all" for the slices of all views.
      slices: IN_MEMORY: slices and label maps are in memory. ON_DISK: the first call for a dataset and these settings
        writes the slices at the network's size to a file in `slices_dir`; later calls use the file. NO_SLICES: for
        scoring; each case is read from the prepared data when it is needed.
      slices_dir: a folder; None: the data folder of the dataset.

    Raises:
      InputError: an argument is out of range, a slice does not fit the image, or the folder has no complete dataset.
    """
    settings = _ImageSettings(image_size, pixel_spacing, view)
    store = (slices_dir or dataset_folder.absolute().parents[2]) / FOLDER / _store_name(dataset_folder, settings)
    loaded: SlicesInMemory | SlicesOnDisk | None
    labels = None
    if slices == IN_MEMORY:
        loaded, cases, labels = _slices_in_memory(dataset_folder, settings)
    elif slices == ON_DISK:
        loaded, cases = _slices_on_disk(dataset_folder, settings, store)
    else:
        loaded, cases = None, _load_cases(dataset_folder, settings, store)
    summary = read_summary(dataset_folder)
    grades = tuple(case.grade for case in cases if case.grade is not None)
    ends = np.cumsum([case.shape[0] for case in cases])
    constants = [norm.fit_histograms(case.histograms, normalization) for case in cases]
    return Cohort(
        description=summary.description,
        slices=loaded,
        case_index=np.repeat(np.arange(len(cases), dtype=np.int32), [len(case.area) for case in cases]),
        target_area=np.concatenate([case.area for case in cases]),
        target_fractions=np.concatenate([case.fractions for case in cases]),
        cases=tuple(case.name for case in cases),
        patients=tuple(case.patient for case in cases),
        groups=tuple(case.group for case in cases),
        grades=grades if len(grades) == len(cases) else None,
        shapes=tuple(case.shape for case in cases),
        spacings=tuple(case.spacing for case in cases),
        numbers=tuple(case.numbers for case in cases),
        canvases=tuple(settings.canvases(case.shape, case.spacing) for case in cases),
        records=tuple(np.arange(end - case.shape[0], end) for case, end in zip(cases, ends, strict=True)),
        normalization=norm.Normalization(*(np.stack(values) for values in zip(*constants, strict=True))),
        labels=labels,
        fingerprint=summary.fingerprint,
        folder=dataset_folder,
    )


def _store_name(folder: Path, settings: _ImageSettings) -> str:
    """Name of the file of slices. It changes with the content, the description and the settings."""
    summary = read_summary(folder)
    key = json.dumps([FORMAT, summary.fingerprint, summary.description.to_json(), settings])
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    return f"{folder.parent.name}_{settings.view}_{settings.image_size}px_{digest}"


def _load_cases(folder: Path, settings: _ImageSettings, store: Path) -> list[_CaseFacts]:
    cases = _read_cases(store)
    return [case for case, _, _ in _walk(folder, settings, resized=False)] if cases is None else cases


def _slices_on_disk(folder: Path, settings: _ImageSettings, store: Path) -> tuple[SlicesOnDisk, list[_CaseFacts]]:
    summary = read_summary(folder)
    cases = _read_cases(store)
    if cases is None:
        size = bytes_of_slices(summary, settings.image_size, settings.view)
        logging.info("writing the slices once at the network's size, at most %s, to %s", format_bytes(size), store)
        facts: list[_CaseFacts] = []
        with slice_progress(shown=True) as bar:
            bar.start("slices at the network's size", summary.slices)

            def slices() -> Iterator[tuple[np.ndarray, np.ndarray]]:
                for case, views, _ in _walk(folder, settings):
                    facts.append(case)
                    yield from views
                    for _ in range(case.shape[0]):
                        bar.advance()

            write_slices(store, slices(), lambda: _to_columns(facts), expected_bytes=size)
        cases = _read_cases(store)
        assert cases is not None  # just written
    side, channels = settings.image_size, len(summary.description.channels)
    count = sum(len(case.area) for case in cases)
    bits = bits_type(summary.description)
    return SlicesOnDisk(store, shape=(side, side, channels), bits=bits, count=count), cases


def _slices_in_memory(
    folder: Path, settings: _ImageSettings
) -> tuple[SlicesInMemory, list[_CaseFacts], tuple[np.ndarray, ...]]:
    summary, side, count = read_summary(folder), settings.image_size, 0
    cases: list[_CaseFacts] = []
    labels: list[np.ndarray] = []
    # Filled in place, since joining parts would double the memory. Pages that are never written take none.
    limit = max_slices(summary, settings.view)
    images = np.empty((limit, side, side, len(summary.description.channels)), np.uint8)
    bits = np.empty((limit, side, side, 1), bits_type(summary.description))
    for case, views, case_labels in _walk(folder, settings):
        cases.append(case)
        labels.append(case_labels)
        for view_images, view_bits in views:
            images[count : count + len(view_images)] = view_images
            bits[count : count + len(view_images)] = view_bits
            count += len(view_images)
    return SlicesInMemory(images[:count], bits[:count]), cases, tuple(labels)


def _walk(
    folder: Path, settings: _ImageSettings, *, resized: bool = True
) -> Iterator[tuple[_CaseFacts, list[tuple[np.ndarray, np.ndarray]], np.ndarray]]:
    """Yields for each case its facts, images and target bits of each view if `resized`, and its label map."""
    description, too_large = read_summary(folder).description, []
    for case in read_cases(folder):
        volume, labels = case.volume, case.volume.labels
        assert labels is not None  # prepared cases are labelled
        try:
            canvases = settings.canvases(labels.shape, volume.spacing)
        except InputError as error:
            raise InputError(f"case {case.name} of {folder}: {error}, and prepare again") from None
        if (side := max(canvas.side for canvas in canvases)) > settings.image_size:
            too_large.append(f"{case.name} ({side})")
        if too_large:  # the message lists all cases that are too large
            continue
        views = [
            (canvas.to_network(volume.voxels), _pack(canvas, description, labels))
            for canvas in (canvases if resized else ())
        ]
        yield _facts_of(case, labels, canvases, description), views, labels
    if too_large:
        more = f" and {len(too_large) - 5} more" if len(too_large) > 5 else ""
        raise InputError(
            f"slices of {', '.join(too_large[:5])}{more} are larger than data.image_size={settings.image_size} at "
            f"{settings.pixel_spacing:g} mm per pixel; increase data.image_size or data.pixel_spacing"
        )


def _facts_of(
    case: LabelledCase, labels: np.ndarray, canvases: tuple[Canvas, ...], description: Description
) -> _CaseFacts:
    volume, area, fractions = case.volume, [], []
    for canvas in canvases:
        turned = np.moveaxis(labels, canvas.axis, 0)
        masks, counted = description.masks(turned), description.counted(turned)
        area.append(masks.any(axis=-1).sum(axis=(1, 2)))
        pixels = np.prod(masks.shape[1:3]) if counted is None else np.maximum(counted.sum(axis=(1, 2)), 1)[:, None]
        fractions.append(masks.sum(axis=(1, 2), dtype=np.float64) / pixels)
    return _CaseFacts(
        case.name,
        case.patient,
        case.group,
        case.grade,
        labels.shape,
        volume.spacing,
        volume.numbers,
        norm.histograms(volume.voxels),
        np.concatenate(area),
        np.concatenate(fractions),
    )


def _to_columns(cases: list[_CaseFacts]) -> dict[str, np.ndarray]:
    """The cases as arrays. `_from_columns` is the inverse."""
    return {
        "name": np.array([case.name for case in cases]),
        "patient": np.array([case.patient for case in cases]),
        "group": np.array([case.group for case in cases]),
        "grade": np.array([-2 if case.grade is None else case.grade for case in cases]),
        "shape": np.array([case.shape for case in cases]),
        "spacing": np.array([case.spacing or (0.0, 0.0, 0.0) for case in cases]),
        "numbers": np.concatenate([case.numbers for case in cases]),
        "histograms": np.stack([case.histograms for case in cases]),
        "slices": np.array([len(case.area) for case in cases]),
        "area": np.concatenate([case.area for case in cases]),
        "fractions": np.concatenate([case.fractions for case in cases]),
    }


def _read_cases(store: Path) -> list[_CaseFacts] | None:
    """The cases in a file of slices; None if there is no file."""
    columns = read_index(store)
    try:
        return None if columns is None else _from_columns(columns)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise damaged_store(store, error) from error


def _from_columns(columns: dict[str, np.ndarray]) -> list[_CaseFacts]:
    def parts(name: str, lengths: np.ndarray) -> list[np.ndarray]:
        return np.split(columns[name], np.cumsum(lengths)[:-1])

    return [
        _CaseFacts(
            name=name,
            patient=patient,
            group=group,
            grade=None if grade == -2 else grade,
            shape=tuple(shape),
            spacing=tuple(spacing) if any(spacing) else None,
            numbers=tuple(numbers.tolist()),
            histograms=histograms,
            area=area,
            fractions=fractions,
        )
        for name, patient, group, grade, shape, spacing, numbers, histograms, area, fractions in zip(
            *(columns[name].tolist() for name in ("name", "patient", "group", "grade", "shape", "spacing")),
            parts("numbers", columns["shape"][:, 0]),
            columns["histograms"],
            parts("area", columns["slices"]),
            parts("fractions", columns["slices"]),
            strict=True,
        )
    ]


def _pack(canvas: Canvas, description: Description, labels: np.ndarray) -> np.ndarray:
    """Packs labels [S, H, W] of a volume into target bits [n, side, side, 1], see `unpack_targets`."""
    masks = description.masks(labels)
    if description.ignore is not None:
        masks = np.concatenate([masks, (labels == description.ignore)[..., None]], axis=-1)
    masks = canvas.masks_to_network(masks)
    dtype = bits_type(description)
    bits = np.zeros((*masks.shape[:-1], 1), dtype)
    for k in range(masks.shape[-1]):
        bits[..., 0] |= masks[..., k].astype(dtype) << dtype.type(k)
    return bits
