"""The TFDS dataset `mri_cohort`: labelled scans of any cohort, one record per axial slice.

A prepared set is named by the number of its cases, its content and its description (`200_cases_4102a302_9f3ec1`). So
different cohorts, or different descriptions of one cohort, never mix in a data folder.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from brainseg_jax.data import prepared
from brainseg_jax.data.ahead import map_ahead
from brainseg_jax.data.cohort_check import CheckedCase, CheckedCohort, digest_of
from brainseg_jax.data.formats.listing import CaseFiles
from brainseg_jax.data.labelled import read_case
from brainseg_jax.errors import InputError
from brainseg_jax.scans.volume import Volume

SPLIT = "slices"
_SHARD = 128 * 2**20  # bytes; a case is never divided

_DESCRIPTION = """\
Labelled scans of a cohort. One record is one axial slice; the slices of a case are consecutive records, from foot to
crown. Each channel is mapped to 8 bits separately. The metadata contain the description of channels and targets.
"""


@dataclasses.dataclass(eq=False)
class MriCohortConfig(tfds.core.BuilderConfig):
    """The set to write: its name, its cases, and its summary."""

    cases: tuple[CheckedCase, ...] = dataclasses.field(default=(), repr=False)
    summary: prepared.Summary | None = dataclasses.field(default=None, repr=False)
    read: Callable[[CaseFiles], Volume] | None = dataclasses.field(default=None, repr=False)
    on_case: Callable[[], None] = dataclasses.field(default=lambda: None, repr=False)


class MriCohort(tfds.core.ShardBasedBuilder):
    """Writes one record per slice, shard by shard. As in `LggMri`, the one split is not a training set."""

    VERSION = tfds.core.Version(prepared.VERSIONS[prepared.COHORT_DATASET])
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        summary = getattr(self.builder_config, "summary", None)
        channels = summary.description.channels if summary else ()
        # encoding='bytes': reading is 2 to 10 times faster than with the default.
        pixels = partial(tfds.features.Tensor, dtype=np.uint8, encoding="bytes")
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": pixels(shape=(None, None, len(channels) or None), doc=", ".join(channels)),
                    "labels": pixels(shape=(None, None, 1), doc="label map; 0 is background"),
                    "case": tfds.features.Text(),
                    "patient": tfds.features.Text(),
                    "group": tfds.features.Text(doc="such as the institution; empty if unknown"),
                    "slice": tfds.features.Scalar(np.int32, doc="as numbered in the files"),
                    "spacing": tfds.features.Tensor(
                        shape=(3,), dtype=np.float32, doc="mm between slices, rows and columns; 0 if unknown"
                    ),
                }
            ),
            supervised_keys=("image", "labels"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(summary.to_metadata()) if summary else None,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[tuple[str, dict]]]]]:
        del dl_manager  # no downloads
        cases = getattr(self.builder_config, "cases", ())
        if not cases:
            raise InputError(
                "mri_cohort needs the name of a prepared set, as in mri_cohort/200_cases_4102a302_9f3ec1. "
                "Prepare one with: python -m brainseg_jax.data.prepare --source=FOLDER"
            )
        shards: list[list[CheckedCase]] = [[]]
        for case in cases:
            if shards[-1] and sum(each.size for each in shards[-1]) + case.size > _SHARD:
                shards.append([])
            shards[-1].append(case)
        return {SPLIT: [partial(self._records, shard) for shard in shards]}

    def _records(self, cases: list[CheckedCase]) -> Iterator[tuple[str, dict[str, Any]]]:
        read = partial(_read_again, read=self.builder_config.read)
        for case, volume in zip(cases, map_ahead(read, cases), strict=True):
            assert volume.labels is not None  # `check_cohort` refuses cases without a label map
            for number, image, labels in zip(volume.numbers, volume.voxels, volume.labels, strict=True):
                record = {
                    "image": image,
                    "labels": labels[..., np.newaxis],
                    "case": case.files.name,
                    "patient": case.files.patient,
                    "group": case.files.group,
                    "slice": number,
                    "spacing": np.array(volume.spacing or (0, 0, 0), np.float32),
                }
                yield f"{case.files.name}_{number}", record
                record.clear()  # TFDS keeps all records of a shard until it is written
            self.builder_config.on_case()


def folder_of(root: Path, cohort: CheckedCohort) -> Path:
    """The folder of the prepared set of a cohort in the data folder `root`; it may not exist yet."""
    summary = cohort.summary
    digest = hashlib.sha256(json.dumps(summary.description.to_json()).encode()).hexdigest()[:6]
    name = f"{summary.cases}_cases_{summary.fingerprint[:8]}_{digest}"
    return root / prepared.COHORT_DATASET / name / str(MriCohort.VERSION)


def write(
    cohort: CheckedCohort,
    root: Path,
    *,
    read: Callable[[CaseFiles], Volume] | None = None,
    on_case: Callable[[], None] = lambda: None,
) -> Path:
    """Writes a cohort as a set of `mri_cohort`, completely or not at all, and returns its folder.

    Args:
      cohort: as `check_cohort` returned it.
      root: the data folder.
      read: returns the labelled volume of a case; for cases that do not come from files. Default: `read_case`.
      on_case: called after each case.

    Raises:
      InputError: the data folder is not writable, or a case changed after it was checked.
    """
    folder = folder_of(root, cohort)
    summary = cohort.summary
    config = MriCohortConfig(
        name=folder.parent.name,
        description=f"{summary.cases} cases, prepared from {summary.source}",
        cases=cohort.cases,
        summary=summary,
        read=read or (lambda files: read_case(files, summary.description)[0]),
        on_case=on_case,
    )
    prepared.write(MriCohort, config, root, folder)
    return folder


def _read_again(case: CheckedCase, read: Callable[[CaseFiles], Volume]) -> Volume:
    volume = read(case.files)
    if digest_of(volume) != case.digest:
        raise InputError(f"case {case.files.name}: its files changed while it was prepared; prepare again")
    return volume
