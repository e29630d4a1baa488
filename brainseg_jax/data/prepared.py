"""What lies prepared in a data folder: `DATA_DIR/lgg_mri/<config>/<version>/`, as TFDS lays it out."""

import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from brainseg_jax.errors import InputError

DATASET = "lgg_mri"
STALE = 24 * 3600  # seconds after which the unfinished folder of a killed process is removed
# Counted in the Kaggle set, version 2; the paper and the page state the 110 patients and their institutions.
PUBLISHED_PATIENTS = 110
PUBLISHED_SLICES = 3929
PUBLISHED_TUMOR_SLICES = 1373
PUBLISHED_TUMOR_FRACTION = 0.0103  # of pixels
PUBLISHED_INSTITUTIONS = {"DU": 45, "HT": 34, "CS": 16, "FG": 14, "EZ": 1}  # patients


@dataclass(frozen=True)
class Summary:
    """The metadata kept beside a prepared set."""

    fingerprint: str  # of the content, see `validation.read_source`
    source: str  # as the user gave it
    patients: int
    slices: int
    tumor_slices: int
    tumor_fraction: float  # of pixels
    institutions: dict[str, int]  # patients of each

    @property
    def is_published(self) -> bool:
        """Whether all patients come from the institutions of the Kaggle set, which made-up ones never do."""
        return self.institutions.keys() <= PUBLISHED_INSTITUTIONS.keys()

    @property
    def is_whole(self) -> bool:
        """Whether it is the published set: all patients, slices and tumor slices."""
        published = (PUBLISHED_PATIENTS, PUBLISHED_SLICES, PUBLISHED_TUMOR_SLICES)
        return self.is_published and (self.patients, self.slices, self.tumor_slices) == published


def is_prepared(folder: Path) -> bool:
    """Whether a set lies whole in `folder`: TFDS gives a folder its name only when everything is in it."""
    return (folder / "dataset_info.json").is_file()


def read_summary(folder: Path) -> Summary:
    """Reads the metadata of a prepared set.

    Raises:
      InputError: the folder was damaged after it was prepared.
    """
    try:
        with quiet_tfds():
            return Summary(**tfds.builder_from_directory(folder).info.metadata)
    except Exception as error:  # JSON, protobuf and missing keys: each means a damaged folder
        raise InputError(f"{folder}: damaged ({error}). Delete this folder and prepare again.") from error


def list_prepared(data_dir: Path, version: str) -> dict[Path, Summary]:
    """All sets of this version that lie prepared in `data_dir`, by folder."""
    found = {}
    for folder in sorted(data_dir.glob(f"{DATASET}/*/{version}")):
        if is_prepared(folder):
            try:
                found[folder] = read_summary(folder)
            except InputError as error:
                logging.warning("left out: %s", error)
    return found


def remove_stale(data_dir: Path) -> None:
    """Removes what killed processes left unfinished. A day's age keeps clear of a process that is still at work."""
    for folder in data_dir.glob(f"{DATASET}/*/incomplete.*"):
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
