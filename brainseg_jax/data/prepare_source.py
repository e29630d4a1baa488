"""`prepare`: from whatever a user has to a prepared set; `check` does everything but write."""

from pathlib import Path

from absl import logging

from brainseg_jax.data import lgg, mri_cohort, prepared, source_index
from brainseg_jax.data.cohort_check import CheckedCohort, check_cohort
from brainseg_jax.data.formats import described
from brainseg_jax.data.formats.recognize import list_cohort
from brainseg_jax.data.progress import SliceProgress, slice_progress
from brainseg_jax.data.source import is_kaggle
from brainseg_jax.files import user_path
from brainseg_jax.scans.walk import list_passed_over


def prepare(source: str, data_dir: str | Path | None, *, progress: bool = True) -> Path:
    """Prepares a source as a TFDS dataset, unless the same content already lies there.

    Everything is checked before anything is written, and a set gets its name only when it is whole: an interrupted run
    leaves nothing that looks finished, and of two processes that prepare the same content one uses the other's.

    Args:
      source: a folder of labelled scans in one of the layouts of `data.formats`; a set that is prepared already, as
        this function returned it; or the LGG data, `kaggle` or a phantom, see `lgg.prepare`.
      data_dir: the folder of TFDS datasets; None is TFDS's own: `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      progress: whether to show a progress bar.

    Returns:
      The folder of the prepared set, `data_dir/<dataset>/<config>/<version>`.

    Raises:
      InputError: an unknown source, bad data (all faults are listed), no network, or a data folder that cannot be
        written to.
    """
    path = _folder_of_cohort(source)
    if path is None:
        return lgg.prepare(source, data_dir, progress=progress)
    if prepared.is_prepared(path):
        prepared.read_summary(path)  # raises where it is damaged
        return path.resolve()
    root = prepared.open_data_folder(data_dir)
    signature = source_index.signature_of(path)
    if folder := source_index.find(root, path, signature):
        logging.info("%s: unchanged since it was prepared in %s", path, folder)
        return folder
    with slice_progress(shown=progress, unit="cases") as bar:
        cohort = _check(path, bar)
        folder = mri_cohort.folder_of(root, cohort)
        if not prepared.is_prepared(folder):
            bar.start("writing ", len(cohort.cases))
            mri_cohort.write(cohort, root, on_case=bar.advance)
    source_index.remember(root, path, signature, folder)
    return folder


def check(source: str, *, progress: bool = True) -> prepared.Summary:
    """Checks a source as `prepare` does, and writes nothing.

    Raises:
      InputError: as `prepare` raises it.
    """
    path = _folder_of_cohort(source)
    if path is None:
        return lgg.check(source, progress=progress)
    if prepared.is_prepared(path):
        return prepared.read_summary(path)
    with slice_progress(shown=progress, unit="cases") as bar:
        return _check(path, bar).summary


def _folder_of_cohort(source: str) -> Path | None:
    """The path of a source that is not the LGG data, nor a word for it, nor missing."""
    if not source or source == lgg.KAGGLE or lgg.PHANTOM_SOURCE.fullmatch(source):
        return None
    path = user_path(source, "source")
    if not path.is_dir() or (is_kaggle(path) and not (path / described.NAME).exists()):
        return None
    return path.absolute()


def _check(path: Path, bar: SliceProgress) -> CheckedCohort:
    listing = list_cohort(path)
    logging.info("%s: %s, %d cases", path, listing.kind, len(listing.cases))
    for note in listing.notes:
        logging.info("  %s", note)
    for line in list_passed_over(listing.passed_over, path):
        logging.warning("passed over: %s", line)
    bar.start("checking", len(listing.cases))
    return check_cohort(listing, str(path), on_case=bar.advance)
