"""Recognizes the format of a cohort, and lists it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from brainseg_jax.data.formats import described as toml
from brainseg_jax.data.formats import patients
from brainseg_jax.data.formats.bids import is_bids, list_bids
from brainseg_jax.data.formats.dataset_json import NAME, read_dataset_json
from brainseg_jax.data.formats.listing import Draft, Listing, few, finish
from brainseg_jax.data.formats.msd import list_msd
from brainseg_jax.data.formats.names import ending, images_of_mask, is_flat, is_image, is_volume, stem
from brainseg_jax.data.formats.nnunet import CHANNEL_NUMBER, list_nnunet
from brainseg_jax.data.formats.pairs import list_pairs
from brainseg_jax.data.formats.sequence_files import list_sequence_files, names_sequence
from brainseg_jax.errors import InputError
from brainseg_jax.files import explain
from brainseg_jax.scans.walk import PassedOver, new, walk

_FORMATS = (
    "nnU-Net raw (dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz)",
    "a task of the Medical Segmentation Decathlon (dataset.json, imagesTr/CASE.nii.gz, labelsTr/CASE.nii.gz)",
    "BraTS and similar (CASE_flair.nii.gz or CASE-t2f.nii.gz, CASE_seg.nii.gz, in one folder or one folder per case)",
    "pairs (X.png and X_mask.png, or images/ and masks/ with files of the same names; NIfTI, TIFF or PNG)",
    "BIDS (sub-01/anat/sub-01_FLAIR.nii.gz, derivatives/*/sub-01/anat/sub-01_dseg.nii.gz)",
    "files with any names, described in cohort.toml",
)


def list_cohort(path: Path) -> Listing:
    """Lists the cases of a cohort of labelled scans in any supported format; reads the pixels of at most one image.

    `cohort.toml` in the folder can describe files of any names, and override a format (see `described`).
    `patients.csv` in the folder assigns patients and groups, for any format.

    Args:
      path: folder of the cohort.

    Raises:
      InputError: the folder fits no format, or two of them; or lists all faults in names, JSON and tables.
    """
    if not path.is_dir():
        problem = "not a folder" if path.exists() else "no such folder"
        raise InputError(f"{path}: {problem}; give the folder of a cohort:{_formats()}")
    settings, passed_over = toml.read_cohort_toml(path), new()
    try:
        draft = _list(path, settings, passed_over)
    except OSError as error:
        raise InputError(f"{path}: {explain(error)}") from error
    read = {path / name for name in (toml.NAME, patients.NAME)}
    for reason, files in draft.passed_over.items():
        draft.passed_over[reason] = [file for file in files if file not in read]
    if not draft.faults or draft.cases:
        toml.apply(settings, draft)
    return finish(draft)


def _list(path: Path, settings: toml.CohortToml, passed_over: PassedOver) -> Draft:
    if settings.patterns:
        return toml.list_by_patterns(path, walk(path, passed_over), passed_over, settings)
    has_json = (path / NAME).is_file() or (path / "imagesTr").is_dir()
    if has_json and is_bids(path):
        raise InputError(
            f"{path}: both nnU-Net ({NAME} or imagesTr) and BIDS (sub-*/anat); give a folder with one cohort"
        )
    if has_json:
        return _list_dataset_json(path)
    files = walk(path, passed_over)
    if is_bids(path):
        return list_bids(path, files, passed_over, settings.labels)
    return _list_by_names(path, files, passed_over, settings)


def _list_dataset_json(path: Path) -> Draft:
    """nnU-Net or Decathlon, decided by the files, since the content of `dataset.json` is often mixed up."""
    if not (path / NAME).is_file():
        raise InputError(
            f'{path}: imagesTr, but no {NAME}; add it, as in {{"channel_names": {{"0": "T1"}}, "labels": '
            '{"background": 0, "tumor": 1}, "numTraining": 20, "file_ending": ".nii.gz"}'
        )
    content = read_dataset_json(path)
    labels = {stem(file) for file in (path / "labelsTr").glob("*") if is_image(file)}
    images = [stem(file) for file in (path / "imagesTr").glob("*") if is_image(file)]
    numbered = sum(CHANNEL_NUMBER.fullmatch(name) is not None and name not in labels for name in images)
    if 2 * numbered == len(images):  # no images, or half of them with a channel number
        return list_nnunet(path, content) if "channel_names" in content else list_msd(path, content)
    return list_nnunet(path, content) if 2 * numbered > len(images) else list_msd(path, content)


def _list_by_names(path: Path, files: Sequence[Path], passed_over: PassedOver, settings: toml.CohortToml) -> Draft:
    images = [file for file in files if is_image(file)]
    if not images:
        raise InputError(f"{path}: no known cohort format. {_summarize(path, files)} Supported formats:{_formats()}")
    if inner := sorted({file.parent for file in files if file.name == NAME}):
        raise InputError(f"{path}: {NAME} is in {few(inner)}; give that folder")
    if inner := sorted({folder.parent for file in files for folder in file.parents if folder.name.startswith("sub-")}):
        inner = [folder for folder in inner if folder.is_relative_to(path) and is_bids(folder)]
        if inner:
            raise InputError(f"{path}: a BIDS cohort is in {few(inner)}; give that folder")
    volumes = [file for file in images if is_volume(file) and not images_of_mask(file)]
    sequences = [file for file in volumes if names_sequence(file)]
    if not sequences:
        return list_pairs(path, files, passed_over, slices=settings.slices)
    if others := sorted(set(volumes) - set(sequences)):
        raise InputError(
            f"{path}: some names end in a sequence ({few(_short(path, sequences), 3)}), others do not "
            f"({few(_short(path, others), 3)}); name all CASE_SEQUENCE.nii.gz and the labels CASE_seg.nii.gz, or "
            "describe the files by [channels] in cohort.toml"
        )
    if flat := [file for file in images if is_flat(file) and images_of_mask(file)]:
        raise InputError(
            f"{path}: volumes ({few(_short(path, sequences), 3)}) and 2-D masks ({few(_short(path, flat), 3)}); give a "
            "folder with only one of them"
        )
    return list_sequence_files(path, files, passed_over)


def _summarize(path: Path, files: Sequence[Path]) -> str:
    endings = Counter(ending(file).lower() or "no ending" for file in files)
    if not endings:
        return "The folder is empty."
    listed = few(f"{count} x {name}" for name, count in endings.most_common())
    dicom = " Convert DICOM to NIfTI first, for example with dcm2niix." if ".dcm" in endings else ""
    return f"Files: {listed}, for example {files[0].relative_to(path)}.{dicom}"


def _short(path: Path, files: Sequence[Path]) -> list[str]:
    return [file.relative_to(path).as_posix() for file in files]


def _formats() -> str:
    return "".join(f"\n  {line}" for line in _FORMATS)
