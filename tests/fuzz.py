"""Reads damaged files. Checks: no exception except InputError, intact neighbors, bounded memory and time.

    python tests/fuzz.py --kind=dicom --count=5000 --seed=0

Kinds: nifti, nifti_gz, dicom, tiff, png, zip, table, names. Without --kind all run, with --count trials each. Kind,
  seed and number determine a trial: `--only=17` repeats trial 17 and raises its failure. Failures are counted by
  exception and code location. --keep contains the files of the first failure of each kind, with the traceback.
  `2>/dev/null` hides the messages of libtiff.

Each damaged file has an intact one next to it. NIfTI, DICOM, TIFF and PNG go through `find_scans` and `read`, as in
`predict`; if both succeed, a mask is written. NIfTI, TIFF and PNG also go through `read_masks`, as in `evaluate`. TIFF,
zip and table (`data.csv`) go through `read_source`, as in `prepare`. The kind `names` only uses odd names of PNG files.
"""

import argparse
import contextlib
import io
import logging
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from mutations import mutate_bytes, mutate_dicom, mutate_gzip, mutate_nifti, mutate_png, mutate_tiff, mutate_zip
from PIL import Image
from scored import read_masks

from brainseg_jax.data.validation import read_source
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import LGG
from brainseg_jax.scans.find import find_scans
from brainseg_jax.scans.scan import MASK

MOST_MEMORY = 256 * 2**20  # bytes that one trial may take beyond what was taken before; the whole files have 0.2 MB
MOST_SECONDS = 20  # of one trial
SHAPE = (16, 16, 6)
CASES = ("TCGA_DU_0001_19990101", "TCGA_HT_0002_20000202")


_NUMBER_OR_TEXT = re.compile(r"[0-9]+|'[^']*'")  # failures that differ only in these count as one


class TooSlow(BaseException):
    """A trial exceeds its time limit; no `except Exception` catches it."""


class Broken(AssertionError):
    """A reader breaks a promise other than its exceptions: it loses a neighbor or takes too much memory."""


@dataclass
class Outcome:
    """The numbers of trials and of damaged files that could be read, and the failures by kind."""

    trials: int = 0
    read: int = 0
    failures: Counter = field(default_factory=Counter)
    kept: dict[str, Path] = field(default_factory=dict)


def fuzz(kind: str, count: int, seed: int, keep: Path, only: int | None = None) -> Outcome:
    """Runs trials 0 to `count` - 1 of one kind, or only the trial `only`."""
    outcome = Outcome()
    number_of_kind = list(KINDS).index(kind)
    for number in range(count) if only is None else [only]:
        random = np.random.default_rng([seed, number_of_kind, number])
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz_{kind}_"))
        outcome.trials += 1
        try:
            with _bounded(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome.read += KINDS[kind](folder, random)
        except (Exception, TooSlow) as error:
            name = _describe(error)
            outcome.failures[name] += 1
            if outcome.failures[name] == 1:
                outcome.kept[name] = keep / f"{kind}_{seed}_{number}"
                shutil.copytree(folder, outcome.kept[name], dirs_exist_ok=True)
                (outcome.kept[name] / "traceback.txt").write_text(traceback.format_exc())
            if only is not None:
                raise
        finally:
            shutil.rmtree(folder)
    return outcome


def _describe(error: BaseException) -> str:
    """Type, location in the package, and message without its numbers."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "brainseg_jax/" in frame.filename]
    place = f"{frames[-1].filename.rpartition('brainseg_jax/')[2]} {frames[-1].name}" if frames else "-"
    return f"{type(error).__name__} in {place}: {_NUMBER_OR_TEXT.sub('#', str(error))[:80]}"


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Stops a trial that takes too long; raises if it takes too much memory."""

    def stop(*_: object) -> None:
        raise TooSlow(f"not done after {MOST_SECONDS} s")

    disabled = logging.root.manager.disable
    logging.disable()  # nibabel, pydicom and highdicom log much of what they meet
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = _taken("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    resource.setrlimit(resource.RLIMIT_AS, (_taken("VmSize") + 2**32, limits[1]))
    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        logging.disable(disabled)
    if (more := _taken("VmHWM") - before) > MOST_MEMORY:
        raise Broken(f"memory: {more >> 20} MB")


def _taken(what: str) -> int:
    return int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def _predict(folder: Path) -> bool:
    """Reads as `predict` does, and writes a mask. Returns whether the damaged scan could be read."""
    read, found = False, False
    found_scans = find_scans(folder)
    for source in getattr(found_scans, "sources", found_scans):
        good = "good" in source.name
        try:
            scan = source.read()
        except InputError as error:
            if good:
                raise Broken(f"lost neighbor: {error}") from error
            continue
        if good:
            found = True
            _same(scan.voxels.shape, (6, 16, 16, 3))
            continue
        read = True
        with tempfile.TemporaryDirectory() as output:
            paths = [Path(output) / f"{place}_{path.name}" for place, path in enumerate(source.outputs(MASK, LGG))]
            try:
                scan.write(MASK, np.zeros((*scan.voxels.shape[:3], 1), bool), paths, LGG)
            except InputError as error:
                raise Broken(f"lost mask: {error}") from error
    if not found:
        raise Broken("lost neighbor: not found")
    return read


def _evaluate(folder: Path) -> bool:
    """Reads as `evaluate` does, which refuses a folder with a fault."""
    try:
        _same(read_masks(folder)["good"].voxels.shape, (6, 16, 16))
    except InputError as error:
        if faults := [line for line in str(error).splitlines()[1:] if "good" in Path(line.split(":")[0]).name]:
            raise Broken(f"lost neighbor: {faults}") from error
        return False
    return True


def _prepare(path: Path) -> bool:
    try:
        read_source(path, on_start=lambda slices: None, on_slice=lambda: None)
    except InputError as error:
        lines = [line for line in str(error).splitlines()[1:] if CASES[1] in line]
        if path.is_dir() and any(f"{CASES[1]}_1" in line for line in lines):
            raise Broken(f"lost neighbor: {lines}") from error
        return False
    return True


def _same(found: tuple, expected: tuple) -> None:
    if found != expected:
        raise Broken(f"lost neighbor: {found} in place of {expected}")


@cache
def _volume() -> bytes:
    values = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(values, np.diag([-1.0, -1.0, 5.0, 1.0]))
    return image.to_bytes()


@cache
def _mask_volume() -> bytes:
    return nib.Nifti1Image(_mask(SHAPE).astype(np.uint8), np.diag([-1.0, -1.0, 5.0, 1.0])).to_bytes()


def _mask(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[4:9, 5:11] = True
    return mask


def _nifti(folder: Path, random: np.random.Generator, mutate: Callable = mutate_nifti, suffix: str = ".nii") -> bool:
    for name, data in {"good": _volume(), "bad": mutate(_volume(), random)}.items():
        _put(folder / "scans" / name / f"{name}_flair{'.nii' if name == 'good' else suffix}", data)
    for name, data in {"good": _mask_volume(), "bad": mutate(_mask_volume(), random)}.items():
        _put(folder / "masks" / f"{name}{'.nii' if name == 'good' else suffix}", data)
    return _predict(folder / "scans") + _evaluate(folder / "masks") > 0


def _nifti_gz(folder: Path, random: np.random.Generator) -> bool:
    return _nifti(folder, random, mutate_gzip, ".nii.gz")


@cache
def _series(case: int) -> list[bytes]:
    """Six slices of a series in explicit little endian."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    written = []
    for number, frame in enumerate(np.random.default_rng(case).integers(0, 900, (6, 16, 16)), start=1):
        meta, uid = FileMetaDataset(), f"1.2.3.{case}"
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, f"{uid}.9.{number}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = f"{uid}.1", f"{uid}.2", f"{uid}.3"
        one.PatientID, one.PatientName, one.PatientSex, one.PatientBirthDate = f"P{case}", "A^B", "F", "19700101"
        one.StudyDate, one.StudyTime, one.SpecificCharacterSet = "20200101", "101112", "ISO_IR 100"
        one.Modality, one.SeriesDescription, one.SeriesNumber = "MR", "AX FLAIR", 3
        one.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
        one.EchoTime, one.RepetitionTime, one.InversionTime = 120.0, 9000.0, 2500.0
        one.InstanceNumber, one.SliceThickness, one.PixelSpacing = number, 5.0, [1.0, 1.0]
        one.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        one.ImagePositionPatient = [0.0, 0.0, 5.0 * number]
        one.Rows, one.Columns, one.SamplesPerPixel, one.PhotometricInterpretation = 16, 16, 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        one.RescaleSlope, one.RescaleIntercept = 1.0, 0.0
        one.PixelData = frame.astype(np.uint16).tobytes()
        data = io.BytesIO()
        one.save_as(data, enforce_file_format=True)
        written.append(data.getvalue())
    return written


def _dicom(folder: Path, random: np.random.Generator) -> bool:
    for name, files in {"good": _series(1), "bad": mutate_dicom(_series(2), random)}.items():
        for number, data in enumerate(files, start=1):
            _put(folder / name / "flair" / f"{number}.dcm", data)
    return _predict(folder)


@cache
def _picture(size: int, channels: int, number: int, kind: str, packed: bool) -> bytes:
    """A slice (smooth, so that it packs well) or a mask, of `channels` 3 and 1."""
    rows, columns = np.mgrid[:size, :size] // 8 * 7
    pixels = np.stack([rows + number, columns + 2 * number, rows + columns][:channels], -1).astype(np.uint8)
    picture = Image.fromarray(pixels if channels == 3 else _mask((size, size)).astype(np.uint8) * 255)
    data = io.BytesIO()
    picture.save(data, format=kind, **({"compression": "tiff_deflate"} if packed else {}))
    return data.getvalue()


def _images(folder: Path, random: np.random.Generator, mutate: Callable, kind: str) -> bool:
    suffix, packed = {"TIFF": ".tif", "PNG": ".png"}[kind], kind == "TIFF" and random.random() < 0.3
    damaged = int(random.integers(1, 7))
    for name in ("good", "bad"):
        for number in range(1, 7):
            bad = name == "bad" and number == damaged
            data, mask = (_picture(16, channels, number, kind, packed) for channels in (3, 1))
            _put(folder / "scans" / name / f"{name}_{number}{suffix}", mutate(data, random) if bad else data)
            _put(folder / "masks" / f"{name}_{number}_mask{suffix}", mutate(mask, random) if bad else mask)
    return _predict(folder / "scans") + _evaluate(folder / "masks") > 0


def _png(folder: Path, random: np.random.Generator) -> bool:
    return _images(folder, random, mutate_png, "PNG")


_NUMBERS = ["0", "1", "01", "00000002", "20240101120000", "9" * 30, "9" * 200, "-1", "1.5", "\u0663", "", " 7", "x"]
_STEMS = ["bad", "BAD", "bad ", "b\n", "b\udcff", "\u00fc", "-", "~", "*", "b,c", '"', "bad_1", "bad.nii", "flair"]
_ENDS = ["_mask", "_pred", "_seg", "_mask_mask", ""]


def _names(folder: Path, random: np.random.Generator) -> bool:
    for number in range(1, 7):
        _put(folder / "good" / f"good_{number}.png", _picture(16, 3, number, "PNG", False))
        _put(folder / "good" / f"good_{number}_mask.png", _picture(16, 1, number, "PNG", False))
    for _ in range(int(random.integers(1, 4))):
        name = "_".join(str(random.choice(part)) for part in (_STEMS, _NUMBERS))
        for end in ("", str(random.choice(_ENDS))):
            suffix = str(random.choice([".png", ".PNG", ".png", ".png.png"]))
            _put(folder / "bad" / f"{name}{end}{suffix}", _picture(16, 1 if end else 3, 1, "PNG", False))
    _predict(folder)
    _evaluate(folder)
    return False  # there is no damage


def _tree(folder: Path) -> Path:
    """A `kaggle_3m` of two patients with one slice each."""
    for number, case in enumerate(CASES):
        _put(folder / case / f"{case}_1.tif", _picture(256, 3, number, "TIFF", number == 1))
        _put(folder / case / f"{case}_1_mask.tif", _picture(256, 1, number, "TIFF", number == 1))
    patients = "\n".join(f"{case[:12]},2,1,45,1" for case in CASES)
    fields = "Patient,neoplasm_histologic_grade,histological_type,age_at_initial_pathologic,gender"
    _put(folder / "data.csv", f"{fields}\n{patients}\n".encode())
    return folder


def _tiff(folder: Path, random: np.random.Generator) -> bool:
    if random.random() < 0.5:
        return _images(folder, random, mutate_tiff, "TIFF")
    tree = _tree(folder / "kaggle_3m")
    path = tree / CASES[0] / f"{CASES[0]}_1{random.choice(['', '_mask'])}.tif"
    path.write_bytes(mutate_tiff(path.read_bytes(), random))
    return _prepare(tree)


def _table(folder: Path, random: np.random.Generator) -> bool:
    path = _tree(folder / "kaggle_3m") / "data.csv"
    path.write_bytes(mutate_bytes(path.read_bytes(), random))
    return _prepare(path.parent)


@cache
def _archive() -> bytes:
    data = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        tree = _tree(Path(folder) / "kaggle_3m")
        for path in sorted(tree.rglob("*.*")):
            archive.write(path, path.relative_to(folder))
    return data.getvalue()


def _zip(folder: Path, random: np.random.Generator) -> bool:
    _put(folder / "set.zip", mutate_zip(_archive(), random))
    return _prepare(folder / "set.zip")


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


KINDS: dict[str, Callable[[Path, np.random.Generator], bool]] = {
    "nifti": _nifti,
    "nifti_gz": _nifti_gz,
    "dicom": _dicom,
    "tiff": _tiff,
    "png": _png,
    "zip": _zip,
    "table": _table,
    "names": _names,
}


def main() -> None:
    """Runs the requested trials; the exit status is 1 after any failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, help="default: all")
    parser.add_argument("--count", type=int, default=1000, help="trials of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one trial, to run it again")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz", help="folder for failures")
    given = parser.parse_args()
    failed = 0
    for kind in [given.kind] if given.kind else KINDS:
        start = time.perf_counter()
        outcome = fuzz(kind, given.count, given.seed, given.keep, given.only)
        failures, failed = sum(outcome.failures.values()), failed + sum(outcome.failures.values())
        print(
            f"{kind}: {failures} failures in {outcome.trials} trials, seed {given.seed}, {outcome.read} damaged files "
            f"read all the same, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        for name, times in outcome.failures.most_common():
            print(f"  {times:5} {name}\n        {outcome.kept[name]}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
