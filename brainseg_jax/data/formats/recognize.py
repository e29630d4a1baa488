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
from brainseg_jax.data.formats.sequence_files import list_sequence_files, tells_sequence
from brainseg_jax.errors import InputError
from brainseg_jax.files import explain
from brainseg_jax.scans.walk import PassedOver, new, walk

_FORMATS = (
    "nnU-Net raw (dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz)",
    "a task of the Medical Segmentation Decathlon (dataset.json, imagesTr/CASE.nii.gz, labelsTr/CASE.nii.gz)",
    "BraTS and alike (CASE_flair.nii.gz or CASE-t2f.nii.gz, CASE_seg.nii.gz, in one folder or in one folder a case)",
    "pairs (X.png and X_mask.png, or images/ and masks/ with files of the same names; NIfTI, TIFF or PNG)",
    "BIDS (sub-01/anat/sub-01_FLAIR.nii.gz, derivatives/*/sub-01/anat/sub-01_dseg.nii.gz)",
    "files of any names that cohort.toml describes",
)


def list_cohort(path: Path) -> Listing:
    """Lists the cases of a cohort of labelled scans, whatever its format; no pixels are read but those of one image.

    `cohort.toml` in the folder can describe files of any names, and change what a format tells (see `described`).
    `patients.csv` in the folder tells patients and groups for any format.

    Args:
      path: folder of the cohort.

    Raises:
      InputError: the folder fits no format, or two; or lists all faults that names, JSON and tables show.
    """
    if not path.is_dir():
        what = "not a folder" if path.exists() else "no such folder"
        raise InputError(f"{path}: {what}; give the folder of a cohort:{_formats()}")
    described, passed_over = toml.read_described(path), new()
    try:
        draft = _list(path, described, passed_over)
    except OSError as error:
        raise InputError(f"{path}: {explain(error)}") from error
    read = {path / name for name in (toml.NAME, patients.NAME)}
    for reason, files in draft.passed_over.items():
        draft.passed_over[reason] = [file for file in files if file not in read]
    if not draft.faults or draft.cases:
        toml.apply(described, draft)
    return finish(draft)


def _list(path: Path, described: toml.Described, passed_over: PassedOver) -> Draft:
    if described.patterns:
        return toml.list_described(path, walk(path, passed_over), passed_over, described)
    has_json = (path / NAME).is_file() or (path / "imagesTr").is_dir()
    if has_json and is_bids(path):
        raise InputError(
            f"{path}: {NAME} or imagesTr as of nnU-Net, and sub-*/anat as of BIDS; give a folder that holds one cohort"
        )
    if has_json:
        return _list_dataset_json(path)
    files = walk(path, passed_over)
    if is_bids(path):
        return list_bids(path, files, passed_over, described.labels)
    return _list_by_names(path, files, passed_over, described)


def _list_dataset_json(path: Path) -> Draft:
    """nnU-Net or Decathlon: the files tell, since the two kinds of json are mixed up often."""
    if not (path / NAME).is_file():
        raise InputError(
            f'{path}: imagesTr, but no {NAME}; add it, as in {{"channel_names": {{"0": "T1"}}, "labels": '
            '{"background": 0, "tumor": 1}, "numTraining": 20, "file_ending": ".nii.gz"}'
        )
    content = read_dataset_json(path)
    labels = {stem(file) for file in (path / "labelsTr").glob("*") if is_image(file)}
    images = [stem(file) for file in (path / "imagesTr").glob("*") if is_image(file)]
    numbered = sum(CHANNEL_NUMBER.fullmatch(name) is not None and name not in labels for name in images)
    if 2 * numbered == len(images):  # none, or as many with a number as without
        return list_nnunet(path, content) if "channel_names" in content else list_msd(path, content)
    return list_nnunet(path, content) if 2 * numbered > len(images) else list_msd(path, content)


def _list_by_names(path: Path, files: Sequence[Path], passed_over: PassedOver, described: toml.Described) -> Draft:
    images = [file for file in files if is_image(file)]
    if not images:
        raise InputError(f"{path}: no cohort that is known. {_seen(path, files)} It can be:{_formats()}")
    if inner := sorted({file.parent for file in files if file.name == NAME}):
        raise InputError(f"{path}: {NAME} lies in {few(inner)}; give that folder")
    if inner := sorted({place.parent for file in files for place in file.parents if place.name.startswith("sub-")}):
        inner = [place for place in inner if place.is_relative_to(path) and is_bids(place)]
        if inner:
            raise InputError(f"{path}: a cohort in BIDS lies in {few(inner)}; give that folder")
    volumes = [file for file in images if is_volume(file) and not images_of_mask(file)]
    told = [file for file in volumes if tells_sequence(file)]
    if not told:
        return list_pairs(path, files, passed_over, slices=described.slices)
    if silent := sorted(set(volumes) - set(told)):
        raise InputError(
            f"{path}: some names tell a sequence ({few(_short(path, told), 3)}), others do not "
            f"({few(_short(path, silent), 3)}); call all CASE_SEQUENCE.nii.gz and the labels CASE_seg.nii.gz, or "
            "describe the files by [channels] in cohort.toml"
        )
    if flat := [file for file in images if is_flat(file) and images_of_mask(file)]:
        raise InputError(
            f"{path}: volumes ({few(_short(path, told), 3)}) and 2-D masks ({few(_short(path, flat), 3)}); give a "
            "folder that holds one of them"
        )
    return list_sequence_files(path, files, passed_over)


def _seen(path: Path, files: Sequence[Path]) -> str:
    endings = Counter(ending(file).lower() or "no ending" for file in files)
    if not endings:
        return "The folder is empty."
    seen = few(f"{count} x {name}" for name, count in endings.most_common())
    dicom = " Convert DICOM to NIfTI first, for example by dcm2niix." if ".dcm" in endings else ""
    return f"Seen: {seen}, as {files[0].relative_to(path)}.{dicom}"


def _short(path: Path, files: Sequence[Path]) -> list[str]:
    return [file.relative_to(path).as_posix() for file in files]


def _formats() -> str:
    return "".join(f"\n  {line}" for line in _FORMATS)
