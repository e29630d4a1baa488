"""nnU-Net raw and the Decathlon: `dataset.json` against the files in the folders."""

import pytest
from format_folders import faults, refusal, shown, touch, write_json

from brainseg_jax.data.formats import ALL, list_cohort
from brainseg_jax.scans.description import Target

TWO_CHANNELS = {"0": "T1", "1": "FLAIR"}
V2 = {
    "channel_names": TWO_CHANNELS,
    "labels": {"background": 0, "core": 1, "edema": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
OLDER = {"modality": TWO_CHANNELS, "labels": {"0": "background", "1": "core", "2": "edema"}, "numTraining": 2}
FILES = [f"imagesTr/{case}_{number:04d}.nii.gz" for case in ("b", "a") for number in (0, 1)]
FILES += ["labelsTr/a.nii.gz", "labelsTr/b.nii.gz"]
EACH = "each case counts as a separate patient; if a patient has several, add patients.csv with the columns case and "
EACH += "patient"
CORE_EDEMA = (Target("core", (1,)), Target("edema", (2,)))
REGIONS = {"background": 0, "whole": [1, 2], "core": 1}


@pytest.fixture
def root(tmp_path):
    write_json(tmp_path / "Dataset001_Test", V2)
    return touch(tmp_path / "Dataset001_Test", *FILES)


def test_nnunet(root):
    touch(root, "imagesTs/c_0000.nii.gz", "imagesTr/._a_0000.nii.gz", "imagesTr/notes.txt")
    listing = list_cohort(root)
    assert (listing.kind, listing.root, listing.targets_known) == ("nnU-Net raw", root, True)
    assert listing.notes == (EACH,)
    assert listing.description.channels == ("T1", "FLAIR")
    assert listing.description.targets == CORE_EDEMA and listing.description.ignore is None
    assert [shown(root, case) for case in listing.cases] == [
        (
            name,
            name,
            "",
            {"T1": f"imagesTr/{name}_0000.nii.gz", "FLAIR": f"imagesTr/{name}_0001.nii.gz"},
            f"labelsTr/{name}.nii.gz",
        )
        for name in ("a", "b")
    ]
    assert {path.name for paths in listing.passed_over.values() for path in paths} == {
        "imagesTs",
        "._a_0000.nii.gz",
        "notes.txt",
    }


def test_older_json(root):
    write_json(root, OLDER)
    listing = list_cohort(root)
    assert listing.kind == "nnU-Net raw with the older dataset.json" and listing.notes == (EACH,)
    assert listing.description.targets == CORE_EDEMA and listing.description.channels == ("T1", "FLAIR")


@pytest.mark.parametrize("turned", [V2, OLDER])
def test_labels_the_other_way_round_are_understood_and_noted(root, turned):
    other = OLDER if turned is V2 else V2
    write_json(root, {**turned, "labels": other["labels"]})
    listing = list_cohort(root)
    assert listing.description.targets == CORE_EDEMA
    assert any("which is unusual" in note for note in listing.notes)


def test_values_in_quotes_and_order_without_regions(root):
    write_json(root, {**V2, "labels": {"background": "0", "core": "1", "edema": ["2"]}, "regions_class_order": [1, 2]})
    listing = list_cohort(root)
    assert listing.description.targets == CORE_EDEMA
    assert "dataset.json: regions_class_order has no effect, since no label is a region" in listing.notes


def test_regions_and_ignore(root):
    labels = {"background": 0, "whole": [1, 2], "core": [1], "ignore": 3}
    write_json(root, {**V2, "labels": labels, "regions_class_order": [2, 1]})
    description = list_cohort(root).description
    assert description.targets == (Target("whole", (1, 2)), Target("core", (1,)))
    assert (description.painted, description.ignore) == ((2, 1), 3)


@pytest.mark.parametrize("ignore", [2, 3, 255])
def test_any_value_can_be_ignored(root, ignore):
    labels = {"background": 0, "core": 1, "edema": 3 if ignore == 2 else 2, "ignore": ignore}
    write_json(root, {**V2, "labels": labels})
    assert list_cohort(root).description.ignore == ignore


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"numTraining": 3}, ["numTraining is 3, but imagesTr has 2 cases"]),
        ({"file_ending": ".png"}, ["file_ending is '.png', but the files end in .nii.gz"]),
        ({"labels": {"background": 0, "core": 1, "edema": 3}}, ["label values 1, 3 are not consecutive"]),
        ({"labels": {"core": 1, "edema": 2}}, ['no background; add "background": 0']),
        ({"labels": {"background": 0}}, ["name only the background"]),
        ({"labels": {"background": [0, 1], "edema": 2}}, ["contains 0, the background, and others", "not consecutive"]),
        ({"labels": REGIONS}, ["regions_class_order is missing", "each of whole, core"]),
        ({"labels": REGIONS, "regions_class_order": [2]}, ["regions_class_order is [2]; give 2 values"]),
        ({"labels": REGIONS, "regions_class_order": [2, 7]}, ["out of 1, 2"]),
        ({"labels": {"background": 0, "core": 1.5}}, ["label 'core' is 1.5"]),
        ({"labels": {"background": 0, "core": True}}, ["label 'core' is true"]),
        ({"labels": {"background": 0, "core": 256}}, ["label 'core' is 256; give a whole number from 0 to 255"]),
        ({"labels": {"background": 0, "ignore": [1, 2], "core": 3}}, ["'ignore' has 2 values", "not consecutive"]),
        ({"labels": REGIONS, "regions_class_order": 5}, ["regions_class_order is 5; give 2 values"]),
        ({"labels": REGIONS, "regions_class_order": [2, [1]]}, ["regions_class_order is [2, [1]]"]),
        ({"labels": {"0": "background", "9" * 5000: "core"}}, ["label 'core' is \"9999"]),
        ({"labels": {"0": "background", "core": 1}}, ["labels mix '0': 'background'"]),
        ({"labels": {"0": "background", "1": "core", "2": "core"}}, ["labels have a name twice"]),
        ({"labels": None}, ["labels is missing"]),
        ({"labels": ["background", "core"]}, ['labels is ["background", "core"]; give an object']),
        ({"channel_names": {"0": "T1"}}, ["a_0001.nii.gz: number too large for the 1 channels", "b_0001.nii.gz"]),
        ({"channel_names": {**TWO_CHANNELS, "2": "T2"}}, ["a: no T2 (present: T1 =", "b: no T2"]),
        ({"channel_names": {"1": "T1", "2": "FLAIR"}}, ["number the channels from 0 without a gap"]),
        ({"channel_names": {"0": "T1", "1": 2}}, ['channel_names is {"0": "T1", "1": 2}; name the channels']),
        ({"channel_names": []}, ["channel_names is []; name the channels"]),
        ({"dataset": {}}, ["the key 'dataset' with a list of files is not supported"]),
    ],
)
def test_json_that_contradicts_itself_or_the_files(root, change, words):
    write_json(root, {**V2, **change})
    listed = "\n".join(faults(root))
    for word in words:
        assert word in listed


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "contains a list; it must be an object"),
        ('{"labels": {"background": 0, "a": 1, "a": 2}}', "the key 'a' twice"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_unreadable_json(root, content, words):
    write_json(root, content)
    assert words in refusal(root) and "dataset.json" in refusal(root)


def test_all_faults_of_files_at_once(root):
    (root / "labelsTr/a.nii.gz").unlink()
    (root / "imagesTr/b_0001.nii.gz").unlink()
    touch(root, "labelsTr/c.nii.gz", "imagesTr/d.nii.gz", "imagesTr/A_0000.nii.gz", "imagesTr/A_0001.nii.gz")
    touch(root, "labelsTr/A.nii.gz", "imagesTr/a_0000.nii")
    write_json(root, {**V2, "numTraining": 3})
    assert faults(root) == [
        "imagesTr/a_0000.nii: does not end in '.nii.gz', the file_ending of dataset.json; convert it, or remove it",
        "imagesTr/d.nii.gz: no channel number in its name; rename it to d_0000.nii.gz, or remove it",
        "imagesTr/a_0000.nii.gz: an image without label; add labelsTr/a.nii.gz, or remove the image",
        "labelsTr/c.nii.gz: a label without image; add the image of case c, or remove the label",
        "b: no FLAIR (present: T1 = imagesTr/b_0000.nii.gz); add its file, or set in cohort.toml the "
        "channel that replaces it, as in stand_in = 'T1', or the channels to use, as in channels = ['T1']",
        "A: 2 cases of one name (A, a; letter case does not count); keep one, or rename the others",
    ]


def test_one_file_for_two_channels(root):
    (root / "imagesTr/a_0001.nii.gz").unlink()
    (root / "imagesTr/a_0001.nii.gz").symlink_to("a_0000.nii.gz")
    (line,) = faults(root)
    assert line == "imagesTr/a_0001.nii.gz: the same file is T1 of a and FLAIR of a; give two files"


def test_one_file_for_image_and_label(task):
    (task / "labelsTr/a.nii.gz").unlink()
    (task / "labelsTr/a.nii.gz").symlink_to("../imagesTr/a.nii.gz")
    assert faults(task) == ["labelsTr/a.nii.gz: the same file is all channels of a and labels of a; give two files"]


def test_folders_or_json_missing(tmp_path):
    touch(tmp_path / "one", "imagesTr/a_0000.nii.gz")
    assert "imagesTr, but no dataset.json" in refusal(tmp_path / "one")
    write_json(tmp_path / "two", V2)
    assert faults(tmp_path / "two")[:2] == [
        f"{folder}: no such folder; it must be beside dataset.json" for folder in ("imagesTr", "labelsTr")
    ]


def test_png_slices_are_cases(tmp_path):
    root = touch(tmp_path, "imagesTr/a_0000.png", "imagesTr/a_0001.png", "labelsTr/a.png")
    write_json(root, {**V2, "file_ending": ".png", "numTraining": 1})
    (case,) = list_cohort(root).cases
    images = {"T1": ((1, "imagesTr/a_0000.png"),), "FLAIR": ((1, "imagesTr/a_0001.png"),)}
    assert shown(root, case) == ("a", "a", "", images, ((1, "labelsTr/a.png"),))


def test_colors_are_channels(tmp_path):
    root = touch(tmp_path, "imagesTr/a_0000.png", "labelsTr/a.png")
    channels = {"0": "R", "1": "G", "2": "B"}
    write_json(root, {**V2, "channel_names": channels, "file_ending": ".png", "numTraining": 1})
    listing = list_cohort(root)
    assert shown(root, listing.cases[0])[3] == {ALL: ((1, "imagesTr/a_0000.png"),)}
    assert "channels R, G, B as their colors" in listing.notes[0]


MSD = {**OLDER, "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in "ab"]}


@pytest.fixture
def task(tmp_path):
    write_json(tmp_path / "Task01_Test", MSD)
    names = [f"{folder}/{case}.nii.gz" for folder in ("imagesTr", "labelsTr") for case in "ab"]
    return touch(tmp_path / "Task01_Test", *names)


def test_msd(task):
    listing = list_cohort(task)
    assert (listing.kind, listing.notes) == ("Medical Segmentation Decathlon", (EACH,))
    assert listing.description.channels == ("T1", "FLAIR") and listing.description.targets == CORE_EDEMA
    assert shown(task, listing.cases[0]) == ("a", "a", "", {ALL: "imagesTr/a.nii.gz"}, "labelsTr/a.nii.gz")


def test_msd_of_one_channel_and_two_of_one_name(task):
    write_json(task, {**MSD, "modality": {"0": "MRI"}})
    assert shown(task, list_cohort(task).cases[0])[3] == {"MRI": "imagesTr/a.nii.gz"}
    write_json(task, {**MSD, "modality": {"0": "MRI", "1": "MRI"}})
    listing = list_cohort(task)
    assert listing.description.channels == ("MRI 0", "MRI 1") and "a name twice" in listing.notes[0]


def test_files_decide_between_msd_and_nnunet(root, task):
    """A Decathlon json with CASE_0000 files, and nnU-Net's json with stacked files."""
    write_json(root, {**MSD, "training": []})
    assert list_cohort(root).kind == "nnU-Net raw with the older dataset.json"
    write_json(task, V2)
    listing = list_cohort(task)
    assert listing.kind == "Medical Segmentation Decathlon" and listing.description.targets == CORE_EDEMA
    assert "no list 'training'" in " ".join(listing.notes) and "which is unusual" in " ".join(listing.notes)
    for case in "ab":  # a case that ends in four digits is no channel, as its label has them too
        for folder in ("imagesTr", "labelsTr"):
            (task / folder / f"{case}.nii.gz").rename(task / folder / f"{case}_0007.nii.gz")
    assert [case.name for case in list_cohort(task).cases] == ["a_0007", "b_0007"]


def test_json_decides_where_as_many_files_have_a_number_as_have_none(task):
    (task / "imagesTr/a.nii.gz").rename(task / "imagesTr/a_0000.nii.gz")
    write_json(task, {**V2, "channel_names": {"0": "T1"}})
    assert faults(task)[0].startswith("imagesTr/b.nii.gz: no channel number in its name; rename it to b_0000.nii.gz")
    write_json(task, MSD)
    line = "imagesTr/a_0000.nii.gz: not in the list 'training' of dataset.json; add it, or remove the file"
    assert line in faults(task)


def test_faults_of_msd(task):
    (task / "labelsTr/b.nii.gz").unlink()
    touch(task, "imagesTr/c.nii.gz")
    training = [*MSD["training"], MSD["training"][0], {"image": "x"}]
    training.append({"image": "../elsewhere/d.nii.gz", "label": "/e.nii.gz"})
    write_json(task, {**MSD, "training": training})
    assert faults(task) == [
        "dataset.json: numTraining is 2, but the list 'training' has 5 cases; restore missing files, or correct the "
        "number",
        "dataset.json: training names labelsTr/b.nii.gz, but the file does not exist; restore it, or remove the entry",
        "dataset.json: imagesTr/a.nii.gz is in training twice; keep one entry",
        "dataset.json: entry 3 of training lacks image or label; complete or remove it",
        "dataset.json: training names '../elsewhere/d.nii.gz', outside of this folder; give paths within it",
        "dataset.json: training names '/e.nii.gz', outside of this folder; give paths within it",
        "imagesTr/c.nii.gz: not in the list 'training' of dataset.json; add it, or remove the file",
    ]


def test_a_file_ending_that_is_not_read(root):
    write_json(root, {**V2, "file_ending": ".nrrd"})
    assert any("file_ending is '.nrrd', which is not supported; convert the files to NIfTI" in f for f in faults(root))
