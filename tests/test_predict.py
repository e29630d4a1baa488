"""Masks for users' scans: the same from every kind of file, and the same as the run scores."""

import csv
import json
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import call_predict, once
from PIL import Image
from scored import read_masks

from brainseg_jax.data.canvas import Canvas
from brainseg_jax.inference.ensemble import Ensemble, combine
from brainseg_jax.prediction.results import Wanted
from brainseg_jax.runs.evaluation import build_evaluation
from brainseg_jax.runs.trained import load_trained
from brainseg_jax.scans.scan import Scan

pytestmark = pytest.mark.usefixtures("optax_promotion")
SPACING = (1.0, 1.0, 5.0)  # columns, rows, slices, in mm


def read_case(folder):
    """The Kaggle slices of a case, [S, H, W, 3]."""
    paths = [path for path in folder.glob("*.tif") if not path.stem.endswith("_mask")]
    paths.sort(key=lambda path: int(path.stem.split("_")[-1]))
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def as_volume(slices, codes, spacing):
    """Axial slices [S, H, W, ...] stored along axes `codes`, and the affine."""
    # [S, row to the back, column to the left] to (left, back, crown), then to the axes asked for.
    lps = nib.orientations.axcodes2ornt("LPS")
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = (90.0, 110.0, -60.0)
    image = nib.Nifti1Image(np.moveaxis(slices, (0, 1, 2), (2, 1, 0)), affine)
    return image.as_reoriented(nib.orientations.ornt_transform(lps, nib.orientations.axcodes2ornt(codes)))


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def from_slices(case, trained_run, tmp_path_factory):
    """The masks of that patient's slices, in all formats."""
    everything = Wanted(probabilities=True, uncertainty=True, overlays=True)
    predict = lambda folder: call_predict(trained_run[0], case, folder / "out", wanted=everything, mirror=True)
    return once(tmp_path_factory, "from_slices", predict) / "out"


def test_masks_are_those_that_the_run_scores(trained_run, phantom_folder, tmp_path):
    workdir, config = trained_run
    trained, evaluation = load_trained(workdir), build_evaluation(config, workdir)
    patients = tuple(sorted(evaluation.split.test))
    assessed = evaluation.assessor.assess_each(trained.network, patients, trained.posts, tolerance=2.0)
    masks = {one.name: one.masks for one in assessed}
    for patient in patients:
        shutil.copytree(phantom_folder / patient, tmp_path / "kaggle_3m" / patient)
    outcome = call_predict(workdir, tmp_path / "kaggle_3m", tmp_path / "out")
    found = read_masks(tmp_path / "out")
    for patient in patients:
        np.testing.assert_array_equal(found[patient].voxels, masks[patient][..., 0])
        assert 0 < masks[patient].mean() < 0.5
    assert not outcome.faults
    name = f"{patients[0]}_11"
    written = Image.open(tmp_path / "out" / patients[0] / f"{name}_pred.tif")
    assert written.size == (256, 256) and written.mode == "L" and set(np.unique(written)) <= {0, 255}
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert [row["case"] for row in rows] == list(patients)
    volume = found[patients[0]].voxels
    areas = volume.sum(axis=(1, 2))
    assert (int(rows[0]["volume"]), rows[0]["volume_unit"]) == (volume.sum(), "voxels")
    assert (int(rows[0]["largest_slice"]), int(rows[0]["largest_area"])) == (areas.argmax() + 1, areas.max())
    by_slice = [row for row in csv.DictReader((tmp_path / "out" / "areas.csv").open()) if row["case"] == patients[0]]
    assert [(int(row["slice"]), int(row["area"]), row["unit"]) for row in by_slice] == [
        (number, area, "pixels") for number, area in enumerate(areas, start=1)
    ]


@pytest.mark.parametrize("codes", ["LPS", "RAS", "ASR", "SLP"])
def test_a_volume_in_any_orientation_has_the_same_mask(case, trained_run, from_slices, tmp_path, codes):
    image = as_volume(read_case(case), codes, SPACING)
    image.header.set_xyzt_units("mm")
    image.header["descrip"], image.header["cal_max"] = b"of the scanner", 200
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=4)
    scan = tmp_path / "in" / "P1.nii.gz"
    scan.parent.mkdir()
    nib.save(image, scan)
    call_predict(trained_run[0], scan, tmp_path / "out", mirror=True)
    mask = nib.load(tmp_path / "out" / "P1_pred.nii.gz")
    assert mask.shape == image.shape[:3] and mask.get_data_dtype() == np.uint8
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    for key in ("qform_code", "sform_code", "descrip", "xyzt_units", "qoffset_x"):
        assert mask.header[key] == image.header[key], key
    assert mask.header["cal_max"] == 0 and set(np.unique(mask.dataobj)) == {0, 1}
    expected = (
        as_volume(255 * read_masks(from_slices)[case.name].voxels.astype(np.uint8), codes, SPACING).get_fdata() > 0
    )
    assert dice(np.asarray(mask.dataobj) > 0, expected) > 0.999
    (row,) = csv.DictReader((tmp_path / "out" / "predictions.csv").open())
    assert row["volume_unit"] == "mL" and float(row["volume"]) == pytest.approx(expected.sum() * 5.0 / 1000.0, rel=1e-3)
    assert row["area_unit"] == "mm2" and float(row["largest_area"]) == expected_area(expected, codes)
    along = expected.sum(axis=tuple(axis for axis in range(3) if codes[axis] != "S"))
    assert int(row["largest_slice"]) == along.argmax()


def expected_area(mask, codes):
    return float(mask.sum(axis=tuple(axis for axis in range(3) if codes[axis] != "S")).max())


def test_three_files_of_a_case_are_one_scan(case, trained_run, from_slices, tmp_path):
    slices = read_case(case)
    folder = tmp_path / "in" / "patient"
    folder.mkdir(parents=True)
    for name, channel in {"pre": 0, "FLAIR": 1, "T1ce": 2, "t2": 0}.items():
        nib.save(as_volume(slices[..., channel], "RAS", SPACING), folder / f"{name}.nii")
    nib.save(as_volume(slices[..., 0], "RAS", SPACING), folder / "patient_seg.nii")
    outcome = call_predict(
        trained_run[0], tmp_path / "in", tmp_path / "out", mirror=True, wanted=Wanted(probabilities=True)
    )
    assert sorted(p.name for p in (tmp_path / "out" / "patient").iterdir()) == [
        "patient_pred.nii", "patient_probability.nii"
    ]  # fmt: skip
    mask = read_masks(tmp_path / "out")["patient"]
    assert dice(mask.voxels, read_masks(from_slices)[case.name].voxels) > 0.999 and mask.spacing == (5.0, 1.0, 1.0)
    assert outcome.notes == {"t2.nii is not used": ["patient"]}
    probability = nib.load(tmp_path / "out" / "patient" / "patient_probability.nii")
    assert probability.get_data_dtype() == np.float32
    assert (np.asarray(probability.dataobj)[2:5, 3] <= 1).all()


def test_flair_alone_replaces_the_others_whatever_its_range(case, trained_run, tmp_path):
    """As a gray image, as 8-bit NIfTI, and on another scale, which the note reports."""
    flair = read_case(case)[..., 1]
    flair[0, 0, :2] = 0, 255  # so that the full range is taken
    flair.reshape(-1)[: flair.size // 900] = 255
    for folder in ("gray", "color"):
        (tmp_path / folder).mkdir()
    for number, pixels in enumerate(flair, start=1):
        Image.fromarray(pixels).save(tmp_path / "gray" / f"case_{number}.png")
        Image.fromarray(np.stack([pixels] * 3, axis=-1)).save(tmp_path / "color" / f"case_{number}.png")
    nib.save(as_volume(flair.astype(np.int16), "RAS", SPACING), tmp_path / "whole.nii.gz")
    nib.save(as_volume(flair * np.float32(0.37) - 7, "RAS", SPACING), tmp_path / "scaled.nii.gz")
    masks, notes = {}, {}
    for name in ("gray", "color", "whole.nii.gz", "scaled.nii.gz"):
        outcome = call_predict(trained_run[0], tmp_path / name, tmp_path / "out" / name)
        (mask,) = read_masks(tmp_path / "out" / name).values()
        masks[name], notes[name] = mask.voxels, list(outcome.notes)
    stand_in = "used as FLAIR; the missing pre- and post-contrast sequences are replaced by FLAIR"
    assert notes["gray"] == notes["whole.nii.gz"] == [stand_in] and notes["color"] == []
    assert notes["scaled.nii.gz"] == ["FLAIR: values -7 to 87.35 mapped to 0 to 255", stand_in]
    for name in ("gray", "whole.nii.gz", "scaled.nii.gz"):
        assert dice(masks[name], masks["color"]) > 0.999, name


def test_maps_on_request(case, trained_run, from_slices, tmp_path):
    """Mean and spread of a slice and its mirror image, computed with the network itself."""
    trained = load_trained(trained_run[0])
    probability, spread = (
        np.stack([np.asarray(Image.open(from_slices / f"{case.name}_{n}_{kind}.tif")) for n in range(1, 17)])
        for kind in ("probability", "uncertainty")
    )
    assert probability.dtype == spread.dtype == np.float32 and probability.shape == (16, 256, 256)
    np.testing.assert_array_equal(trained.posts[0](probability), read_masks(from_slices)[case.name].voxels)
    for name, slices in {"plain": read_case(case), "mirrored": read_case(case)[:, :, ::-1]}.items():
        (tmp_path / name).mkdir()
        for number, pixels in enumerate(slices, start=1):
            Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / name / f"a_{number}.tif")
        call_predict(
            trained_run[0], tmp_path / name, tmp_path / "out" / name, wanted=Wanted(probabilities=True), mirror=False
        )
    plain, mirrored = (
        np.stack([np.asarray(Image.open(tmp_path / "out" / name / f"a_{n}_probability.tif")) for n in range(1, 17)])
        for name in ("plain", "mirrored")
    )
    mirrored = mirrored[:, :, ::-1]
    assert np.abs(plain - mirrored).max() > 0.01
    np.testing.assert_allclose(probability, (plain + mirrored) / 2, atol=1e-5)
    np.testing.assert_allclose(spread, np.abs(plain - mirrored) / 2, atol=1e-5)
    overlay = Image.open(from_slices / f"{case.name}_overlay.png")
    assert overlay.size[0] == 4 * 256 and 4 * 256 < overlay.size[1] < 4 * 256 + 40  # a line of text below
    tile = np.asarray(overlay)[2 * 256 : 3 * 256, 2 * 256 : 3 * 256].astype(int)  # slice 11
    mask = read_masks(from_slices)[case.name].voxels[10]
    red = (tile == (0xFF, 0x3D, 0x00)).all(axis=-1)
    assert red.any() and not red[~mask].any()


def test_runs_predict_together_each_with_its_own_normalization_and_size(case, trained_run, tmp_path):
    """The mean of two runs; one has another normalization and size."""
    other = tmp_path / "other"
    shutil.copytree(trained_run[0], other)
    config = json.loads((other / "config.json").read_text())
    config["data"] |= {"normalization": "rescale", "image_size": 64}
    (other / "config.json").write_text(json.dumps(config))
    maps = {}
    for name, run in {"one": trained_run[0], "two": other, "both": [trained_run[0], other]}.items():
        call_predict(run, case, tmp_path / "out" / name, wanted=Wanted(probabilities=True, uncertainty=name == "both"))
        maps[name] = {
            kind: np.stack([
                np.asarray(Image.open(tmp_path / "out" / name / f"{case.name}_{n}_{kind}.tif")) for n in range(1, 17)
            ])
            for kind in (("probability", "uncertainty") if name == "both" else ("probability",))
        }  # fmt: skip
    one, two = (maps[name]["probability"] for name in ("one", "two"))
    assert np.abs(one - two).max() > 0.05
    np.testing.assert_allclose(maps["both"]["probability"], (one + two) / 2, atol=1e-5)
    np.testing.assert_allclose(maps["both"]["uncertainty"], np.abs(one - two) / 2, atol=1e-5)


class SyntheticScan(Scan):
    """A scan of any size; its mask is not written."""

    def write(self, kind, values, paths, description, words=()):
        """Writes nothing."""


def test_one_compiled_shape_serves_all_sizes(trained_run):
    trained = load_trained(trained_run[0])
    ensemble = Ensemble([trained.network], trained.posts, mirror=False)
    ensemble.compile()
    step = ensemble._runner._steps[False]
    compiled = step._cache_size()  # includes those of other tests: jax keeps one cache for a function
    for shape, spacing in (((1, 40, 50), None), ((23, 100, 80), (5.0, 1.0, 2.0)), ((16, 256, 256), None)):
        voxels = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
        scan = SyntheticScan(voxels, spacing, tuple(range(shape[0])), ())
        seen = []
        maps = combine(ensemble.predict(ensemble.prepare(scan), seen.append))
        assert maps.probability.shape == (*shape, 1) and sum(seen) == shape[0] and not maps.uncertainty.any()
    assert step._cache_size() == compiled


def test_a_canvas_keeps_proportions_and_gives_back_the_grid():
    """Pixels of 1 x 2 mm: 100 rows are 100 mm, 80 columns 160 mm, so 60 rows are added."""
    canvas = Canvas.around((1, 100, 80), (5.0, 1.0, 2.0), image_size=160)
    assert canvas.padded == (160, 80)
    voxels = np.zeros((1, 100, 80, 3), np.uint8)
    voxels[0, :, 40:] = 200
    seen = canvas.to_network(voxels)[0, ..., 1]
    assert seen[:30].max() == 0 and seen[130:].max() == 0 and (seen[32:128, 82:] == 200).all()
    back = canvas.from_network(seen[None, ..., None].astype(np.float32))[..., 0]
    assert back.shape == (1, 100, 80) and (back[0, 2:98, 42:] == 200).all() and back[0, :, :38].max() == 0
    assert Canvas.around((9, 256, 256), None, image_size=64).padded == (256, 256)


def test_a_single_slice_is_warned_about(case, trained_run, tmp_path, capsys):
    call_predict(trained_run[0], case / f"{case.name}_7.tif", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        f"{case.name}_7_pred.tif", "areas.csv", "predictions.csv"
    ]  # fmt: skip
    assert f"note: {case.name}: a single slice, so its normalization uses this slice alone" in capsys.readouterr().out


def test_the_command(case, trained_run, tmp_path):
    """Runs the command on a valid case and a damaged one: exit status 5."""
    shutil.copytree(case, tmp_path / "in" / case.name)
    (tmp_path / "in" / "text.nii").write_text("no volume")
    command = [sys.executable, "-m", "brainseg_jax.predict", f"--run={trained_run[0]}", f"--input={tmp_path / 'in'}"]
    done = subprocess.run([*command, f"--output={tmp_path / 'out'}"], capture_output=True, text=True, check=False)
    assert done.returncode == 5 and "Traceback" not in done.stderr, done.stderr
    assert "error: 1 of 2 scans could not be predicted; the others are done:\n" in done.stderr
    assert "1 scan, 16 slices in" in done.stdout and "% of the time in the network" in done.stdout
    assert len(list((tmp_path / "out" / case.name).glob("*_pred.tif"))) == 16
