"""Reads a prepared set back: one labelled volume a case, from either dataset."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from brainseg_jax.data.prepared import damaged, quiet_tfds, read_summary
from brainseg_jax.errors import InputError
from brainseg_jax.scans.volume import Volume


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledCase:
    """One scan of a patient.

    Attributes:
      name: of the case, one of its kind in the cohort.
      patient: whose scan it is; a patient can have several.
      group: such as the institution; "" where it is not known.
      volume: with labels.
      grade: code of the LGG data's data.csv, -1 where it is missing; None in other cohorts.
    """

    name: str
    patient: str
    group: str
    volume: Volume
    grade: int | None = None


def read_cases(dataset_folder: Path) -> Iterator[LabelledCase]:
    """The cases of a prepared set, in its order; one case at a time is in memory.

    Args:
      dataset_folder: as `prepare` returned it, of `lgg_mri` or `mri_cohort`.

    Raises:
      InputError: the folder holds no whole set: it is damaged, slices are missing, or labels are not those described.
    """
    summary = read_summary(dataset_folder)
    description = summary.description
    labels = {0, description.ignore or 0, *(label for target in description.targets for label in target.labels)}
    of_lgg = summary.contents is None
    key = "patient" if of_lgg else "case"
    slices = 0
    for name, group in groupby(_records(dataset_folder), key=lambda record: _text(record[key])):
        records = list(group)
        slices += len(records)
        try:
            case = (_of_lgg if of_lgg else _of_cohort)(name, records)
        except Exception as error:  # a record without a key, slices of several sizes
            raise damaged(dataset_folder, f"case {name}: {error}") from error
        if wrong := set(np.flatnonzero(np.bincount(case.volume.labels.ravel())).tolist()) - labels:
            raise damaged(dataset_folder, f"labels {', '.join(map(str, sorted(wrong)))} in case {name}, not described")
        yield case
    if slices != summary.slices:
        raise damaged(dataset_folder, f"{slices} slices; its metadata list {summary.slices}")


def _records(dataset_folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a set; the many errors that its readers raise on a damaged file become one in words."""
    try:
        with quiet_tfds():
            (source,) = tfds.builder_from_directory(dataset_folder).as_data_source().values()
        yield from source
    except InputError:
        raise
    except Exception as error:
        raise damaged(dataset_folder, error) from error


def _of_lgg(name: str, records: Sequence[dict[str, Any]]) -> LabelledCase:
    volume = Volume(_stack(records, "image"), None, _numbers(records), labels=_stack(records, "mask")[..., 0])
    patient = name.rpartition("_")[0]  # what follows is the date
    return LabelledCase(name, patient, _text(records[0]["institution"]), volume, int(records[0]["grade"]))


def _of_cohort(name: str, records: Sequence[dict[str, Any]]) -> LabelledCase:
    spacing = tuple(float(length) for length in records[0]["spacing"])
    volume = Volume(
        _stack(records, "image"),
        spacing if any(spacing) else None,
        _numbers(records),
        labels=_stack(records, "labels")[..., 0],
    )
    return LabelledCase(name, _text(records[0]["patient"]), _text(records[0]["group"]), volume)


def _stack(records: Iterable[dict[str, Any]], key: str) -> np.ndarray:
    return np.stack([record[key] for record in records])


def _numbers(records: Iterable[dict[str, Any]]) -> tuple[int, ...]:
    return tuple(int(record["slice"]) for record in records)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
