"""`list_images`: unlabelled scans for prediction by a trained network."""

import numpy as np
import pytest
from format_folders import shown, touch, write_json
from PIL import Image

from brainseg_jax.data.formats import ALL, list_images
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import LGG, Description, Target

BRATS = Description(("t1n", "t1c", "t2w", "t2f"), (Target("tumor", (1,)),))
TWO = Description(("T1", "FLAIR"), (Target("tumor", (1,)),))
MRI = Description(("MRI",), (Target("tumor", (1,)),))
IMAGE = Description(("image",), (Target("foreground", (1,)),))


def cases(root, description, path=None):
    listing = list_images(root if path is None else root / path, description)
    assert listing.description == description and all(case.labels is None for case in listing.cases)
    return [(shown(root, case)[0], shown(root, case)[3]) for case in listing.cases]


def test_nnunet_numbers(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz")
    a = ("a", {"T1": "a_0000.nii.gz", "FLAIR": "a_0001.nii.gz"})
    assert cases(tmp_path, TWO) == [a, ("b", {"T1": "b_0000.nii.gz", "FLAIR": "b_0001.nii.gz"})]
    assert cases(tmp_path, TWO, "a_0000.nii.gz") == [a] == cases(tmp_path, TWO, "a_0001.nii.gz")


def test_folders_of_the_training_formats(tmp_path):
    """If a data set has test images, these are predicted."""
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    write_json(tmp_path, {})
    assert cases(tmp_path, MRI) == [("a", {"MRI": "imagesTr/a_0000.nii.gz"})]
    touch(tmp_path, "imagesTs/b_0000.nii.gz", "labelsTs/b.nii.gz")
    listing = list_images(tmp_path, MRI)
    assert [case.name for case in listing.cases] == ["b"] and "only imagesTs is predicted" in listing.notes[0]


def test_stacked_channels(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii", "a_mask.nii.gz", "a_probability.nii.gz", "notes.txt")
    assert cases(tmp_path, TWO) == [("a", {ALL: "a.nii.gz"}), ("b", {ALL: "b.nii"})]
    assert cases(tmp_path, MRI, "b.nii") == [("b", {"MRI": "b.nii"})]
    passed_over = list_images(tmp_path, TWO).passed_over
    assert {path.name for paths in passed_over.values() for path in paths} == {
        "a_mask.nii.gz",
        "a_probability.nii.gz",
        "notes.txt",
    }


@pytest.mark.parametrize("names", [("t1n", "t1c", "t2w", "t2f"), ("T1", "t1ce", "T2", "FLAIR")])
def test_sequences_in_any_spelling(tmp_path, names):
    files = {channel: f"P1/P1_{name}.nii.gz" for channel, name in zip(BRATS.channels, names, strict=True)}
    touch(tmp_path, *files.values(), "P1/P1_seg.nii.gz", "P1/P1_adc.nii.gz")
    assert cases(tmp_path, BRATS) == [("P1", files)] == cases(tmp_path, BRATS, files["t2w"])
    assert cases(tmp_path, TWO) == [("P1", {"T1": files["t1n"], "FLAIR": files["t2f"]})]
    three = {"pre-contrast": files["t1n"], "FLAIR": files["t2f"], "post-contrast": files["t1c"]}
    assert cases(tmp_path, LGG) == [("P1", three)]


def test_bids(tmp_path):
    place = "sub-1/ses-2/anat/sub-1_ses-2"
    touch(tmp_path, *(f"{place}_{name}.nii.gz" for name in ("T1w", "ce-gd_T1w", "T2w", "FLAIR", "PDw")))
    touch(tmp_path, "derivatives/hand/sub-1/ses-2/anat/sub-1_ses-2_dseg.nii.gz", "derivatives/x/sub-1_FLAIR.nii.gz")
    files = {"t1n": "T1w", "t1c": "ce-gd_T1w", "t2w": "T2w", "t2f": "FLAIR"}
    found = {channel: f"{place}_{name}.nii.gz" for channel, name in files.items()}
    assert cases(tmp_path, BRATS) == [("sub-1_ses-2", found)]
    trained = Description(("FLAIR", "T1w-ce"), (Target("tumor", (1,)),))
    assert cases(tmp_path, trained) == [("sub-1_ses-2", {"FLAIR": found["t2f"], "T1w-ce": found["t1c"]})]


def test_slices_and_pairs(tmp_path):
    touch(tmp_path, *(f"{case}_{n}{mark}.png" for case in "ab" for n in (1, 2) for mark in ("", "_mask")))
    slices = [(case, {"image": ((1, f"{case}_1.png"), (2, f"{case}_2.png"))}) for case in "ab"]
    assert cases(tmp_path, IMAGE) == slices
    assert cases(tmp_path, IMAGE, "a_2.png") == [("a", {"image": ((2, "a_2.png"),)})]
    touch(tmp_path / "x", "images/c.png", "masks/c.png")
    assert cases(tmp_path / "x", IMAGE) == [("c", {"image": ((1, "images/c.png"),)})]


def test_slices_of_nnunet(tmp_path):
    """One image is one case, even if channel numbers look like slice numbers."""
    touch(tmp_path, "a_0000.png", "a_0001.png", "b_0000.png", "b_0001.png")
    assert cases(tmp_path, TWO)[0] == ("a", {"T1": ((1, "a_0000.png"),), "FLAIR": ((1, "a_0001.png"),)})
    assert cases(tmp_path, IMAGE)[0] == ("a", {"image": ((0, "a_0000.png"), (1, "a_0001.png"))})


def test_a_color_image_of_nnunet_holds_all_channels(tmp_path):
    colors = Description(("R", "G", "B"), (Target("road", (1,)),))
    for name, pixels in (("img-1", np.zeros((4, 4, 3), np.uint8)), ("img-2", np.zeros((4, 4), np.uint8))):
        Image.fromarray(pixels).save(tmp_path / f"{name}_0000.png")
    assert cases(tmp_path, colors, "img-1_0000.png") == [("img-1", {ALL: ((1, "img-1_0000.png"),)})]
    with pytest.raises(InputError, match=r"img-2: no G \(present: R = img-2_0000.png\)"):
        list_images(tmp_path, colors)


def test_files_that_cohort_toml_describes(tmp_path):
    (tmp_path / "cohort.toml").write_text(
        'labels = "{case}/roi.nii.gz"\n[channels]\nT1 = "{case}/one.nii.gz"\nFLAIR = "{case}/two.nii.gz"\n'
    )
    touch(tmp_path, "P1/one.nii.gz", "P1/two.nii.gz")
    assert cases(tmp_path, Description(("T1",), TWO.targets)) == [("P1", {"T1": "P1/one.nii.gz"})]
    assert cases(tmp_path, TWO) == [("P1", {"T1": "P1/one.nii.gz", "FLAIR": "P1/two.nii.gz"})]


def test_of_a_single_file_cohort_toml_is_not_read(tmp_path):
    touch(tmp_path, "a_one.nii.gz", "b_one.nii.gz")
    (tmp_path / "cohort.toml").write_text('labels = "{case}_two.nii.gz"\n[channels]\nMRI = "{case}_one.nii.gz"\n')
    assert [name for name, _ in cases(tmp_path, MRI)] == ["a", "b"]
    assert cases(tmp_path, MRI, "a_one.nii.gz") == [("a_one", {"MRI": "a_one.nii.gz"})]


def test_cases_with_numbers_of_four_digits(tmp_path):
    touch(tmp_path, "BRATS_0000.nii.gz", "BRATS_0484.nii.gz")
    assert [name for name, _ in cases(tmp_path, TWO)] == ["BRATS_0000", "BRATS_0484"]


def test_names_given_twice_get_their_folders(tmp_path):
    touch(tmp_path, "x/a.nii.gz", "y/a.nii.gz")
    assert cases(tmp_path, MRI) == [("x", {"MRI": "x/a.nii.gz"}), ("y", {"MRI": "y/a.nii.gz"})]


def test_a_missing_channel_may_be_replaced(tmp_path):
    touch(tmp_path, "a_flair.nii.gz")
    listing = list_images(tmp_path, Description(("T1", "FLAIR"), TWO.targets, stand_in="FLAIR"))
    assert listing.notes == ("1 of 1 cases have no T1: FLAIR replaces it",)
    with pytest.raises(InputError, match=r"a: no T1 \(present: FLAIR = a_flair\.nii\.gz\); add its file$"):
        list_images(tmp_path, TWO)


@pytest.mark.parametrize(
    ("names", "description", "words"),
    [
        (["notes.txt"], MRI, "no image in it; give NIfTI volumes"),
        (["a_flair.nii.gz", "a_t2f.nii.gz", "a_T1.nii.gz"], TWO, "a second FLAIR of a, beside a_flair.nii.gz"),
        (
            ["a_0000.nii.gz", "a_0001.nii.gz"],
            MRI,
            r"a_0001\.nii\.gz: its number is too large for the channels of the network \(MRI\)",
        ),
        (["a.nii.gz", "a.nii"], MRI, "a second file of this name"),
        (["a_1.png", "a_3.png"], IMAGE, "1 of the slices 1 to 3 are missing, number 2 first"),
    ],
)
def test_refused(tmp_path, names, description, words):
    with pytest.raises(InputError, match=words):
        list_images(touch(tmp_path, *names), description)
    with pytest.raises(InputError, match="no such file or folder"):
        list_images(tmp_path / "none", description)
