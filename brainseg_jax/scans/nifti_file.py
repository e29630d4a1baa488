"""Opens NIfTI files and pairs of a header and an image file, or reports why they are none."""

import dataclasses
import gzip
import io
import itertools
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from brainseg_jax.errors import InputError
from brainseg_jax.scans.grid import Grid

SINGLE, HEADER, IMAGE = (".nii", ".nii.gz"), ".hdr", ".img"
MOST_VALUES = 2**28  # a header of a few bytes can declare more than there is memory; a brain has some 10 million
_MOST_BEFORE = 2**24  # bytes before the values: header and extensions
_AT_ONCE = 2**20  # bytes that are read
_MOST_PACKED = 1032  # bytes that gzip makes of one, at the most
_HEADERS = (nib.Nifti1Header, nib.Nifti2Header)
_MILLIMETERS = {1: 1e3, 3: 1e-3}  # of a meter and a micron in `xyzt_units`; all else counts as millimeters
_EXTENT = (20.0, 2000.0)  # mm: no scan of a head is smaller or larger


@dataclasses.dataclass(frozen=True, eq=False)
class Nifti:
    """What a file holds.

    Attributes:
      values: [I, J, K, ...], scaled as the header says, without axes of length 1 after the third.
      header: for results, in the units of the file; of a single file also where the values come from a pair.
      grid: of the first three axes, in mm.
      notes: what a user must know of the header.
    """

    values: np.ndarray
    header: nib.Nifti1Header
    grid: Grid
    notes: tuple[str, ...]


def is_nifti(path: Path) -> bool:
    """Whether the name is that of a NIfTI file, of the header of a pair, or of an image file without its header."""
    name = path.name.lower()
    return name.endswith((*SINGLE, HEADER)) or (name.endswith(IMAGE) and not is_image_of_pair(path))


def is_image_of_pair(path: Path) -> bool:
    """Whether this is an image file beside its header, which is read with that and is no scan of its own."""
    return path.name.lower().endswith(IMAGE) and _other_of_pair(path, HEADER) is not None


def to_header(path: Path) -> Path:
    """The header of an image file of a pair; any other file as it is."""
    return _other_of_pair(path, HEADER) or path if path.name.lower().endswith(IMAGE) else path


def stem(path: Path) -> str:
    """The name without `.nii`, `.nii.gz`, `.hdr` or `.img`."""
    return path.name[: path.name.lower().rindex(".nii")] if path.name.lower().endswith(SINGLE) else path.stem


def open_nifti(path: Path) -> Nifti:
    """Reads a file; what is unpacked is bounded by its header, and that by the size of the file.

    Raises:
      InputError: it is no NIfTI file, damaged, too large, holds values that are no plain numbers or fewer than three
        axes, or is half of a pair; the message names the file.
    """
    try:
        with np.errstate(all="ignore"):  # of values and affines that are no numbers
            header, values = _read_pair(path) if path.suffix.lower() in (HEADER, IMAGE) else _read_single(path)
            if values.dtype.kind not in "uif":
                raise InputError(f"values of type {values.dtype}; convert them to plain numbers, a channel each")
            values = values.squeeze(tuple(axis for axis in range(3, values.ndim) if values.shape[axis] == 1))
            if values.ndim < 3:
                raise InputError(f"an array of shape {values.shape}; a scan or a mask has three axes")
            affine = header.get_best_affine().astype(np.float64)
            affine[:3] *= _MILLIMETERS.get(int(header["xyzt_units"]) % 8, 1.0)
            grid = Grid(affine, values.shape[:3])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # nibabel raises a dozen kinds on damaged headers; each means this one file
        refused = isinstance(error, OSError) and error.errno  # by the system
        what = "cannot be read" if refused else "not a NIfTI file, or a damaged one"
        raise InputError(f"{path}: {what} ({_words(error)})") from error
    return Nifti(values, header, grid, tuple(_doubts(header, grid)))


def _doubts(header: nib.Nifti1Header, grid: Grid) -> list[str]:
    notes = []
    if not (header["sform_code"] or header["qform_code"]):
        notes.append(
            "its header does not say how it lies: the axes are taken to run to the left, the front and the crown"
        )
    if not _EXTENT[0] <= grid.extent <= _EXTENT[1]:
        unit = {1: "meter", 2: "mm", 3: "micron"}.get(int(header["xyzt_units"]) % 8, "no unit")
        notes.append(
            f"its header ({unit}) makes it {grid.extent:.3g} mm long, and no head is: volumes and areas are wrong; "
            "correct pixdim or xyzt_units"
        )
    return notes


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _read_single(path: Path) -> tuple[nib.Nifti1Header, np.ndarray]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"  # whatever the name says
    with gzip.open(path) if packed else path.open("rb") as file:
        start = file.read(nib.Nifti2Header.sizeof_hdr + 4)
        fields = _fields(start)
        shape, kind, offset = _layout(fields)
        if bytes(fields["magic"])[:3] not in (b"n+1", b"n+2"):
            raise InputError("its header is that of a pair; give it the name .hdr, beside its image file .img")
        if not fields["sizeof_hdr"] + 4 <= offset <= _MOST_BEFORE:
            raise InputError(f"its header declares values from byte {offset:g} on, which cannot be; get a new copy")
        data = _read(file, path, start, int(offset), shape, kind)
    header_class = nib.Nifti2Header if fields["sizeof_hdr"] == nib.Nifti2Header.sizeof_hdr else nib.Nifti1Header
    header = header_class.from_fileobj(io.BytesIO(data[: int(offset)]))
    return header, _scaled(header, np.ndarray(shape, kind, data, int(offset), order="F"))


def _read_pair(path: Path) -> tuple[nib.Nifti1Header, np.ndarray]:
    if path.suffix.lower() == IMAGE:
        raise InputError(f"no header {path.stem}{HEADER} beside it; a pair of files is read together")
    if (image := _other_of_pair(path, IMAGE)) is None:
        raise InputError(f"no image file {path.stem}{IMAGE} beside it; a pair of files is read together")
    with path.open("rb") as file:
        start = file.read(_MOST_BEFORE)
    fields = _fields(start)
    shape, kind, offset = _layout(fields)
    if not 0 <= offset <= _MOST_BEFORE:
        raise InputError(f"its header declares values from byte {offset:g} of {image.name} on; get a new copy")
    with image.open("rb") as file:
        data = _read(file, image, b"", int(offset), shape, kind)
    magic = bytes(fields["magic"])[:3]  # else Analyze 7.5, as SPM wrote it
    pair = {b"ni1": nib.Nifti1Pair, b"ni2": nib.Nifti2Pair}.get(magic, nib.Spm2AnalyzeImage)
    header = pair.header_class.from_fileobj(io.BytesIO(start))
    single = (nib.Nifti2Header if pair is nib.Nifti2Pair else nib.Nifti1Header).from_header(header)
    return single, _scaled(header, np.ndarray(shape, kind, data, int(offset), order="F"))


def _other_of_pair(path: Path, suffix: str) -> Path | None:
    name = f"{path.stem}{suffix}"
    for found in path.parent.glob("*"):
        if found.name.lower() == name.lower() and found.name[: len(path.stem)] == path.stem and found.is_file():
            return found
    return None


def _fields(start: bytes) -> np.void:
    """The header as it stands in the file, in the order of bytes that its first field shows."""
    for header, order in itertools.product(_HEADERS, "<>"):
        kind = header.template_dtype.newbyteorder(order)
        if len(start) >= kind.itemsize and np.frombuffer(start, f"{order}i4", 1)[0] == header.sizeof_hdr:
            return np.frombuffer(start, kind, 1)[0]
    raise InputError("not a NIfTI file, or a damaged one")


def _layout(fields: np.void) -> tuple[tuple[int, ...], np.dtype, float]:
    """Shape, type and place of the values, checked."""
    axes, lengths = int(fields["dim"][0]), [int(length) for length in fields["dim"][1:]]
    if not 1 <= axes <= 7:
        raise InputError(f"its header declares {axes} axes, and NIfTI has 1 to 7; get a new copy")
    if min(shape := tuple(lengths[:axes])) < 1:
        raise InputError(f"its header declares an array of shape {shape}, which is empty; get a new copy")
    if np.prod(shape, dtype=np.float64) > MOST_VALUES:
        raise InputError(f"its header declares {shape} values, more than are read")
    code = int(fields["datatype"])
    if code not in nib.nifti1.data_type_codes.dtype or not nib.nifti1.data_type_codes.dtype[code].itemsize:
        raise InputError(f"its header declares values of type {code}, which NIfTI does not have; get a new copy")
    offset = float(fields["vox_offset"])
    if not np.isfinite(offset):
        raise InputError(f"its header declares values from byte {offset:g} on, which cannot be; get a new copy")
    return shape, nib.nifti1.data_type_codes.dtype[code].newbyteorder(fields["dim"].dtype.byteorder), offset


def _read(file: BinaryIO, path: Path, start: bytes, offset: int, shape: tuple[int, ...], kind: np.dtype) -> bytearray:
    """The bytes of a file up to the end of its values, of which `start` is read.

    Raises:
      InputError: the file cannot hold or does not hold them, or a slice more than the header declares.
    """
    size = path.stat().st_size * (_MOST_PACKED if isinstance(file, gzip.GzipFile) else 1)
    end = offset + int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    data, filled = bytearray(end if end <= size else 0), len(start)
    if end <= size:
        data[: len(start)] = start[:end]
        with memoryview(data) as view:  # a file that is read at once lies in memory twice
            while filled < end and (count := file.readinto(view[filled : filled + _AT_ONCE])):
                filled += count
    if filled < end or end > size:
        held = f"it has {filled if end <= size else path.stat().st_size}"
        raise InputError(f"cut short, or damaged: its header declares {end} bytes, and {held}; get a new copy")
    a_slice = int(np.prod(shape[:2], dtype=np.int64)) * kind.itemsize
    if len(file.read(a_slice)) == a_slice:  # its end; what some programs append is shorter
        raise InputError(f"damaged: its header declares an array of shape {shape}, and it holds more; get a new copy")
    return data


def _scaled(header: nib.Nifti1Header, values: np.ndarray) -> np.ndarray:
    """The values as the header says; raises InputError where it does not say how."""
    try:
        if np.isinf(header["scl_slope"]):
            raise InputError(f"scl_slope is {header['scl_slope']}")
        slope, inter = header.get_slope_inter()
    except Exception as error:
        raise InputError(f"its scl_slope and scl_inter cannot be used ({_words(error)}); correct the header") from error
    return values if slope is None else apply_read_scaling(values, slope, 0.0 if inter is None else inter)
