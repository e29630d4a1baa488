"""The synthetic cohorts: `list_cohort` finds the same patients in each layout."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from brainseg_jax.data.formats import ALL, list_cohort
from brainseg_jax.data.phantom_cohort import make_cases, write_phantom_cohort
from brainseg_jax.errors import InputError
from brainseg_jax.scans.nifti_file import open_nifti

LAYOUTS = ("brats", "bids", "nnunet", "msd", "pairs")
REGIONS = {"whole tumor": (2, 1, 3), "tumor core": (1, 3), "enhancing tumor": (3,)}


@pytest.fixture(scope="module")
def painted():
    return list(make_cases(patients=4, seed=0, time_points=2))


@pytest.fixture(scope="module")
def listings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom_cohort")
    return {name: list_cohort(write_phantom_cohort(folder, layout=name, patients=4, seed=0)) for name in LAYOUTS}


def test_patients(painted):
    assert [(case.patient, case.time) for case in painted] == [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0), (3, 1)]
    assert len({case.labels.shape for case in painted}) > 1 and len({case.grid.spacing for case in painted}) > 1
    for case in painted:
        assert set(np.unique(case.labels)) == {0, 1, 2, 3}
        assert 0.003 < np.mean(case.labels > 0) < 0.05
        t1c, t2f = case.voxels[1], case.voxels[3]
        assert np.median(t1c[case.labels == 3]) > 1.2 * np.median(t1c[case.labels == 2])
        assert np.median(t2f[case.labels == 2]) > 1.3 * np.median(t2f[(case.labels == 0) & (t2f > t2f.max() / 5)])
    first, second = painted[:2]
    assert first.grid.spacing == second.grid.spacing and first.labels.shape == second.labels.shape
    assert (second.labels[first.labels > 0] > 0).all() and (second.labels > 0).sum() > (first.labels > 0).sum()
    assert not np.array_equal(first.voxels, second.voxels)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_listed_as_what_it_is(listings, layout):
    listing = listings[layout]
    kinds = ("BraTS from 2023 on", "BIDS", "nnU-Net raw", "Medical Segmentation Decathlon", "pairs of image and mask")
    assert listing.kind == kinds[LAYOUTS.index(layout)]
    assert len(listing.cases) == 6 and len({case.patient for case in listing.cases}) == 4
    patients = [case.patient for case in listing.cases]
    assert patients[0] == patients[1] and patients[4] == patients[5]
    targets = {target.name: target.labels for target in listing.description.targets}
    if layout in ("brats", "bids", "nnunet"):
        assert targets == REGIONS and listing.description.painted == (2, 1, 3)
    elif layout == "msd":
        assert targets == {"necrosis": (1,), "edema": (2,), "enhancing tumor": (3,)}
    if layout in ("nnunet", "msd", "pairs"):
        assert [case.group for case in listing.cases] == ["PA", "PA", "PB", "PA", "PB", "PB"]


def test_volumes_are_the_painted_ones(listings, painted):
    """Each file contains the painted volume in every layout, after its affine gives axial slices."""
    assert listings["bids"].description.channels == ("T1w", "T1w-ce", "T2w", "FLAIR")
    channels = {"brats": ("t1n", "t1c", "t2w", "t2f"), "bids": ("T1w", "T1w-ce", "T2w", "FLAIR")}
    channels["nnunet"] = channels["brats"]
    codes = set()
    for layout, names in channels.items():
        for case, expected in zip(listings[layout].cases, painted, strict=True):
            for name, voxels in zip(names, expected.voxels, strict=True):
                found = open_nifti(case.images[name])
                np.testing.assert_array_equal(found.grid.to_slices(found.values), voxels)
            found = open_nifti(case.labels)
            np.testing.assert_array_equal(found.grid.to_slices(found.values), expected.labels)
            np.testing.assert_allclose(found.grid.spacing, expected.grid.spacing, rtol=1e-6)
            codes.add(nib.aff2axcodes(nib.load(case.labels).affine))
    assert codes == {("R", "A", "S"), ("L", "P", "S")}
    for case, expected in zip(listings["msd"].cases, painted, strict=True):
        found = open_nifti(case.images[ALL])
        slices = found.grid.to_slices(found.values)
        np.testing.assert_array_equal(np.moveaxis(slices, -1, 0), expected.voxels)
    for case, expected in zip(listings["pairs"].cases, painted, strict=True):
        masks = [np.asarray(Image.open(path)) for _, path in case.labels]
        np.testing.assert_array_equal(np.stack(masks), 255 * (expected.labels > 0))


def test_a_patient_depends_on_seed_and_place_only(painted):
    more = list(make_cases(patients=5, seed=0, time_points=1))
    other = next(make_cases(patients=1, seed=1, time_points=1))
    np.testing.assert_array_equal(more[1].voxels, painted[2].voxels)
    assert other.voxels.shape != painted[0].voxels.shape or not np.array_equal(other.voxels, painted[0].voxels)


def test_regions_of_nnunet(listings):
    content = json.loads((listings["nnunet"].root / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, **{name: list(values) for name, values in REGIONS.items()}}


def test_refused(tmp_path):
    with pytest.raises(InputError, match="layout='dicom'; give one of brats, bids, nnunet, msd, pairs"):
        write_phantom_cohort(tmp_path, layout="dicom", patients=1, seed=0)
    for change in ({"patients": 0}, {"seed": -1}, {"time_points": 0}):
        with pytest.raises(InputError, match="give 1 to 999 patients"):
            write_phantom_cohort(tmp_path, **{"layout": "msd", "patients": 1, "seed": 0, **change})
    assert not list(tmp_path.iterdir())
    write_phantom_cohort(tmp_path, layout="msd", patients=1, seed=0)
    with pytest.raises(InputError, match="Task91_Phantom: already exists"):
        write_phantom_cohort(tmp_path, layout="msd", patients=1, seed=0)
