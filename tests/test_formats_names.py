"""BraTS, pairs and BIDS: the information in file names."""

import nibabel as nib
import numpy as np
import pytest
from format_folders import faults, shown, touch
from PIL import Image

from brainseg_jax.data.formats import ALL, list_cohort, targets_from_values
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Target

OLD, NEW = ("t1", "t1ce", "t2", "flair"), ("t1n", "t1c", "t2w", "t2f")


def brats(case, sequences, mark, folder=""):
    return [f"{folder}{case}{mark}{sequence}.nii.gz" for sequence in (*sequences, "seg")]


@pytest.mark.parametrize(
    ("case", "sequences", "mark", "enhancing"),
    [
        ("Brats18_TCIA01_131_1", OLD, "_", 4),
        ("BraTS20_Training_001", OLD, "_", 4),
        ("BraTS2021_00000", OLD, "_", 4),
        ("BraTS-GLI-00001-000", NEW, "-", 3),
        ("BraTS-PED-00012-000", NEW, "-", 3),
    ],
)
@pytest.mark.parametrize("folder", ["", "Training/{case}/"])
def test_brats_of_all_years(tmp_path, case, sequences, mark, enhancing, folder):
    folder = folder.format(case=case)
    touch(tmp_path, *brats(case, sequences, mark, folder), "survival_info.csv")
    listing = list_cohort(tmp_path)
    assert listing.description.channels == sequences and listing.targets_known
    assert listing.description.targets == (
        Target("whole tumor", (2, 1, enhancing)),
        Target("tumor core", (1, enhancing)),
        Target("enhancing tumor", (enhancing,)),
    )
    (found,) = listing.cases
    files = {sequence: f"{folder}{case}{mark}{sequence}.nii.gz" for sequence in sequences}
    patient = case.removesuffix("-000")
    assert shown(tmp_path, found) == (case, patient, "", files, f"{folder}{case}{mark}seg.nii.gz")


@pytest.mark.parametrize("enhancing", [3, 4])
def test_label_map_of_brats_comes_back(tmp_path, enhancing):
    sequences, mark = (OLD, "_") if enhancing == 4 else (NEW, "-")
    description = list_cohort(touch(tmp_path, *brats("BraTS", sequences, mark))).description
    labels = np.array([0, 1, 2, enhancing], np.uint8)
    assert description.masks(labels).tolist() == [[0, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1]]
    np.testing.assert_array_equal(description.label_map(description.masks(labels)), labels)


def test_time_points_are_one_patient(tmp_path):
    for case in ("BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "BraTS-GLI-00002-000"):
        touch(tmp_path, *brats(case, NEW, "-"))
    listing = list_cohort(tmp_path)
    patients = ["BraTS-GLI-00001", "BraTS-GLI-00001", "BraTS-GLI-00002"]
    assert [case.patient for case in listing.cases] == patients
    assert any("BraTS-GLI-00001-000 and -001" in note for note in listing.notes)


def test_other_cases_with_files_of_sequences(tmp_path):
    """Their labels are not those of BraTS, even if the sequence names are."""
    names = ["P1/flair.nii.gz", "P1/T1.nii", "P1/mask.nii.gz", "P2/P2_FLAIR.nii.gz", "P2/P2-T1.nii.gz"]
    touch(tmp_path, *names, "P2/P2_FLAIR_seg.nii.gz")
    touch(
        tmp_path, "P3/P3_flair.nii.gz", "P3/P3_t1.nii.gz", "P3/P3_tumor_segmentation.nii.gz", "P3/P3_brain_mask.nii.gz"
    )
    listing = list_cohort(tmp_path)
    assert [shown(tmp_path, case) for case in listing.cases] == [
        ("P1", "P1", "", {"flair": "P1/flair.nii.gz", "t1": "P1/T1.nii"}, "P1/mask.nii.gz"),
        ("P2", "P2", "", {"flair": "P2/P2_FLAIR.nii.gz", "t1": "P2/P2-T1.nii.gz"}, "P2/P2_FLAIR_seg.nii.gz"),
        ("P3", "P3", "", {"flair": "P3/P3_flair.nii.gz", "t1": "P3/P3_t1.nii.gz"}, "P3/P3_tumor_segmentation.nii.gz"),
    ]
    assert listing.description.channels == ("t1", "flair")
    assert not listing.targets_known and listing.description.targets == (Target("foreground", (1,)),)
    assert listing.notes[0].startswith("each case counts as a separate patient")
    assert any("the label values do" in note for note in listing.notes)


def test_faults_of_sequence_files(tmp_path):
    for case in ("BraTS-GLI-00001-000", "BraTS-GLI-00002-000"):
        touch(tmp_path, *brats(case, NEW, "-", f"{case}/"))
    (tmp_path / "BraTS-GLI-00002-000/BraTS-GLI-00002-000-t1c.nii.gz").unlink()
    touch(tmp_path, "more/BraTS-GLI-00001-000-t2f.nii.gz", *brats("BraTS20_Training_001", OLD[3:], "_"))
    touch(tmp_path, "x-seg.nii.gz")
    lines = "\n".join(faults(tmp_path))
    first = "BraTS-GLI-00001-000/BraTS-GLI-00001-000-t2f.nii.gz"
    assert f"more/BraTS-GLI-00001-000-t2f.nii.gz: a second t2f of BraTS-GLI-00001-000, beside {first}" in lines
    assert f"flair (BraTS20_Training_001_flair.nii.gz), t2f ({first}): spellings of one sequence" in lines
    assert "label 4 where later years" in lines
    assert "BraTS-GLI-00002-000: no t1c (present: " in lines
    assert "x-seg.nii.gz: a label without image" in lines


@pytest.mark.parametrize(
    ("image", "mask", "case"),
    [
        ("a.nii.gz", "a_mask.nii.gz", "a"),
        ("a.nii.gz", "a-seg.nii", "a"),
        ("a_image.nii.gz", "a_label.nii.gz", "a"),
        ("a.nii.gz", "a_tumor_segmentation.nii.gz", "a"),
        ("a_tumor.png", "a_tumor_mask.png", "a_tumor"),
        ("images/a_label.png", "masks/a_label.png", "a_label"),
        ("P1/scan.nii.gz", "P1/lesion.nii.gz", "P1"),
        ("a.png", "a_label.png", "a"),
        ("images/a.nii.gz", "masks/a.nii.gz", "a"),
        ("images/a.tif", "labels/a.png", "a"),
        ("img/a.png", "mask/a_mask.png", "a"),
        ("site/images/a.png", "site/masks/a.png", "a"),
        ("P1/image.nii.gz", "P1/mask.nii.gz", "P1"),
        ("images/a_T1.nii.gz", "masks/a_T1.nii.gz", "a"),
    ],
)
def test_pairs(tmp_path, image, mask, case):
    listing = list_cohort(touch(tmp_path, image, mask))
    (found,) = listing.cases
    wrap = (lambda name: name) if ".nii" in image else (lambda name: ((1, name),))
    channel = "t1" if "T1" in image else "image"
    assert shown(tmp_path, found) == (case, case, "", {channel: wrap(image)}, wrap(mask))
    assert not listing.targets_known and not listing.passed_over
    assert not any("each case counts" in note for note in listing.notes)


def test_folders_name_cases_whose_files_are_named_alike(tmp_path):
    names = [f"{case}/{what}.nii.gz" for case in ("P1", "P2") for what in ("image", "mask")]
    assert [case.name for case in list_cohort(touch(tmp_path / "one", *names)).cases] == ["P1", "P2"]
    names = [f"{case}/{slice}{mark}.png" for case in ("P1", "P2") for slice in (1, 2) for mark in ("", "_mask")]
    cases = list_cohort(touch(tmp_path / "two", *names)).cases
    images = {"image": ((1, "P2/1.png"), (2, "P2/2.png"))}
    assert shown(tmp_path / "two", cases[1]) == ("P2", "P2", "", images, ((1, "P2/1_mask.png"), (2, "P2/2_mask.png")))
    names = [f"{site}/{case}{mark}.nii.gz" for site in "xy" for case in ("P1", "P2") for mark in ("", "_mask")]
    assert [case.name for case in list_cohort(touch(tmp_path / "three", *names)).cases] == [
        "x_P1",
        "x_P2",
        "y_P1",
        "y_P2",
    ]


def test_slices_of_a_case(tmp_path):
    numbers = (9, 10, 11)
    touch(tmp_path, *(f"a_{n}{mark}.png" for n in numbers for mark in ("", "_mask")), "b_3.png", "b_3_mask.png")
    listing = list_cohort(tmp_path)
    images = tuple((n, f"a_{n}.png") for n in numbers)
    assert shown(tmp_path, listing.cases[0]) == (
        "a",
        "a",
        "",
        {"image": images},
        tuple((n, f"a_{n}_mask.png") for n in numbers),
    )
    assert listing.cases[1].name == "b" and "3 of a, for example; 2 cases in all" in listing.notes[0]
    (tmp_path / "cohort.toml").write_text("slices = false")
    assert [case.name for case in list_cohort(tmp_path).cases] == ["a_10", "a_11", "a_9", "b_3"]


def test_faults_of_pairs(tmp_path):
    names = [f"a_{n}{mark}.png" for n in (1, 2, 5) for mark in ("", "_mask")]
    touch(tmp_path, *names, "a_6.png", "a_7_mask.png", "b_1_mask.png", "c_1.png", "images/c_1.png", "c_01.png")
    lines = "\n".join(faults(tmp_path))
    assert "a: 2 of the slices 1 to 6 are missing, number 3 first (present: a_1.png)" in lines
    assert "a_6.png: an image without label; add its label" in lines
    assert "a_7_mask.png: a label without image; add its image" in lines
    assert "b_1_mask.png: a label without image; add the image of case b" in lines
    assert "images/c_1.png: a second image of c_1, beside c_1.png" in lines
    assert "c_1.png: a second image for slice 1 of c, beside c_01.png" in lines
    assert "an image without label; add c_mask, or masks/c" in lines


def test_a_volume_and_slices(tmp_path):
    for image, mask in (("a.nii.gz", "a_mask.png"), ("a.png", "a_mask.nii.gz")):
        root = touch(tmp_path / image, image, mask)
        assert faults(root) == [f"{image}, with the label {mask}: a volume and 2-D images; give both in one format"]


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (["a_1", "a_2", "b_1"], "a_1 and a_2"),
        (["a", "b-tp1", "b-tp2", "b-tp3"], "b-tp1 and b-tp2"),
        (["x_001", "x_002"], None),
        (["a", "b"], None),
    ],
)
def test_cases_that_can_be_of_one_patient_are_noted(tmp_path, names, alike):
    touch(tmp_path, *(f"{name}{mark}.nii.gz" for name in names for mark in ("", "_mask")))
    note, _ = list_cohort(tmp_path).notes
    assert note.startswith("each case counts as a separate patient; if a patient has several, add patients.csv")
    assert note.endswith(f"; {alike}, for example, look like scans of one patient" if alike else "and patient")


def test_channels_of_pairs(tmp_path):
    """Colors, and a fourth axis."""
    touch(tmp_path, "png/a_mask.png", "nii/a_mask.nii.gz", "gray/a_mask.tif")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "png/a.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "gray/a.tif")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), np.eye(4)), tmp_path / "nii/a.nii.gz")
    png, nii, gray = (list_cohort(tmp_path / name) for name in ("png", "nii", "gray"))
    assert png.description.channels == ("red", "green", "blue") and set(png.cases[0].images) == {ALL}
    assert nii.description.channels == ("channel 0", "channel 1") and set(nii.cases[0].images) == {ALL}
    assert gray.description.channels == ("image",) and set(gray.cases[0].images) == {"image"}


BIDS = [
    "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
    "sub-01/ses-a/anat/sub-01_ses-a_ce-gadolinium_T1w.nii.gz",
    "sub-01/ses-a/anat/sub-01_ses-a_FLAIR.nii.gz",
    "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz",
    "sub-01/ses-b/anat/sub-01_ses-b_ce-gd_T1w.nii.gz",
    "sub-01/ses-b/anat/sub-01_ses-b_FLAIR.nii.gz",
    "sub-02/anat/sub-02_T1w.nii",
    "sub-02/anat/sub-02_ce-gd_acq-3d_T1w.nii.gz",
    "sub-02/anat/sub-02_FLAIR.nii.gz",
    "sub-02/anat/sub-02_FLAIR.json",
    "sub-02/func/sub-02_bold.nii.gz",
    "derivatives/hand/sub-01/ses-a/anat/sub-01_ses-a_label-lesion_mask.nii.gz",
    "derivatives/hand/sub-01/ses-b/anat/sub-01_ses-b_label-lesion_mask.nii.gz",
    "derivatives/hand/sub-02/anat/sub-02_label-lesion_mask.nii.gz",
    "derivatives/hand/sub-02/anat/sub-02_desc-brain_mask.nii.gz",
]


def test_bids(tmp_path):
    listing = list_cohort(touch(tmp_path, *BIDS))
    assert (listing.kind, listing.targets_known) == ("BIDS", False)
    assert not any("each case counts" in note for note in listing.notes)
    assert listing.description.channels == ("T1w", "T1w-ce", "FLAIR")
    assert [(case.name, case.patient) for case in listing.cases] == [
        ("sub-01_ses-a", "sub-01"),
        ("sub-01_ses-b", "sub-01"),
        ("sub-02", "sub-02"),
    ]
    assert shown(tmp_path, listing.cases[2])[3:] == (
        {
            "T1w": "sub-02/anat/sub-02_T1w.nii",
            "T1w-ce": "sub-02/anat/sub-02_ce-gd_acq-3d_T1w.nii.gz",
            "FLAIR": "sub-02/anat/sub-02_FLAIR.nii.gz",
        },
        "derivatives/hand/sub-02/anat/sub-02_label-lesion_mask.nii.gz",
    )


def test_labels_of_bids_are_named_by_a_table(tmp_path):
    touch(tmp_path, *BIDS)
    table = tmp_path / "derivatives/hand/dseg.tsv"
    table.write_text("index\tname\n0\tbackground\n1\tedema\n3\tcore\n")
    listing = list_cohort(tmp_path)
    assert listing.targets_known and listing.description.targets == (Target("edema", (1,)), Target("core", (3,)))
    assert listing.notes == ("labels by derivatives/hand/dseg.tsv: 1 edema, 3 core",)
    table.write_text("index\tname\none\tedema\n")
    assert faults(tmp_path)[0].startswith("derivatives/hand/dseg.tsv: line 2: index 'one', name 'edema'; give")


def test_faults_of_bids(tmp_path):
    touch(tmp_path, *BIDS, "sub-02/anat/sub-02_run-2_FLAIR.nii.gz", "sub-03/anat/sub-03_FLAIR.nii.gz")
    touch(tmp_path, "derivatives/hand/sub-04/anat/sub-04_label-lesion_mask.nii.gz")
    lines = "\n".join(faults(tmp_path))
    assert "sub-02/anat/sub-02_run-2_FLAIR.nii.gz: a second FLAIR of sub-02, beside sub-02_FLAIR.nii.gz" in lines
    assert "sub-03: no T1w (present: FLAIR = sub-03/anat/sub-03_FLAIR.nii.gz)" in lines
    assert "sub-03/anat/sub-03_FLAIR.nii.gz: an image without label; add a *_dseg.nii.gz in derivatives" in lines
    assert "sub-04_label-lesion_mask.nii.gz: a label without image; add the image of case sub-04" in lines


def test_kinds_of_masks_in_bids_are_chosen_by_hand(tmp_path):
    touch(tmp_path, *BIDS, *(name.replace("hand", "net").replace("label-lesion_mask", "dseg") for name in BIDS[11:14]))
    (line,) = faults(tmp_path)
    assert (
        "2 kinds of masks: derivatives/hand/*/{case}_label-lesion_mask.nii.gz (3 cases), derivatives/net/*/{case}"
        in line
    )
    (tmp_path / "cohort.toml").write_text('labels = "derivatives/hand/*_mask.nii.gz"')
    assert any("sub-02_label-lesion_mask.nii.gz: a second mask of sub-02" in line for line in faults(tmp_path))
    (tmp_path / "cohort.toml").write_text('labels = "derivatives/net/*/{case}_dseg.nii.gz"')
    labels = [shown(tmp_path, case)[4] for case in list_cohort(tmp_path).cases]
    assert labels[2] == "derivatives/net/sub-02/anat/sub-02_dseg.nii.gz" and len(set(labels)) == 3


@pytest.mark.parametrize(
    ("values", "targets"),
    [
        ({0, 1}, {"foreground": 1}),
        ({0, 255}, {"foreground": 1}),
        ({0, 4}, {"foreground": 4}),
        (np.array([2, 0, 1], np.uint8), {"label 1": 1, "label 2": 2}),
        ({0, 1, 2, 4}, {"label 1": 1, "label 2": 2, "label 4": 4}),
    ],
)
def test_targets_from_values(values, targets):
    assert targets_from_values(values) == tuple(Target(name, (value,)) for name, value in targets.items())


def test_ignored_value_is_no_target():
    assert targets_from_values({0, 1, 255}, ignore=255) == (Target("foreground", (1,)),)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({0}, "every label map is empty"),
        ({0, 1, 255}, "255 among others"),
        ({0, -1}, "label values -1; give whole numbers"),
        ({0, 300}, "label values 300"),
        (range(18), "17 label values"),
    ],
)
def test_values_that_tell_no_targets(values, words):
    with pytest.raises(InputError, match=words):
        targets_from_values(values)
