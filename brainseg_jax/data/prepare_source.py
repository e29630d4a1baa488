"""`prepare` converts the user's data to a prepared set. `check` runs the same checks without writing."""

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
    """Prepares a source as a TFDS dataset, unless the same content is already prepared.

    All checks run before anything is written. A set gets its name only when it is complete, so an interrupted run never
    leaves a set that looks complete. If two processes prepare the same content, one of them uses the result of the
    other.

    Args:
      source: a folder of labelled scans in one of the layouts of `data.formats`; a prepared set, as this function
        returned it; or the LGG data, `kaggle` or a phantom, see `lgg.prepare`.
      data_dir: the folder of TFDS datasets; None: the default of TFDS, `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      progress: whether to show a progress bar.

    Returns:
      The folder of the prepared set, `data_dir/<dataset>/<config>/<version>`.

    Raises:
      InputError: unknown source, bad data (all faults are listed), no network, or a data folder that is not writable.
    """
    path = _folder_of_cohort(source)
    if path is None:
        return lgg.prepare(source, data_dir, progress=progress)
    if prepared.is_prepared(path):
        prepared.read_summary(path)  # raises if it is damaged
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
    """Checks a source as `prepare` does, but writes nothing.

    Raises:
      InputError: as `prepare` does.
    """
    path = _folder_of_cohort(source)
    if path is None:
        return lgg.check(source, progress=progress)
    if prepared.is_prepared(path):
        return prepared.read_summary(path)
    with slice_progress(shown=progress, unit="cases") as bar:
        return _check(path, bar).summary


def _folder_of_cohort(source: str) -> Path | None:
    """The folder of a source; None for the LGG data, `kaggle`, a phantom, or a path that does not exist."""
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
