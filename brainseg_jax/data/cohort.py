"""The prepared dataset in memory: uint8 arrays, who each slice belongs to, and the normalization constants."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from scipy.sparse import csr_array

from brainseg_jax.data import normalization as norm
from brainseg_jax.data.prepared import quiet_tfds, read_summary
from brainseg_jax.errors import InputError

NATIVE_SIZE = 256  # pixels, of every slice in the dataset


@dataclass(frozen=True, eq=False)
class Cohort:
    """All slices of all patients, in order of patient and slice number.

    Attributes:
      images: [N, S, S, 3] uint8, channels pre-contrast, FLAIR, post-contrast, at the size asked for.
      masks: [N, S, S, 1] uint8 in {0, 1}, 1 is tumor, at the size asked for.
      native_masks: [N, 256, 256, 1] uint8 in {0, 1}; `masks` itself where that is the size asked for.
      slice_numbers: [N] int32, the number in the file name, from 1.
      patient_index: [N] int32, place of the slice's patient in `patients`.
      patients: Case ids, P of them.
      institutions: Institution of each patient.
      grades: Code of data.csv of each patient, -1 where it is missing.
      normalization: Constants, each float32 [P, 3], fitted on the native volumes.
      fingerprint: Of the prepared dataset, so that a run can name its data.
    """

    images: np.ndarray
    masks: np.ndarray
    native_masks: np.ndarray
    slice_numbers: np.ndarray
    patient_index: np.ndarray
    patients: tuple[str, ...]
    institutions: tuple[str, ...]
    grades: tuple[int, ...]
    normalization: norm.Normalization
    fingerprint: str

    @cached_property
    def tumor_slices(self) -> np.ndarray:
        """Which slices hold tumor at native size, [N] bool."""
        return self.native_masks.any(axis=(1, 2, 3))

    def slices_of(self, patients: Iterable[str]) -> np.ndarray:
        """Indices of all slices of these patients, ascending, int32 [n].

        Raises:
          InputError: A patient is not in the cohort.
        """
        wanted = set(patients)
        unknown = sorted(wanted.difference(self.patients))
        if unknown:
            raise InputError(f"not in the data: {', '.join(unknown)}; prepare the data anew or correct the split")
        places = [place for place, patient in enumerate(self.patients) if patient in wanted]
        return np.flatnonzero(np.isin(self.patient_index, places)).astype(np.int32)

    def tumor_fraction(self, patients: Iterable[str]) -> float:
        """Fraction of these patients' native pixels that are tumor; class weights are made from it.

        Raises:
          InputError: A patient is not in the cohort.
        """
        return float(self.native_masks[self.slices_of(patients)].mean(dtype=np.float64))


def load_cohort(dataset_folder: Path, *, image_size: int, normalization: str) -> Cohort:
    """Reads a dataset that `brainseg_jax.data.lgg.prepare` made.

    Args:
      dataset_folder: The folder that `prepare` returned.
      image_size: Height and width of the slices in memory, 16 to 256 pixels.
      normalization: A name in `normalization.METHODS`.

    Raises:
      InputError: An argument is out of range, the folder holds no dataset, or a mask has values other than 0 and 1.
    """
    if not 16 <= image_size <= NATIVE_SIZE:
        raise InputError(f"data.image_size={image_size}: give 16 to {NATIVE_SIZE} pixels")
    fingerprint = read_summary(dataset_folder).fingerprint
    with quiet_tfds():
        (source,) = tfds.builder_from_directory(dataset_folder).as_data_source().values()
    native_masks = np.empty((len(source), NATIVE_SIZE, NATIVE_SIZE, 1), np.uint8)
    images = np.empty((len(source), image_size, image_size, 3), np.uint8)
    masks = native_masks if image_size == NATIVE_SIZE else np.empty((len(source), image_size, image_size, 1), np.uint8)
    slice_numbers, patient_index, institutions, grades, constants = [], [], {}, [], []
    for patient, group in groupby(_records(source, dataset_folder), key=lambda record: _text(record["patient"])):
        records = list(group)
        volume, volume_masks = (np.stack([record[name] for record in records]) for name in ("image", "mask"))
        if volume_masks.max() > 1:
            raise InputError(f"{dataset_folder}: a mask of {patient} has values other than 0 and 1; prepare it again")
        part = slice(len(slice_numbers), len(slice_numbers) + len(records))
        native_masks[part] = volume_masks
        images[part] = resize_images(volume, image_size)
        if masks is not native_masks:
            masks[part] = resize_masks(volume_masks, image_size)
        slice_numbers += [int(record["slice"]) for record in records]
        patient_index += [len(institutions)] * len(records)
        institutions[patient] = _text(records[0]["institution"])
        grades.append(int(records[0]["grade"]))
        constants.append(norm.fit(volume, normalization))
    return Cohort(
        images=images,
        masks=masks,
        native_masks=native_masks,
        slice_numbers=np.array(slice_numbers, np.int32),
        patient_index=np.array(patient_index, np.int32),
        patients=tuple(institutions),
        institutions=tuple(institutions.values()),
        grades=tuple(grades),
        normalization=norm.Normalization(*(np.stack(values) for values in zip(*constants, strict=True))),
        fingerprint=fingerprint,
    )


def _records(source: Sequence[dict], dataset_folder: Path) -> Iterator[dict]:
    """The records of a set; the many errors that its readers raise on a damaged file become one in words."""
    try:
        yield from source
    except Exception as error:
        raise InputError(f"{dataset_folder}: damaged ({error}). Delete this folder and prepare again.") from error


def native_images(dataset_folder: Path, indices: np.ndarray) -> np.ndarray:
    """The scans of a few slices as they were given, [n, 256, 256, 3] uint8; `indices` [n] as in the cohort."""
    with quiet_tfds():
        (source,) = tfds.builder_from_directory(dataset_folder).as_data_source().values()
    return np.stack([source[int(index)]["image"] for index in indices])


def resize_images(images: np.ndarray, size: int) -> np.ndarray:
    """Anti-aliased: a triangle as wide as two output pixels, centers of pixels at half; [n, H, W, 3] uint8."""
    if images.shape[1:3] == (size, size):
        return images
    resized = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image) for image in resized])


def resize_masks(masks: np.ndarray, size: int) -> np.ndarray:
    """An output pixel is tumor where at least half of its area is; [n, H, H, 1] uint8 in {0, 1}."""
    native = masks.shape[1]
    edges = np.arange(size + 1) * (native / size)
    pixels = np.arange(native)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = csr_array(overlap.clip(0) * (size / native))  # [size, native], share of each input row
    resized = np.zeros((len(masks), size, size, 1), np.uint8)
    for index in np.flatnonzero(masks.any(axis=(1, 2, 3))):
        rows = weights @ masks[index, :, :, 0]
        covered = (weights @ rows.T).T
        resized[index, :, :, 0] = covered >= 0.5 - 1e-9  # exactly half counts as tumor, whatever the rounding
    return resized


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
