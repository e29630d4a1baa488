"""Reads NIfTI files, and pairs of a header and an image file."""

import dataclasses
import gzip
import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from brainseg_jax.errors import InputError
from brainseg_jax.scans.grid import Grid

SINGLE, HEADER, IMAGE = (".nii", ".nii.gz"), ".hdr", ".img"
MOST_VALUES = 2**28  # a small header can declare more values than fit into memory; a brain has about 10 million
_MOST_BEFORE = 2**24  # maximum bytes before the values: header and extensions
_AT_ONCE = 2**20  # bytes per read
_MOST_PACKED = 1032  # maximum compression ratio of gzip
_HEADERS = (nib.Nifti1Header, nib.Nifti2Header)
_ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")  # byte orders, as numpy names them
_TYPES = cast(Mapping[int, np.dtype], nib.nifti1.data_type_codes.dtype)  # by the field `datatype`
_MILLIMETERS = {1: 1e3, 3: 1e-3}  # per meter and micron in `xyzt_units`; other codes count as mm
_EXTENT = (20.0, 2000.0)  # mm: minimum and maximum plausible length of a head scan


@dataclasses.dataclass(frozen=True, eq=False)
class Nifti:
    """The content of a file.

    Attributes:
      values: [I, J, K, ...], scaled by the header, without axes of length 1 after the third.
      header: for results, in the units of the file; converted to that of a single file if the input is a pair.
      grid: of the first three axes, in mm.
      notes: what a user must know about the header.
    """

    values: np.ndarray
    header: nib.Nifti1Header
    grid: Grid
    notes: tuple[str, ...]


def is_nifti(path: Path) -> bool:
    """Whether the name is that of a NIfTI file, a header of a pair, or an image file without a header beside it."""
    name = path.name.lower()
    return name.endswith((*SINGLE, HEADER)) or (name.endswith(IMAGE) and not is_image_of_pair(path))


def is_image_of_pair(path: Path) -> bool:
    """Whether this is an image file with its header beside it; the two are one scan."""
    return path.name.lower().endswith(IMAGE) and _other_of_pair(path, HEADER) is not None


def to_header(path: Path) -> Path:
    """The header that belongs to an image file of a pair; any other path unchanged."""
    return _other_of_pair(path, HEADER) or path if path.name.lower().endswith(IMAGE) else path


def stem(path: Path) -> str:
    """The name without `.nii`, `.nii.gz`, `.hdr` or `.img`."""
    return path.name[: path.name.lower().rindex(".nii")] if path.name.lower().endswith(SINGLE) else path.stem


def open_nifti(path: Path) -> Nifti:
    """Reads a file; unpacks at most what its header declares, if the size of the file can hold that.

    Raises:
      InputError: the file is not NIfTI, damaged, too large, or half of a pair; its values are not plain numbers, or it
        has fewer than three axes. The message names the file.
    """
    try:
        with np.errstate(all="ignore"):  # for values and affines that are not finite
            header, values = _read_pair(path) if path.suffix.lower() in (HEADER, IMAGE) else _read_single(path)
            if values.dtype.kind not in "uif":
                raise InputError(f"values of type {values.dtype}; convert them to plain numbers, one per channel")
            values = values.squeeze(tuple(axis for axis in range(3, values.ndim) if values.shape[axis] == 1))
            if values.ndim < 3:
                raise InputError(f"an array of shape {values.shape}; a scan or a mask has three axes")
            affine = header.get_best_affine().astype(np.float64)
            affine[:3] *= _MILLIMETERS.get(int(header["xyzt_units"]) % 8, 1.0)
            grid = Grid(affine, values.shape[:3])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # nibabel raises many exception types on damaged headers
        is_system_error = isinstance(error, OSError) and error.errno
        reason = "cannot be read" if is_system_error else "not a NIfTI file, or a damaged one"
        raise InputError(f"{path}: {reason} ({_error_text(error)})") from error
    return Nifti(values, header, grid, tuple(_header_notes(header, grid)))


def _header_notes(header: nib.Nifti1Header, grid: Grid) -> list[str]:
    notes = []
    if not (header["sform_code"] or header["qform_code"]):
        notes.append("its header has no orientation: the axes are assumed to run to the left, the front and the crown")
    if not _EXTENT[0] <= grid.extent <= _EXTENT[1]:
        unit = {1: "meter", 2: "mm", 3: "micron"}.get(int(header["xyzt_units"]) % 8, "no unit")
        notes.append(
            f"its header ({unit}) makes it {grid.extent:.3g} mm long, impossible for a head: volumes and areas are "
            "wrong; correct pixdim or xyzt_units"
        )
    return notes


def _error_text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _read_single(path: Path) -> tuple[nib.Nifti1Header, np.ndarray]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"  # gzip, whatever the suffix
    with gzip.open(path) if packed else path.open("rb") as file:
        start = file.read(nib.Nifti2Header.sizeof_hdr + 4)
        fields = _fields(start)
        shape, kind, offset = _layout(fields)
        if bytes(fields["magic"])[:3] not in (b"n+1", b"n+2"):
            raise InputError("its header is that of a pair; rename it to .hdr, beside its image file .img")
        if not fields["sizeof_hdr"] + 4 <= offset <= _MOST_BEFORE:
            raise InputError(f"its header declares values from byte {offset:g} on, which is impossible; get a new copy")
        data = _read(file, path, start, int(offset), shape, kind)
    header_class = nib.Nifti2Header if fields["sizeof_hdr"] == nib.Nifti2Header.sizeof_hdr else nib.Nifti1Header
    header = header_class.from_fileobj(io.BytesIO(data[: int(offset)]))
    return header, _scaled(header, np.ndarray(shape, kind, data, int(offset), order="F"))


def _read_pair(path: Path) -> tuple[nib.Nifti1Header, np.ndarray]:
    if path.suffix.lower() == IMAGE:
        raise InputError(f"no header {path.stem}{HEADER} beside it; give both files of the pair")
    if (image := _other_of_pair(path, IMAGE)) is None:
        raise InputError(f"no image file {path.stem}{IMAGE} beside it; give both files of the pair")
    with path.open("rb") as file:
        start = file.read(_MOST_BEFORE)
    fields = _fields(start)
    shape, kind, offset = _layout(fields)
    if not 0 <= offset <= _MOST_BEFORE:
        raise InputError(f"its header declares values from byte {offset:g} of {image.name} on; get a new copy")
    with image.open("rb") as file:
        data = _read(file, image, b"", int(offset), shape, kind)
    magic = bytes(fields["magic"])[:3]  # without a known magic: Analyze 7.5, as SPM wrote it
    pair = {b"ni1": nib.Nifti1Pair, b"ni2": nib.Nifti2Pair}.get(magic, nib.Spm2AnalyzeImage)
    header = pair.header_class.from_fileobj(io.BytesIO(start))
    single = (nib.Nifti2Header if pair is nib.Nifti2Pair else nib.Nifti1Header).from_header(header)
    return single, _scaled(header, np.ndarray(shape, kind, data, int(offset), order="F"))


def _other_of_pair(path: Path, suffix: str) -> Path | None:
    name = f"{path.stem}{suffix}"
    for other in path.parent.glob("*"):
        if other.name.lower() == name.lower() and other.name[: len(path.stem)] == path.stem and other.is_file():
            return other
    return None


def _fields(start: bytes) -> np.void:
    """The raw header fields, in the byte order that the first field implies."""
    for header, order in itertools.product(_HEADERS, _ORDERS):
        kind = header.template_dtype.newbyteorder(order)
        if len(start) >= kind.itemsize and np.frombuffer(start, f"{order}i4", 1)[0] == header.sizeof_hdr:
            return np.frombuffer(start, kind, 1)[0]
    raise InputError("not a NIfTI file, or a damaged one")


def _layout(fields: np.void) -> tuple[tuple[int, ...], np.dtype, float]:
    """Shape, type and byte offset of the values, validated."""
    axes, lengths = int(fields["dim"][0]), [int(length) for length in fields["dim"][1:]]
    if not 1 <= axes <= 7:
        raise InputError(f"its header declares {axes} axes, but NIfTI has 1 to 7; get a new copy")
    if min(shape := tuple(lengths[:axes])) < 1:
        raise InputError(f"its header declares an array of shape {shape}, which is empty; get a new copy")
    if np.prod(shape, dtype=np.float64) > MOST_VALUES:
        raise InputError(f"its header declares {shape} values, more than the limit of {MOST_VALUES}")
    code = int(fields["datatype"])
    if code not in _TYPES or not _TYPES[code].itemsize:
        raise InputError(f"its header declares values of type {code}, which NIfTI does not have; get a new copy")
    offset = float(fields["vox_offset"])
    if not np.isfinite(offset):
        raise InputError(f"its header declares values from byte {offset:g} on, which is impossible; get a new copy")
    return shape, _TYPES[code].newbyteorder(fields["dim"].dtype.byteorder), offset


def _read(
    file: io.BufferedIOBase, path: Path, start: bytes, offset: int, shape: tuple[int, ...], kind: np.dtype
) -> bytearray:
    """Reads the bytes of a file up to the end of its values; the bytes `start` are read already.

    Raises:
      InputError: the file is shorter than the header declares, or longer by a slice or more.
    """
    size = path.stat().st_size * (_MOST_PACKED if isinstance(file, gzip.GzipFile) else 1)
    end = offset + int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    data, filled = bytearray(end if end <= size else 0), len(start)
    if end <= size:
        data[: len(start)] = start[:end]
        with memoryview(data) as view:  # reading in blocks avoids a second copy in memory
            while filled < end and (count := file.readinto(view[filled : filled + _AT_ONCE])):
                filled += count
    if filled < end or end > size:
        actual = f"it has {filled if end <= size else path.stat().st_size}"
        raise InputError(f"truncated or damaged: its header declares {end} bytes, but {actual}; get a new copy")
    slice_bytes = int(np.prod(shape[:2], dtype=np.int64)) * kind.itemsize
    if len(file.read(slice_bytes)) == slice_bytes:  # some programs append a few bytes, but less than a slice
        raise InputError(
            f"damaged: its header declares an array of shape {shape}, but it has more values; get a new copy"
        )
    return data


def _scaled(header: nib.Nifti1Header, values: np.ndarray) -> np.ndarray:
    """Applies slope and intercept of the header; raises InputError if they are invalid."""
    try:
        if np.isinf(header["scl_slope"]):
            raise InputError(f"scl_slope is {header['scl_slope']}")
        slope, inter = header.get_slope_inter()
    except Exception as error:
        raise InputError(
            f"its scl_slope and scl_inter cannot be used ({_error_text(error)}); correct the header"
        ) from error
    return values if slope is None else apply_read_scaling(values, slope, 0.0 if inter is None else inter)
