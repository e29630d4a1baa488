"""What lies prepared in a data folder: `DATA_DIR/<dataset>/<config>/<version>/`, as TFDS lays it out."""

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
# Counted in the Kaggle set, version 2; the paper and the page state the 110 patients and their institutions.
PUBLISHED_PATIENTS = 110
PUBLISHED_SLICES = 3929
PUBLISHED_TUMOR_SLICES = 1373
PUBLISHED_TUMOR_FRACTION = 0.0103  # of pixels
PUBLISHED_INSTITUTIONS = {"DU": 45, "HT": 34, "CS": 16, "FG": 14, "EZ": 1}  # patients
Spread = tuple[tuple[float, float, float], ...]  # along slices, rows and columns the minimum, median and maximum


@dataclasses.dataclass(frozen=True)
class TargetCounts:
    """How much of a target is in a cohort.

    Attributes:
      name: of the target.
      labels: the values that belong to it.
      cases: that have some of it.
      voxels: of all cases.
      milliliters: of all cases; None where the spacing of a case is not known.
      median_milliliters: of a case.
    """

    name: str
    labels: tuple[int, ...]
    cases: int
    voxels: int
    milliliters: float | None
    median_milliliters: float | None


@dataclasses.dataclass(frozen=True)
class Contents:
    """What was found in the files of a cohort.

    Attributes:
      kind: the format, in words.
      notes: what was inferred, repaired or replaced.
      targets: in the order of the description.
      sizes: voxels along slices, rows and columns.
      spacings: millimeters between them, of the cases where it is known.
      without_spacing: cases where it is not.
      ranges: minimum and maximum in the files by channel, before the values are mapped to 8 bits.
      replaced: in how many cases a channel is replaced by the stand-in.
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
    """The metadata kept beside a prepared set.

    Attributes:
      fingerprint: of the content, see `validation.read_source` and `cohort_check.check_cohort`.
      source: as the user gave it.
      patients: how many.
      slices: how many.
      target_slices: slices with a voxel of any target.
      target_fraction: of pixels, that belong to any target.
      groups: patients of each group, such as an institution.
      cases: how many; a patient can have several.
      description: channels and targets.
      contents: of a cohort; None of the LGG data.
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
    def is_published(self) -> bool:
        """Whether all patients come from the institutions of the Kaggle set, which synthetic ones never do."""
        return self.contents is None and self.groups.keys() <= PUBLISHED_INSTITUTIONS.keys()

    @property
    def is_whole(self) -> bool:
        """Whether it is the published set: all patients, slices and tumor slices."""
        published = (PUBLISHED_PATIENTS, PUBLISHED_SLICES, PUBLISHED_TUMOR_SLICES)
        return self.is_published and (self.patients, self.slices, self.target_slices) == published

    def to_metadata(self) -> dict[str, Any]:
        """The inverse of `_of_metadata`: plain values, under the names that the first release wrote for LGG."""
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


def _of_metadata(content: dict[str, Any]) -> Summary:
    if "contents" not in content:
        old = {"target_slices": "tumor_slices", "target_fraction": "tumor_fraction", "groups": "institutions"}
        same = {name: content[name] for name in ("fingerprint", "source", "patients", "slices")}
        return Summary(**same, **{new: content[name] for new, name in old.items()}, cases=content["patients"])
    found = dict(content["contents"])
    targets = [TargetCounts(**{**each, "labels": tuple(each["labels"])}) for each in found["targets"]]
    found |= {"notes": tuple(found["notes"]), "targets": tuple(targets)}
    found |= {name: tuple(tuple(each) for each in found[name]) for name in ("sizes", "spacings")}
    found["ranges"] = {name: tuple(each) for name, each in found["ranges"].items()}
    description = Description.from_json(content["description"])
    return Summary(**{**content, "description": description, "contents": Contents(**found)})


def is_prepared(folder: Path) -> bool:
    """Whether `folder` is `<dataset>/<config>/<version>` and holds a whole set.

    TFDS gives a folder its name only when everything is in it.
    """
    parents = folder.resolve().parents
    return len(parents) > 1 and parents[1].name in VERSIONS and (folder / "dataset_info.json").is_file()


def read_summary(folder: Path) -> Summary:
    """Reads the metadata of a prepared set, of either dataset.

    Raises:
      InputError: the folder was damaged after it was prepared.
    """
    try:
        with quiet_tfds():
            return _of_metadata(dict(tfds.builder_from_directory(folder).info.metadata))
    except Exception as error:  # JSON, protobuf and missing keys: each means a damaged folder
        raise damaged(folder, error) from error


def damaged(folder: Path, reason: object) -> InputError:
    """The error for a set that cannot be read any more."""
    return InputError(f"{folder}: damaged ({reason}). Delete this folder and prepare again.")


def list_prepared(data_dir: Path, *datasets: str) -> dict[Path, Summary]:
    """The sets that lie prepared in `data_dir`, by folder: of these datasets, or of all."""
    found = {}
    for dataset in datasets or VERSIONS:
        for folder in sorted(data_dir.glob(f"{dataset}/*/{VERSIONS[dataset]}")):
            if is_prepared(folder):
                try:
                    found[folder] = read_summary(folder)
                except InputError as error:
                    logging.warning("left out: %s", error)
    return found


def write(builder: type[tfds.core.DatasetBuilder], config: tfds.core.BuilderConfig, root: Path, folder: Path) -> None:
    """Writes a set, all or nothing; of two processes that write the same one, the second uses that of the first.

    Args:
      builder: of the dataset.
      config: holds what is written.
      root: the data folder.
      folder: where the set lies then, `root/<dataset>/<config.name>/<version>`.

    Raises:
      InputError: the folder cannot be written to, or holds what is not a whole set.
    """
    try:
        with quiet_tfds():
            builder(data_dir=root, config=config).download_and_prepare(file_format="array_record")
    except (OSError, RuntimeError) as error:  # array_record reports what the disk does as a RuntimeError
        if is_prepared(folder):
            return
        raise InputError(f"{root}: cannot be written to ({explain(error, 'another data_dir')})") from error
    if not is_prepared(folder):
        raise InputError(f"{folder}: lies there but is not whole. Delete this folder and prepare again.")


def open_data_folder(given: str | Path | None) -> Path:
    """The folder of prepared data; what killed processes left in it is removed.

    Args:
      given: None or empty is TFDS's own: `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Raises:
      InputError: it cannot be used, or there is no folder for temporary files, which TFDS and the phantom need.
    """
    root = _data_folder(given)
    _remove_stale(root)
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise InputError(f"{error.strerror}; set TMPDIR to a folder that can be written to") from error
    return root


def _data_folder(given: str | Path | None) -> Path:
    if given:
        return user_path(str(given), "data_dir").absolute()
    default = tfds.core.constants.get_default_data_dir()
    try:
        return user_path(str(default), "TFDS_DATA_DIR").absolute()
    except InputError as error:
        raise InputError(
            f"the folder of prepared data is by default {default}, which cannot be used ({error}); name a folder with "
            "--data_dir (in main: --config.data.dir) or in the environment variable TFDS_DATA_DIR"
        ) from error


def _remove_stale(data_dir: Path) -> None:
    """Removes what killed processes left unfinished. A day's age keeps clear of a process that is still at work."""
    for dataset in VERSIONS:
        for folder in data_dir.glob(f"{dataset}/*/incomplete.*"):
            if time.time() - folder.stat().st_mtime > STALE:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def quiet_tfds() -> Iterator[None]:
    """Keeps from the console what TFDS logs and prints about its own workings; errors still show."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
