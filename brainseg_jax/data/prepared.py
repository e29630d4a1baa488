"""The prepared sets in a data folder: `DATA_DIR/<dataset>/<config>/<version>/`, the layout of TFDS."""

import dataclasses
import io
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from brainseg_jax.errors import InputError
from brainseg_jax.files import explain, user_path
from brainseg_jax.scans.description import LGG, Description

DATASET = "lgg_mri"
COHORT_DATASET = "mri_cohort"
VERSIONS = {DATASET: "1.0.0", COHORT_DATASET: "1.0.0"}
STALE = 24 * 3600  # seconds after which the unfinished folder of a killed process is removed
# Counted in version 2 of the Kaggle set. The paper and the page confirm the 110 patients and their institutions.
PUBLISHED_PATIENTS = 110
PUBLISHED_SLICES = 3929
PUBLISHED_TUMOR_SLICES = 1373
PUBLISHED_TUMOR_FRACTION = 0.0103  # of pixels
PUBLISHED_INSTITUTIONS = {"DU": 45, "HT": 34, "CS": 16, "FG": 14, "EZ": 1}  # patients
Spread = tuple[tuple[float, float, float], ...]  # minimum, median and maximum along slices, rows and columns


@dataclasses.dataclass(frozen=True)
class TargetCounts:
    """Amount of a target in a cohort.

    Attributes:
      name: of the target.
      labels: label values of the target.
      cases: number of cases with the target.
      voxels: number of voxels in all cases.
      milliliters: volume in all cases; None if the spacing of a case is unknown.
      median_milliliters: median volume of a case.
    """

    name: str
    labels: tuple[int, ...]
    cases: int
    voxels: int
    milliliters: float | None
    median_milliliters: float | None


@dataclasses.dataclass(frozen=True)
class Contents:
    """Facts about the files of a cohort.

    Attributes:
      kind: name of the format.
      notes: messages on what was inferred, repaired or replaced.
      targets: in the order of the description.
      sizes: voxels along slices, rows and columns.
      spacings: millimeters along the same axes, of the cases with a known spacing.
      without_spacing: number of cases without a spacing.
      ranges: minimum and maximum of each channel in the files, before the mapping to 8 bits.
      replaced: number of cases in which a channel is replaced, by channel.
    """

    kind: str
    notes: tuple[str, ...]
    targets: tuple[TargetCounts, ...]
    sizes: Spread
    spacings: Spread
    without_spacing: int
    ranges: Mapping[str, tuple[float, float]]
    replaced: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The metadata that are stored with a prepared set.

    Attributes:
      fingerprint: of the content, see `validation.read_source` and `cohort_check.check_cohort`.
      source: as the user gave it.
      patients: number of patients.
      slices: number of slices.
      target_slices: number of slices with a voxel of any target.
      target_fraction: fraction of the pixels that belong to any target.
      groups: number of patients in each group, such as an institution.
      cases: number of cases; a patient can have several.
      description: channels and targets.
      contents: of a cohort; None for the LGG data.
    """

    fingerprint: str
    source: str
    patients: int
    slices: int
    target_slices: int
    target_fraction: float
    groups: dict[str, int]
    cases: int
    description: Description = LGG
    contents: Contents | None = None

    @property
    def has_published_groups(self) -> bool:
        """Whether all patients come from institutions of the Kaggle set. Synthetic patients never do."""
        return self.contents is None and self.groups.keys() <= PUBLISHED_INSTITUTIONS.keys()

    @property
    def is_whole(self) -> bool:
        """Whether this is the whole published set, by its numbers of patients, slices and tumor slices."""
        published = (PUBLISHED_PATIENTS, PUBLISHED_SLICES, PUBLISHED_TUMOR_SLICES)
        return self.has_published_groups and (self.patients, self.slices, self.target_slices) == published

    def to_metadata(self) -> dict[str, Any]:
        """The inverse of `_from_metadata`, as plain values. The LGG data keep the keys of the first release."""
        if self.contents is None:
            return {
                "fingerprint": self.fingerprint,
                "source": self.source,
                "patients": self.patients,
                "slices": self.slices,
                "tumor_slices": self.target_slices,
                "tumor_fraction": self.target_fraction,
                "institutions": self.groups,
            }
        return dataclasses.asdict(self) | {"description": self.description.to_json()}


def _from_metadata(content: dict[str, Any]) -> Summary:
    if "contents" not in content:
        renamed = {"target_slices": "tumor_slices", "target_fraction": "tumor_fraction", "groups": "institutions"}
        unchanged = {name: content[name] for name in ("fingerprint", "source", "patients", "slices")}
        return Summary(**unchanged, **{new: content[name] for new, name in renamed.items()}, cases=content["patients"])
    contents = dict(content["contents"])
    targets = [TargetCounts(**{**each, "labels": tuple(each["labels"])}) for each in contents["targets"]]
    contents |= {"notes": tuple(contents["notes"]), "targets": tuple(targets)}
    contents |= {name: tuple(tuple(each) for each in contents[name]) for name in ("sizes", "spacings")}
    contents["ranges"] = {name: tuple(each) for name, each in contents["ranges"].items()}
    description = Description.from_json(content["description"])
    return Summary(**{**content, "description": description, "contents": Contents(**contents)})


def is_prepared(folder: Path) -> bool:
    """Whether `folder` is `<dataset>/<config>/<version>` and contains a complete set.

    TFDS renames the folder only after it is complete.
    """
    parents = folder.resolve().parents
    return len(parents) > 1 and parents[1].name in VERSIONS and (folder / "dataset_info.json").is_file()


def read_summary(folder: Path) -> Summary:
    """Reads the metadata of a prepared set of either dataset.

    Raises:
      InputError: the folder is damaged.
    """
    try:
        with quiet_tfds():
            return _from_metadata(dict(tfds.builder_from_directory(folder).info.metadata))
    except Exception as error:  # of JSON, protobuf or a missing key: the folder is damaged
        raise damaged(folder, error) from error


def damaged(folder: Path, reason: object) -> InputError:
    """The error for a prepared set that cannot be read."""
    return InputError(f"{folder}: damaged ({reason}). Delete this folder and prepare again.")


def list_prepared(data_dir: Path, *datasets: str) -> dict[Path, Summary]:
    """The prepared sets in `data_dir`, by folder. Without `datasets`, those of all datasets."""
    summaries = {}
    for dataset in datasets or VERSIONS:
        for folder in sorted(data_dir.glob(f"{dataset}/*/{VERSIONS[dataset]}")):
            if is_prepared(folder):
                try:
                    summaries[folder] = read_summary(folder)
                except InputError as error:
                    logging.warning("ignored: %s", error)
    return summaries


def write(builder: type[tfds.core.DatasetBuilder], config: tfds.core.BuilderConfig, root: Path, folder: Path) -> None:
    """Writes a set, completely or not at all. If two processes write the same set, the second uses the first's.

    Args:
      builder: of the dataset.
      config: contains the cases to write.
      root: the data folder.
      folder: final folder of the set, `root/<dataset>/<config.name>/<version>`.

    Raises:
      InputError: the folder is not writable, or contains an incomplete set.
    """
    try:
        with quiet_tfds():
            builder(data_dir=root, config=config).download_and_prepare(file_format="array_record")
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError for disk errors
        if is_prepared(folder):
            return
        raise InputError(f"{root}: cannot be written to ({explain(error, 'another data_dir')})") from error
    if not is_prepared(folder):
        raise InputError(f"{folder}: exists but is incomplete. Delete this folder and prepare again.")


def open_data_folder(data_dir: str | Path | None) -> Path:
    """Returns the folder of prepared data, after it removes stale files of killed processes.

    Args:
      data_dir: None or empty: the default of TFDS, `TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Raises:
      InputError: the folder cannot be used, or there is no temporary folder, which TFDS and the phantom need.
    """
    root = _data_folder(data_dir)
    _remove_stale(root)
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise InputError(f"{error.strerror}; set TMPDIR to a folder that can be written to") from error
    return root


def _data_folder(data_dir: str | Path | None) -> Path:
    if data_dir:
        return user_path(str(data_dir), "data_dir").absolute()
    default = tfds.core.constants.get_default_data_dir()
    try:
        return user_path(str(default), "TFDS_DATA_DIR").absolute()
    except InputError as error:
        raise InputError(
            f"the default folder of prepared data, {default}, cannot be used ({error}); set another folder with "
            "--data_dir (in main: --config.data.dir) or with the environment variable TFDS_DATA_DIR"
        ) from error


def _remove_stale(data_dir: Path) -> None:
    """Removes unfinished folders of killed processes. The age limit of a day protects running processes."""
    for dataset in VERSIONS:
        for folder in data_dir.glob(f"{dataset}/*/incomplete.*"):
            if time.time() - folder.stat().st_mtime > STALE:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def quiet_tfds() -> Iterator[None]:
    """Suppresses the log messages and the output of TFDS, except errors."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
