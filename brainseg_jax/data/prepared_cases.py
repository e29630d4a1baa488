"""Reads a prepared set of either dataset, one labelled volume per case."""

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
      name: of the case, unique in the cohort.
      patient: name of the patient, who can have several cases.
      group: such as the institution; "" if unknown.
      volume: with labels.
      grade: the grade code in data.csv of the LGG data, -1 if missing; None for other cohorts.
    """

    name: str
    patient: str
    group: str
    volume: Volume
    grade: int | None = None


def read_cases(dataset_folder: Path) -> Iterator[LabelledCase]:
    """Yields the cases of a prepared set in their order. Only one case at a time is in memory.

    Args:
      dataset_folder: a set of `lgg_mri` or `mri_cohort`, as `prepare` returned it.

    Raises:
      InputError: the set is damaged, slices are missing, or labels are not in the description.
    """
    summary = read_summary(dataset_folder)
    description = summary.description
    labels = {0, description.ignore or 0, *(label for target in description.targets for label in target.labels)}
    is_lgg = summary.contents is None
    key = "patient" if is_lgg else "case"
    slices = 0
    for name, group in groupby(_records(dataset_folder), key=lambda record: _text(record[key])):
        records = list(group)
        slices += len(records)
        try:
            case = (_lgg_case if is_lgg else _cohort_case)(name, records)
        except Exception as error:  # such as a record without a key, or slices of several sizes
            raise damaged(dataset_folder, f"case {name}: {error}") from error
        assert case.volume.labels is not None
        if wrong := set(np.flatnonzero(np.bincount(case.volume.labels.ravel())).tolist()) - labels:
            raise damaged(dataset_folder, f"case {name} has undescribed labels {', '.join(map(str, sorted(wrong)))}")
        yield case
    if slices != summary.slices:
        raise damaged(dataset_folder, f"{slices} slices, but its metadata list {summary.slices}")


def _records(dataset_folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a set. Every error of the readers becomes an InputError."""
    try:
        with quiet_tfds():
            (source,) = tfds.builder_from_directory(dataset_folder).as_data_source().values()
        yield from source
    except InputError:
        raise
    except Exception as error:
        raise damaged(dataset_folder, error) from error


def _lgg_case(name: str, records: Sequence[dict[str, Any]]) -> LabelledCase:
    volume = Volume(_stack(records, "image"), None, _numbers(records), labels=_stack(records, "mask")[..., 0])
    patient = name.rpartition("_")[0]  # without the date
    return LabelledCase(name, patient, _text(records[0]["institution"]), volume, int(records[0]["grade"]))


def _cohort_case(name: str, records: Sequence[dict[str, Any]]) -> LabelledCase:
    between, row, column = (float(length) for length in records[0]["spacing"])
    spacing = (between, row, column)
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
