"""NIfTI files: unusual and wrong headers, units, sheared and rotated axes, pairs, vectors."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from scored import read_masks

from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import LGG
from brainseg_jax.scans.find import find_scans
from brainseg_jax.scans.nifti_file import is_image_of_pair, is_nifti, open_nifti, stem
from brainseg_jax.scans.scan import MASK

AFFINE = np.diag([-1.0, -1.0, 5.0, 1.0])
VALUES = np.random.default_rng(0).integers(0, 256, (16, 14, 6)).astype(np.int16)
VALUES[0, 0, 0], VALUES[1, 0, 0] = 0, 255


def save(path, values=VALUES, affine=AFFINE, unit="mm"):
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def read(path):
    (source,) = find_scans(path)
    return source, source.read()


def packed(form, offset, *values):
    return lambda data: struct.pack_into(form, data, offset, *values)


FALSE = {
    "datatype": (packed("<h", 70, 9999), "declares values of type 9999, which NIfTI does not have"),
    "axes 30": (packed("<h", 40, 30), "declares 30 axes, but NIfTI has 1 to 7"),
    "axes 9": (packed("<h", 40, 9), "declares 9 axes"),
    "offset -10": (packed("<f", 108, -10.0), "declares values from byte -10 on, which is impossible"),
    "offset 348": (packed("<f", 108, 348.0), "declares values from byte 348 on"),
    "offset inf": (packed("<f", 108, np.inf), "declares values from byte inf on"),
    "offset nan": (packed("<f", 108, np.nan), "declares values from byte nan on"),
    "an empty axis": (packed("<h", 46, 0), r"declares an array of shape \(16, 14, 0\), which is empty"),
    "a negative axis": (packed("<h", 42, -16), r"declares an array of shape \(-16, 14, 6\), which is empty"),
    "too many values": (packed("<hhh", 42, 30000, 30000, 600), r"declares \(30000, 30000, 600\) values, more than"),
    "more than there are": (packed("<h", 46, 60), "truncated or damaged: its header declares 27232 bytes, but it has"),
    "less than there are": (packed("<h", 46, 5), r"declares an array of shape \(16, 14, 5\), but it has more values"),
    "no inter": (packed("<ff", 112, 2.0, np.nan), "scl_slope and scl_inter cannot be used .*Valid slope but invalid"),
    "slope": (packed("<f", 112, np.inf), "scl_slope is inf"),
    "affine": (packed("<f", 280, np.nan), "its affine is singular"),
    "cut": (lambda data: data.__delitem__(slice(900, None)), "truncated or damaged: its header declares 3040 bytes"),
    "cut header": (lambda data: data.__delitem__(slice(100, None)), "not a NIfTI file, or a damaged one"),
    "text": (lambda data: data.__setitem__(slice(0, 4), b"text"), "not a NIfTI file, or a damaged one"),
    "half of a pair": (lambda data: data.__setitem__(slice(344, 348), b"ni1\0"), "its header is that of a pair"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", FALSE)
def test_false_headers_are_faults_of_their_file(tmp_path, name, suffix):
    change, words = FALSE[name]
    data = bytearray(save(tmp_path / "whole.nii").read_bytes())
    change(data)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == ".nii.gz" else data)
    with pytest.raises(InputError, match=f"a{suffix}: .*{words}"):
        open_nifti(path)
    with pytest.raises(InputError, match=words):
        read(path)


@pytest.mark.parametrize("name", ["bad.nii", "bad.nii.gz"])
def test_whatever_nibabel_raises_is_a_fault_of_its_file(tmp_path, monkeypatch, name):
    for error in (
        RecursionError(),
        MemoryError("no room"),
        OverflowError("inf"),
        nib.spatialimages.HeaderDataError("x"),
    ):

        def fails(*_, error=error):
            raise error

        monkeypatch.setattr(nib.Nifti1Header, "from_fileobj", fails)
        with pytest.raises(InputError, match=f"{name}: not a NIfTI file, or a damaged one"):
            open_nifti(save(tmp_path / name))


def test_no_more_is_unpacked_than_the_header_declares(tmp_path):
    """4 MB of zeros in few bytes: only the few declared slices are unpacked, then the file is refused."""
    data = save(tmp_path / "whole.nii").read_bytes()
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(data + bytes(2**22), 1))
    unpacked = []
    original = gzip.GzipFile.read

    def counted(self, size=-1):
        unpacked.append(size)
        return original(self, size)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="but it has more values"):
        patch.setattr(gzip.GzipFile, "read", counted)
        open_nifti(path)
    assert min(unpacked) > 0 and sum(unpacked) < 4000
    # And what gzip cannot have packed into so few bytes is not asked for.
    changed = bytearray(data)
    struct.pack_into("<hhh", changed, 42, 600, 600, 600)
    path.write_bytes(gzip.compress(changed))
    unpacked.clear()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError) as raised:
        patch.setattr(gzip.GzipFile, "read", counted)
        open_nifti(path)
    assert f"declares 432000352 bytes, but it has {path.stat().st_size}; get" in str(raised.value)
    assert sum(unpacked) < 1000


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1.0), ("meter", 1e-3), ("micron", 1e3), ("unknown", 1.0)])
def test_units_are_honored_and_kept(tmp_path, unit, factor):
    affine = AFFINE.copy()
    affine[:3] *= factor
    affine[0, 3] = 7 * factor
    path = save(tmp_path / "a.nii", affine=affine, unit=unit)
    source, scan = read(path)
    assert scan.spacing == pytest.approx((5.0, 1.0, 1.0), rel=1e-6) and not any("mm long" in n for n in scan.notes)
    written = tmp_path / "masks" / "out.nii"
    written.parent.mkdir()
    scan.write(MASK, np.ones((*scan.voxels.shape[:3], 1), bool), [written], LGG)
    header = nib.load(written).header
    assert header["xyzt_units"] == nib.load(path).header["xyzt_units"]
    np.testing.assert_allclose(nib.load(written).affine, affine, rtol=1e-6)
    assert read_masks(written.parent)["out"].spacing == pytest.approx((5.0, 1.0, 1.0), rel=1e-6)
    assert source.outputs(MASK, LGG)[0].name == "a_pred.nii"


def test_a_size_that_no_head_has_is_reported(tmp_path):
    _, scan = read(save(tmp_path / "large.nii", unit="meter"))
    assert "its header (meter) makes it 3e+04 mm long, impossible for a head: volumes" in scan.notes[0]
    _, scan = read(save(tmp_path / "small.nii", affine=np.diag([0.001, 0.001, 0.005, 1]), unit="unknown"))
    assert "its header (no unit) makes it 0.03 mm long" in scan.notes[0] and scan.spacing[0] == pytest.approx(0.005)


def test_the_volume_of_a_sheared_voxel_is_its_determinant(tmp_path):
    """Slices 5 mm apart, each shifted by 5 mm; the distance between centers is 7.07 mm."""
    affine = AFFINE.copy()
    affine[1, 2] = 5.0
    _, scan = read(save(tmp_path / "sheared.nii", affine=affine))
    assert scan.spacing == pytest.approx((5.0, 1.0, 1.0)) and np.linalg.det(affine[:3, :3]) == pytest.approx(5.0)
    # In the plane: rows 2 mm apart, each moved by 1 mm; turned by an angle, which changes no volume.
    flat = np.array([[1.5, 1, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]])
    save(tmp_path / "flat.nii", affine=turn @ flat)
    assert open_nifti(tmp_path / "flat.nii").grid.spacing == pytest.approx((3.0, 2.0, 1.5), rel=1e-6)


def test_a_sequence_stored_another_way_is_turned_onto_flair(tmp_path):
    """RAS beside LPS: nibabel's own reorientation of the post-contrast image, which is FLAIR plus one."""
    flair = VALUES.clip(0, 254)
    image = nib.Nifti1Image(flair + 1, AFFINE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt("SAR"))
    save(tmp_path / "P_flair.nii.gz", flair)
    nib.save(image.as_reoriented(turn), tmp_path / "P_post.nii.gz")
    _, scan = read(tmp_path)
    np.testing.assert_array_equal(scan.voxels[..., 2], scan.voxels[..., 1] + 1)
    moved = AFFINE.copy()
    moved[2, 3] = 2.5
    nib.save(nib.Nifti1Image(flair, moved), tmp_path / "P_post.nii.gz")
    with pytest.raises(
        InputError, match=r"P_post.nii.gz: its grid is not that of P_flair.nii.gz: .*centers 2.5 mm apa"
    ):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["pair", "analyze"])
def test_a_pair_of_header_and_image_is_one_scan(tmp_path, kind):
    if kind == "pair":
        nib.save(nib.Nifti1Pair(VALUES, AFFINE), tmp_path / "P1.img")
    else:
        nib.save(nib.AnalyzeImage(VALUES, np.diag([-1.0, 1.0, 5.0, 1.0])), tmp_path / "P1.img")
    assert is_image_of_pair(tmp_path / "P1.img") and not is_nifti(tmp_path / "P1.img")
    assert is_nifti(tmp_path / "P1.hdr") and stem(tmp_path / "P1.hdr") == "P1"
    opened = open_nifti(tmp_path / "P1.hdr")
    np.testing.assert_array_equal(opened.values, VALUES)
    source, scan = read(tmp_path / "P1.hdr")
    assert scan.spacing == (5.0, 1.0, 1.0) and source.name == "P1"
    assert any("has no orientation" in note for note in scan.notes) == (kind == "analyze")
    (path,) = source.outputs(MASK, LGG)
    assert path.name == "P1_pred.nii.gz"
    scan.write(MASK, scan.voxels[..., :1] > 100, [tmp_path / path], LGG)
    written = nib.load(tmp_path / path)
    np.testing.assert_array_equal(np.asarray(written.dataobj), VALUES > 100)
    np.testing.assert_allclose(written.affine, opened.grid.affine)


def test_half_of_a_pair_is_a_fault(tmp_path):
    nib.save(nib.Nifti1Pair(VALUES, AFFINE), tmp_path / "a.img")
    (tmp_path / "a.hdr").rename(tmp_path / "b.hdr")
    with pytest.raises(InputError, match=r"b.hdr: no image file b.img beside it; give both files of the pair"):
        open_nifti(tmp_path / "b.hdr")
    assert is_nifti(tmp_path / "a.img")
    with pytest.raises(InputError, match=r"a.img: no header a.hdr beside it"):
        open_nifti(tmp_path / "a.img")


@pytest.mark.parametrize("axes", [(1,), (1, 1), (1, 3), (3, 1), (3,)])
def test_more_axes_of_length_one_are_dropped(tmp_path, axes):
    """The shape (x, y, z, 1, c), as ITK writes it."""
    values = np.zeros((*VALUES.shape, *axes), np.int16) + VALUES.reshape(*VALUES.shape, *(1 for _ in axes))
    _, scan = read(save(tmp_path / "a.nii", values))
    np.testing.assert_array_equal(scan.voxels[..., 1], scan.voxels[..., 0])
    assert any("replaced by FLAIR" in note for note in scan.notes) == (3 not in axes)
    scan.write(MASK, scan.voxels[..., :1] > 9, [tmp_path / "out.nii"], LGG)
    written = nib.load(tmp_path / "out.nii")
    assert written.shape == VALUES.shape
    np.testing.assert_array_equal(np.asarray(written.dataobj), VALUES > 9)
    nib.save(nib.Nifti1Image((values > 9).astype(np.uint8), AFFINE), tmp_path / "a.nii")
    if 3 not in axes:
        assert read_masks(tmp_path)["a"].voxels.sum() == (VALUES > 9).sum()


@pytest.mark.parametrize("name", ["P.Nii.gz", "P.NII"])
def test_a_suffix_in_capitals(tmp_path, name):
    save(tmp_path / name.lower()).rename(tmp_path / name)
    source, scan = read(tmp_path)
    (path,) = source.outputs(MASK, LGG)
    assert path.name == name.lower().replace("p.", "P_pred.")
    scan.write(MASK, scan.voxels[..., :1] > 9, [tmp_path / path], LGG)
    assert nib.load(tmp_path / path).shape == VALUES.shape


def test_a_file_packed_or_not_whatever_its_name(tmp_path):
    save(tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(open_nifti(tmp_path / "a.nii.gz").values, VALUES)
