"""`cohort.toml` and `patients.csv`, and folders that match no format or two."""

import re
from pathlib import Path

import pytest
from format_folders import faults, refusal, shown, touch, write_json

from brainseg_jax.data.formats import described, list_cohort, list_images
from brainseg_jax.scans.description import Target

PATTERNS = """
labels = "{case}/roi_{case}.nii.gz"
stand_in = "FLAIR"
ignore = 9
patient = "(P[0-9]+)[a-z]"
group = "P[0-9]+([a-z])"
[channels]
T1 = "{case}/T1*.nii.gz"
FLAIR = "{case}/fl_{case}.nii.gz"
[targets]
"whole tumor" = [2, 1]
core = 1
"""
FILES = [f"{case}/{name}.nii.gz" for case in ("P1a", "P1b", "P2a") for name in (f"fl_{case}", f"roi_{case}")]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "cohort.toml").write_text(PATTERNS)
    return touch(tmp_path, *FILES, "P1a/T1_mprage.nii.gz", "P2a/other.nii.gz")


def test_files_of_any_names(root):
    listing = list_cohort(root)
    assert (listing.kind, listing.targets_known) == ("described by cohort.toml", True)
    description = listing.description
    assert (description.channels, description.stand_in, description.ignore) == (("T1", "FLAIR"), "FLAIR", 9)
    assert description.targets == (Target("whole tumor", (2, 1)), Target("core", (1,))) and description.painted == (
        2,
        1,
    )
    assert [shown(root, case) for case in listing.cases] == [
        (
            "P1a",
            "P1",
            "a",
            {"FLAIR": "P1a/fl_P1a.nii.gz", "T1": "P1a/T1_mprage.nii.gz"},
            "P1a/roi_P1a.nii.gz",
        ),
        ("P1b", "P1", "b", {"FLAIR": "P1b/fl_P1b.nii.gz"}, "P1b/roi_P1b.nii.gz"),
        ("P2a", "P2", "a", {"FLAIR": "P2a/fl_P2a.nii.gz"}, "P2a/roi_P2a.nii.gz"),
    ]
    assert listing.notes == ("2 of 3 cases have no T1: FLAIR replaces it",)
    assert [path.name for path in listing.passed_over["fits no pattern of cohort.toml"]] == ["other.nii.gz"]


def test_faults_of_described_files(root):
    touch(root, "P1a/T1_again.nii.gz", "x/fl_x.nii.gz", "P3a/roi_P3a.nii.gz", "P4a/T1.nii.gz", "P4a/roi_P4a.nii.gz")
    assert faults(root) == [
        "P1a/T1_mprage.nii.gz: a second T1 of P1a, beside P1a/T1_again.nii.gz; give a longer pattern in cohort.toml",
        "cohort.toml: patient = '(P[0-9]+)[a-z]' does not fit the case x; give a pattern that fits the whole name of "
        "every case, with parentheses around the patient",
        "cohort.toml: group = 'P[0-9]+([a-z])' does not fit the case x; give a pattern that fits the whole name of "
        "every case, with parentheses around the group",
        "P3a/roi_P3a.nii.gz: a label without image; add the image of case P3a, or remove the label",
        "x/fl_x.nii.gz: an image without label; add x/roi_x.nii.gz, or remove the image",
        "P4a: no FLAIR, which replaces missing channels; add its file",
    ]


def test_a_pattern_that_fits_nothing_or_the_same_file_as_another(root):
    (root / "cohort.toml").write_text(PATTERNS.replace("T1*", "fl*").replace("roi_{case}", "labels_{case}"))
    lines = "\n".join(faults(root))
    assert "cohort.toml: labels = '{case}/labels_{case}.nii.gz' fits no file; correct it" in lines
    assert "P2a/fl_P2a.nii.gz: the same file is T1 of P2a and FLAIR of P2a" in lines


def test_a_folder_given_from_within(tmp_path, monkeypatch):
    """The names of folders count, even if a relative path does not contain them."""
    touch(tmp_path / "P1", "flair.nii.gz", "seg.nii.gz")
    touch(tmp_path / "P2", "image.png", "mask.png")
    for name in ("P1", "P2"):
        monkeypatch.chdir(tmp_path / name)
        (case,) = list_cohort(Path()).cases
        assert case.name == name
        (case,) = list_images(Path(), list_cohort(Path()).description).cases
        assert case.name == name


def test_the_examples_of_the_documentation_can_be_used(tmp_path):
    first, second = re.findall(r"(?:^    .+\n)+", described.__doc__, re.MULTILINE)
    touch(tmp_path, *(f"P1_AB_{name}.nii.gz" for name in ("flair", "t1ce", "t2", "seg")))
    (tmp_path / "cohort.toml").write_text(first.replace("slices", "# slices"))
    listing = list_cohort(tmp_path)
    assert [(case.name, case.patient, case.group) for case in listing.cases] == [("P1_AB", "P1", "AB")]
    assert (listing.description.channels, listing.description.painted) == (("t1ce", "flair"), (2, 1))
    (tmp_path / "cohort.toml").write_text(second)
    touch(tmp_path, "P2/roi.nii.gz", "P2/anat_T1_3d.nii.gz", "P2/anat_FLAIR_.nii.gz")
    assert [case.name for case in list_cohort(tmp_path).cases] == ["P2"]


def test_keys_without_effect(tmp_path):
    touch(tmp_path, "a_flair.nii.gz", "a_seg.nii.gz")
    (tmp_path / "cohort.toml").write_text('labels = "*_seg.nii.gz"\nslices = false')
    assert faults(tmp_path) == [
        "cohort.toml: labels has an effect only in BIDS and with patterns for channels; remove it",
        "cohort.toml: slices has an effect only on pairs of image and mask; remove it",
    ]


def test_a_column_without_a_table(tmp_path):
    pairs(tmp_path, "a", "b")
    (tmp_path / "cohort.toml").write_text('patient_column = "subject"')
    assert faults(tmp_path) == [
        "cohort.toml names columns of patients.csv, but the folder has no such file; add the table, or remove "
        "patient_column and group_column"
    ]


def test_patients_that_differ_in_upper_and_lower_case(tmp_path):
    pairs(tmp_path, "a", "b", "c")
    (tmp_path / "patients.csv").write_text("case,patient\na,P1\nb,p1\nc,P2\n")
    assert faults(tmp_path) == [
        "patient in 2 spellings, which differ in upper and lower case only: P1 (of a), p1 (of b); use one"
    ]


@pytest.mark.parametrize(
    ("targets", "lost"),
    [
        ("whole = [2, 1, 3]\ncore = [1, 3]\nenh = [3]", None),
        ("necrosis = 1\nenh = [3, 2]", None),
        ("enh = 3\ncore = [1, 3]\nwhole = [2, 1, 3]", "cannot represent enh, core: "),
        ("whole = [1, 2, 3]\ncore = [1, 3]\nenh = 3", "cannot represent core: "),
        ("a = [2, 1]\nb = [1, 3]", "cannot represent a: "),
    ],
)
def test_targets_that_label_maps_cannot_tell_are_noted(tmp_path, targets, lost):
    pairs(tmp_path, "a", "b")
    (tmp_path / "cohort.toml").write_text(f"[targets]\n{targets}")
    notes = [note for note in list_cohort(tmp_path).notes if note.startswith("label maps")]
    assert len(notes) == bool(lost) and (not lost or lost in notes[0])


def test_a_label_twice_in_a_target_counts_once(tmp_path):
    pairs(tmp_path, "a", "b")
    (tmp_path / "cohort.toml").write_text("[targets]\ntumor = [2, 1, 2]")
    assert list_cohort(tmp_path).description.targets == (Target("tumor", (2, 1)),)


def test_slices_in_patterns(tmp_path):
    touch(tmp_path, *(f"{case}/{name}{n}.png" for case in "ab" for name in ("im", "lab") for n in (1, 2)))
    (tmp_path / "cohort.toml").write_text(
        'labels = "{case}/lab{slice}.png"\n[channels]\nFLAIR = "{case}/im{slice}.png"\n'
    )
    images = {"FLAIR": ((1, "b/im1.png"), (2, "b/im2.png"))}
    assert shown(tmp_path, list_cohort(tmp_path).cases[1]) == (
        "b",
        "b",
        "",
        images,
        ((1, "b/lab1.png"), (2, "b/lab2.png")),
    )


def test_patients_by_a_pattern_are_reported(tmp_path):
    pairs(tmp_path, "a_1", "b_1")
    (tmp_path / "cohort.toml").write_text('patient = "(.+)"')
    assert not any("each case counts" in note for note in list_cohort(tmp_path).notes)
    (tmp_path / "cohort.toml").write_text('group = "(.).+"')
    assert any("each case counts" in note for note in list_cohort(tmp_path).notes)


def test_a_format_is_changed_by_it(tmp_path):
    names = [f"{case}_{name}.nii.gz" for case in ("P1", "P2") for name in ("flair", "t1", "t2", "seg")]
    touch(tmp_path, *names)
    (tmp_path / "P2_t1.nii.gz").unlink()
    assert "P2: no t1 (present: flair = P2_flair.nii.gz, t2 = P2_t2.nii.gz)" in faults(tmp_path)[0]
    (tmp_path / "cohort.toml").write_text('channels = ["t2", "flair"]\n[targets]\nlesion = [1]')
    listing = list_cohort(tmp_path)
    assert listing.description.channels == ("t2", "flair") and listing.targets_known
    assert listing.description.targets == (Target("lesion", (1,)),)
    assert {tuple(sorted(case.images)) for case in listing.cases} == {("flair", "t2")}
    assert listing.notes[0] == "channels by cohort.toml: t2, flair, of t1, t2, flair"
    (tmp_path / "cohort.toml").write_text('stand_in = "flair"')
    assert list_cohort(tmp_path).description.stand_in == "flair"
    (tmp_path / "cohort.toml").write_text('channels = ["dwi"]')
    assert "cohort.toml: no channel dwi in the folder (present: t1, t2, flair)" in faults(tmp_path)[0]
    (tmp_path / "cohort.toml").write_text('stand_in = "flair"\nignore = 1')
    assert list_cohort(tmp_path).description.ignore == 1
    (tmp_path / "cohort.toml").write_text('stand_in = "dwi"')
    assert "'dwi' cannot replace missing channels: it is none of t1, t2, flair" in faults(tmp_path)[-1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("channels = [", ["cannot be read as TOML"]),
        ("chanels = ['T1']", ["unknown key 'chanels'; the keys are channels, labels"]),
        ("ignore = 'x'\nslices = 1", ["ignore is 'x'", "slices is 1"]),
        ("ignore = false", ["ignore is False"]),
        ("ignore = 0", ["ignore = 0; give a label value from 1 to 255"]),
        ("channels = []", ["channels: give names"]),
        ("channels = [1]", ["channels: give names"]),
        ("channels = ['']", ["channels: give names"]),
        ("labels = 'x'\n[channels]\nT1 = {a = '{case}'}", ["channels: give names"]),
        (
            "[channels]\nT1 = 'T1.nii.gz'",
            ["labels is missing, but channels have patterns", "T1: the pattern 'T1.nii.gz' has no {case}"],
        ),
        ("[targets]\ntumor = [0, 1]", ["targets: tumor = [0, 1]; give label values from 1 to 255"]),
        ("[targets]\ntumor = []", ["targets: tumor = []"]),
        ("[targets]\ntumor = ['1']", ["targets: tumor = ['1']"]),
        ("[targets]\ntumor = [256]", ["targets: tumor = [256]"]),
        ("patient = 'P[0-9]+'", ["has no parentheses; put them around the patient"]),
        ("patient = '('", ["'(' is not a valid regular expression"]),
        ("group = '(.)'\ngroup_column = 'site'", ["group and group_column: keep one"]),
    ],
)
def test_a_cohort_toml_that_cannot_be_used(root, content, words):
    (root / "cohort.toml").write_text(content)
    assert_refused(root, "cohort.toml: ", *words)


def pairs(root, *cases):
    return touch(root, *(f"{case}{mark}.nii.gz" for case in cases for mark in ("", "_mask")))


def test_patients_csv(tmp_path):
    pairs(tmp_path, "a", "b", "c")
    table = tmp_path / "patients.csv"
    table.write_text("group,patient,case\nX,P1,a\nX,P1,b\n,P2,c\n")
    listing = list_cohort(tmp_path)
    assert [(case.name, case.patient, case.group) for case in listing.cases] == [
        ("a", "P1", "X"),
        ("b", "P1", "X"),
        ("c", "P2", ""),
    ]
    assert "patients by patients.csv: 2 of 3 cases" in listing.notes
    table.write_text("case,subject,site\na,P1,X\nb,P1,X\nc,P2,Y\n")
    (tmp_path / "cohort.toml").write_text('patient_column = "subject"\ngroup_column = "site"')
    assert [case.group for case in list_cohort(tmp_path).cases] == ["X", "X", "Y"]


def test_faults_of_patients_csv(tmp_path):
    pairs(tmp_path, "a", "b", "c", "d")
    table = tmp_path / "patients.csv"
    table.write_text("case,patient,group\na,P1,X\na,P2,X\nb,P1,Y\nz,P3,X\nc,,X\n,P4,X\n")
    assert faults(tmp_path) == [
        "patients.csv: line 3: case a a second time; keep one line",
        "patients.csv: line 4: patient P1 is of group 'Y', and of 'X' in line 2; give one group",
        "patients.csv: line 5: no case z in the folder; correct the name, or remove the line",
        "patients.csv: line 6: no patient; fill it in, or remove the line",
        "patients.csv: line 7: no case; fill it in, or remove the line",
        "patients.csv: no line for case d; add one",
    ]
    table.write_text("name,patient\na,P1\n")
    assert "patients.csv: no column case (present: name, patient)" in faults(tmp_path)[0]
    table.write_bytes(b"\xff\xfe")
    assert "patients.csv: not readable as a table" in faults(tmp_path)[0]


def test_folders_that_are_no_cohort(tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", "The folder is empty.", "nnU-Net raw", "BIDS", "cohort.toml")
    assert_refused(tmp_path / "none", "no such folder", "nnU-Net raw", "BIDS", "cohort.toml")
    touch(tmp_path / "dicom", "a/1.dcm", "a/2.dcm", "notes.txt")
    assert_refused(tmp_path / "dicom", "Files: 2 x .dcm, 1 x .txt", "dcm2niix")
    assert_refused(touch(tmp_path, "file") / "file", "not a folder")


def test_folders_that_fit_two_formats(tmp_path):
    write_json(tmp_path / "one", {})
    touch(tmp_path / "one", "sub-01/anat/sub-01_T1w.nii.gz")
    assert_refused(tmp_path / "one", "both nnU-Net (dataset.json or imagesTr) and BIDS (sub-*/anat)")
    touch(tmp_path / "two", "a_flair.nii.gz", "a_seg.nii.gz", "b.nii.gz", "b_mask.nii.gz")
    assert_refused(tmp_path / "two", "some names end in a sequence (a_flair.nii.gz), others do not (b.nii.gz)")
    touch(tmp_path / "three", "a_flair.nii.gz", "a_seg.nii.gz", "b.png", "b_mask.png")
    assert_refused(tmp_path / "three", "volumes (a_flair.nii.gz) and 2-D masks (b_mask.png)")
    touch(tmp_path / "four", "a.nii.gz", "a_mask.nii.gz", "b.png", "b_mask.png")
    assert_refused(tmp_path / "four", "b.png is a 2-D image and a.nii.gz a volume")


def test_a_cohort_further_below(tmp_path):
    write_json(touch(tmp_path, "raw/Dataset1/imagesTr/a_0000.nii.gz") / "raw/Dataset1", {})
    assert_refused(tmp_path, f"dataset.json is in {tmp_path / 'raw/Dataset1'}; give that folder")
    touch(tmp_path / "more", "study/sub-1/anat/sub-1_T1w.nii.gz")
    within = pairs(tmp_path / "more/study/sub-1/anat/pairs", "a")
    assert list_cohort(within).kind == "pairs of image and mask"
    assert_refused(tmp_path / "more", f"a BIDS cohort is in {tmp_path / 'more/study'}; give that folder")


def assert_refused(root, *words):
    message = refusal(root)
    for word in words:
        assert word in message


def test_an_ignored_label_among_the_targets(tmp_path):
    pairs(tmp_path, "a", "b")
    (tmp_path / "cohort.toml").write_text("[targets]\ntumor = 1\nignore = 2")
    assert "ignore = [2]; an ignored label is not a target: write `ignore = LABEL` above" in refusal(tmp_path)


def test_regions_of_one_s_own_take_the_place_of_those_of_brats(tmp_path):
    names = [f"BraTS-GLI-0000{n}-000" for n in (1, 2)]
    touch(tmp_path, *(f"{name}/{name}-{end}.nii.gz" for name in names for end in ("t1n", "t1c", "t2w", "t2f", "seg")))
    assert any("regions of BraTS" in note for note in list_cohort(tmp_path).notes)
    (tmp_path / "cohort.toml").write_text("[targets]\ntumor = [1, 2, 3]")
    listing = list_cohort(tmp_path)
    assert listing.description.names == ("tumor",)
    assert not any("regions of BraTS" in note for note in listing.notes)
