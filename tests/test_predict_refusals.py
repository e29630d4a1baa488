"""Scans, runs and folders that `predict` cannot use: each is reported, and nothing is lost or half-written."""

import csv
import shutil
import zlib

import nibabel as nib
import numpy as np
import pytest
from conftest import call_predict
from PIL import Image
from scored import read_masks

from brainseg_jax.errors import InputError, PartlyDone
from brainseg_jax.prediction.results import Wanted

pytestmark = pytest.mark.usefixtures("optax_promotion")


def png(path, shape, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 255, shape)
    Image.fromarray(values.astype(dtype)).save(path)


def volume(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 5.0, 1.0])), path)


RAMP = np.arange(6 * 8 * 4, dtype=np.float32).reshape(6, 8, 4)


def with_nan():
    values = RAMP.copy()
    values[2, 3, 1:3] = np.nan
    return values


FAULTY = {
    "text": (lambda d: (d / "text.nii").write_text("no volume"), "text.nii: not a NIfTI file, or a damaged one"),
    "nan": (lambda d: volume(d / "nan.nii.gz", with_nan()), "nan.nii.gz: FLAIR: 2 voxels are NaN or infinite, 2"),
    "mask given": (lambda d: volume(d / "m.nii.gz", (RAMP > 50).astype(np.uint8)), "has only the values 0 and 1"),
    "channels": (
        lambda d: volume(d / "two.nii.gz", np.stack([RAMP, RAMP], axis=-1)),
        r"two.nii.gz: an array of shape \(6, 8, 4, 2\); give three axes \(FLAIR\), or a fourth of 3 channels",
    ),
    "one axis too few": (lambda d: volume(d / "flat.nii", RAMP[0]), r"flat.nii: an array of shape \(8, 4\);"),
    "no FLAIR": (
        lambda d: volume(d / "a_pre.nii", RAMP),
        r"a: no FLAIR among .*a_pre.nii \(pre-contrast\), and no other sequence can replace it",
    ),
    "FLAIR twice": (
        lambda d: [volume(d / f"a_{word}.nii", RAMP) for word in ("flair", "t2f")],
        "a: FLAIR twice: .*a_flair.nii, .*a_t2f.nii; keep one in the folder, or assign them by hand",
    ),
    "other grid": (
        lambda d: [volume(d / "a_flair.nii", RAMP), volume(d / "a_pre.nii", RAMP[:5])],
        r"a_pre.nii: its grid is not that of a_flair.nii: 5 x 8 x 4 voxels of 1 x 1 x 5 mm, axes RAS, .* against 6",
    ),
    "sizes": (
        lambda d: [png(d / "a_1.png", (8, 9, 3)), png(d / "a_2.png", (8, 8, 3))],
        "a_2.png: 8 x 8 x 3 pixels, but a_1.png has 8 x 9 x 3",
    ),
    "RGBA": (lambda d: png(d / "a_1.png", (8, 8, 4)), r"a_1.png: transparent: alpha from \d+ to \d+, so its"),
    "16 bits": (lambda d: png(d / "a_1.tif", (8, 8), np.uint16), "a_1.tif: 16 bits per value, but slices must have 8"),
    "number twice": (
        lambda d: [png(d / "a_1.png", (8, 8, 3)), png(d / "a_01.png", (8, 8, 3))],
        "a_1.png: a second file for slice 1 of number twice/a, beside .*a_01.png",
    ),
    "gap": (
        lambda d: [png(d / f"a_{n}.png", (8, 8, 3)) for n in (1, 2, 5)],
        "a: a gap in the numbers 1 to 5: 3, 4 missing",
    ),
}  # fmt: skip


def test_a_scan_that_cannot_be_read_stops_no_other(case, trained_run, tmp_path):
    """Every kind of damaged scan and one intact scan; each fault is reported with its file."""
    for name, (make, _) in FAULTY.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        make(tmp_path / "in" / name)
    shutil.copytree(case, tmp_path / "in" / case.name)
    with pytest.raises(PartlyDone, match=f"{len(FAULTY)} of {len(FAULTY) + 1} scans could not be predicted") as raised:
        call_predict(trained_run[0], tmp_path / "in", tmp_path / "out")
    for name, (_, words) in FAULTY.items():
        with pytest.raises(InputError, match=words):
            raise InputError(str(raised.value))
        assert not (tmp_path / "out" / name).exists()
    assert list(read_masks(tmp_path / "out")) == [case.name]
    (row,) = csv.DictReader((tmp_path / "out" / "predictions.csv").open())
    assert row["case"] == case.name


def test_where_no_scan_can_be_read_nothing_is_written(trained_run, tmp_path):
    (tmp_path / "text.nii").write_text("no volume")
    with pytest.raises(
        InputError, match=r"no scan could be predicted, so nothing was written:\n.*text.nii: not a NIfTI"
    ):
        call_predict(trained_run[0], tmp_path / "text.nii", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over_unless_it_is_asked(case, trained_run, tmp_path):
    scan = case / f"{case.name}_7.tif"
    call_predict(trained_run[0], scan, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        path.write_text("mine")
    with pytest.raises(
        InputError, match=r"predictions.csv and 2 more of the results already exist; give another --out"
    ):
        call_predict(trained_run[0], scan, tmp_path / "out")
    assert all(path.read_text() == "mine" for path in (tmp_path / "out").iterdir())
    call_predict(trained_run[0], scan, tmp_path / "out", overwrite=True)
    assert list(read_masks(tmp_path / "out")) == [case.name]


def test_unusable_input_is_reported_before_anything_is_predicted(case, trained_run, tmp_path):
    run, empty = trained_run[0], tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").touch()
    twins = tmp_path / "twins"
    volume(twins / "a.nii", RAMP)
    volume(twins / "a.nii.gz", RAMP)
    (tmp_path / "file").touch()
    for words, values in {
        "nowhere: no such file or folder": (run, tmp_path / "nowhere", tmp_path / "out"),
        "empty: no scan in it; give slices": (run, empty, tmp_path / "out"),
        "more than one scan is named ./a": (run, twins, tmp_path / "out"),
        "no run: not a run folder": (tmp_path / "no run", case, tmp_path / "out"),
        "the same folder twice; give each one once": ([run, run], case, tmp_path / "out"),
        "--output=.* is a file; give a folder": (run, case, tmp_path / "file"),
    }.items():
        with pytest.raises(InputError, match=words):
            call_predict(*values)
    with pytest.raises(InputError, match="--uncertainty is the spread of several predictions; add --tta"):
        call_predict(run, case, tmp_path / "out", wanted=Wanted(uncertainty=True))
    assert not (tmp_path / "out").exists()
