"""A cohort from files to a prepared set and back: content, fingerprint, faults, unchanged files."""

import dataclasses
import os
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from test_lgg import write_tree

from brainseg_jax.data import lgg, mri_cohort, prepare_source, prepared, source_index
from brainseg_jax.data.ahead import map_ahead
from brainseg_jax.data.cohort_check import check_cohort
from brainseg_jax.data.formats.listing import CaseFiles, Listing
from brainseg_jax.data.labelled import read_case
from brainseg_jax.data.prepared_cases import read_cases
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import LGG, Description, Target

TWO = Description(("T1", "FLAIR"), (Target("whole", (1, 2)), Target("core", (1,))), ignore=9)
# Shape of each case, its patient and its group.
CASES = {
    "a_0": ((10, 12, 6), "a", "north"),
    "a_1": ((11, 12, 5), "a", "north"),
    "b_0": ((10, 12, 7), "b", "south"),
    "c_0": ((10, 14, 6), "c", "north"),
}
SPACING = (4.0, 4.0, 5.0)


def save(path: Path, values: np.ndarray, spacing: tuple[float, ...] = SPACING) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([*spacing, 1.0])), path)
    return path


def load(path: Path) -> np.ndarray:
    return nib.load(path).get_fdata().astype(np.uint8)


def labels_of(shape: tuple[int, ...]) -> np.ndarray:
    """3 voxels of label 1 and 5 of label 2 in slice 2, 7 of the ignore label in slice 4."""
    labels = np.zeros(shape, np.uint8)
    labels[:3, 0, 2], labels[:5, 1, 2], labels[:7, 2, 4] = 1, 2, 9
    return labels


def images_of(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([*name.encode()]).integers(0, 256, (*shape, 2), np.uint8)


def write_cohort(root: Path, *, stacked: bool = False) -> Listing:
    """Writes four cases of three patients, one file per channel or one for both channels under other names."""
    cases = []
    for name, (shape, patient, group) in CASES.items():
        images = images_of(name, shape)
        if stacked:
            files = {"": save(root / f"{name}.nii", images)}
        else:
            files = {
                channel: save(root / f"{name}_{channel}.nii", images[..., i]) for i, channel in enumerate(TWO.channels)
            }
        cases.append(CaseFiles(name, patient, group, files, save(root / f"{name}_seg.nii", labels_of(shape))))
    described = Description(("one", "two"), (Target("x", (2,)), Target("y", (1,))), ignore=9) if stacked else TWO
    return Listing("by hand", root, described, tuple(cases), ("a note of the listing",), {})


@pytest.fixture
def listing(tmp_path) -> Listing:
    return write_cohort(tmp_path / "scans")


@pytest.fixture
def listed(listing, monkeypatch) -> Listing:
    """The same cohort, as `list_cohort` returns it."""
    monkeypatch.setattr(prepare_source, "list_cohort", lambda path: dataclasses.replace(listing, root=path))
    return listing


def prepare(listed: Listing, data_dir: Path) -> Path:
    return prepare_source.prepare(str(listed.root), data_dir, progress=False)


def refused(listing: Listing) -> str:
    with pytest.raises(InputError) as caught:
        check_cohort(listing, "x")
    return str(caught.value)


def with_case(listing: Listing, index: int, **changes) -> Listing:
    cases = list(listing.cases)
    cases[index] = dataclasses.replace(cases[index], **changes)
    return dataclasses.replace(listing, cases=tuple(cases))


def test_records_and_cases_are_the_files(listed, tmp_path):
    folder = prepare(listed, tmp_path / "data")
    cases = list(read_cases(folder))
    assert [(case.name, case.patient, case.group, case.grade) for case in cases] == [
        (name, patient, group, None) for name, (_, patient, group) in CASES.items()
    ]
    for case, files in zip(cases, listed.cases, strict=True):
        expected, _ = read_case(files, TWO)
        np.testing.assert_array_equal(case.volume.voxels, expected.voxels)
        np.testing.assert_array_equal(case.volume.labels, expected.labels)
        assert case.volume.spacing == (5.0, 4.0, 4.0)
        assert case.volume.numbers == expected.numbers
    builder = tfds.builder_from_directory(folder)
    record = builder.as_data_source(split="slices")[6]
    assert (record["case"], record["patient"], record["group"], record["slice"]) == (b"a_1", b"a", b"north", 0)
    assert record["image"].shape == (12, 11, 2) and record["labels"].shape == (12, 11, 1)
    assert record["image"].dtype == record["labels"].dtype == np.uint8
    assert record["spacing"].tolist() == [5.0, 4.0, 4.0]


def test_the_summary_counts(listed, tmp_path):
    folder = prepare(listed, tmp_path / "data")
    summary = prepared.read_summary(folder)
    assert summary.source == str(listed.root)
    assert (summary.patients, summary.cases, summary.slices, summary.target_slices) == (3, 4, 24, 4)
    assert summary.groups == {"north": 2, "south": 1}
    voxels = 10 * 12 * 6 + 11 * 12 * 5 + 10 * 12 * 7 + 10 * 14 * 6
    assert summary.target_fraction == pytest.approx(4 * 8 / voxels)
    assert summary.description == TWO
    assert folder.parent.name.startswith(f"4_cases_{summary.fingerprint[:8]}_")
    whole, core = summary.contents.targets
    assert (whole.name, whole.labels, whole.cases, whole.voxels) == ("whole", (1, 2), 4, 32)
    assert whole.milliliters == pytest.approx(32 * 0.08) and whole.median_milliliters == pytest.approx(0.64)
    assert (core.voxels, core.milliliters) == (12, pytest.approx(12 * 0.08))
    assert summary.contents.sizes == ((5, 6, 7), (12, 12, 14), (10, 10, 11))
    assert summary.contents.spacings == ((5, 5, 5), (4, 4, 4), (4, 4, 4))
    assert summary.contents.ranges["T1"] == (0, 255)
    assert summary.contents.notes == ("a note of the listing",)
    assert not dataclasses.replace(summary, groups={"DU": 3}).has_published_groups
    assert summary == prepare_source.check(str(listed.root), progress=False)


def test_names_of_channels_and_targets_are_not_content_but_part_of_the_name(listing, tmp_path):
    stacked = write_cohort(tmp_path / "stacked", stacked=True)
    first, second = (check_cohort(each, "x") for each in (listing, stacked))
    assert first.summary.fingerprint == second.summary.fingerprint
    assert mri_cohort.folder_of(tmp_path, first) != mri_cohort.folder_of(tmp_path, second)


@pytest.mark.parametrize("changed", ["voxel", "label", "spacing", "patient", "group", "name"])
def test_the_fingerprint_follows_the_content(listing, changed):
    before = check_cohort(listing, "x").summary.fingerprint
    shape = CASES["b_0"][0]
    if changed == "voxel":
        image = images_of("b_0", shape)[..., 1]
        image[3, 3, 3] ^= 1
        save(listing.cases[2].images["FLAIR"], image)
    elif changed == "label":
        save(listing.cases[2].labels, labels_of(shape)[:, ::-1])
    elif changed == "spacing":
        for path in (*listing.cases[2].images.values(), listing.cases[2].labels):
            save(path, load(path), (4.0, 4.0, 5.5))
    else:
        listing = with_case(listing, 2, **{changed: "other"})
    assert check_cohort(listing, "x").summary.fingerprint != before


def test_one_content_in_other_orientations_has_one_fingerprint(listing):
    before = check_cohort(listing, "x").summary.fingerprint
    for path in (*listing.cases[2].images.values(), listing.cases[2].labels):
        image = nib.load(path)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("PSL"))
        save_as = image.as_reoriented(turn)
        nib.save(nib.Nifti1Image(np.array(save_as.dataobj), save_as.affine), path)
    assert check_cohort(listing, "x").summary.fingerprint == before


def test_an_image_of_two_patients_is_refused_and_one_of_two_cases_of_a_patient_noted(listing):
    shape = CASES["a_0"][0]
    other = with_case(
        listing,
        3,
        images={
            "T1": save(listing.root / "x.nii", images_of("a_0", shape)[..., 0]),
            "FLAIR": save(listing.root / "y.nii", images_of("y", shape)[..., 0]),
        },
        labels=save(listing.root / "z.nii", labels_of(shape)),
    )
    words = refused(other)
    assert "1 fault in the data" in words
    assert f"{listing.root / 'x.nii'}: the same image as {listing.cases[0].images['T1']} (1 channel)" in words
    assert "(1 channel), of another patient (c and a)" in words
    assert "remove one of them, or assign both cases to one patient" in words
    same = with_case(other, 3, patient="a")
    notes = check_cohort(same, "x").summary.contents.notes
    assert any("the same image as" in note and "of the same patient a" in note for note in notes)


def test_single_slices_that_two_patients_share_are_found(listing):
    shape = CASES["b_0"][0]
    images = images_of("b_0", shape)
    images[:, :, :2] = images_of("a_0", CASES["a_0"][0])[:, :, 3:5]  # the rest differs
    for index, name in enumerate(TWO.channels):
        save(listing.cases[2].images[name], images[..., index])
    assert "(2 slices), of another patient (b and a)" in refused(listing)


def test_slices_of_few_values_are_no_copies(listing):
    for case in listing.cases:
        for path in case.images.values():
            image = load(path)
            image[:, :, 0] = 0
            save(path, image)
    assert check_cohort(listing, "x").summary.cases == 4


def test_all_faults_of_all_cases_are_listed_and_nothing_is_written(listed, tmp_path):
    listed.cases[0].images["T1"].write_bytes(b"text")
    shape = CASES["b_0"][0]
    save(listed.cases[2].labels, labels_of(shape) * np.uint8(3))
    save(listed.cases[3].images["FLAIR"], np.zeros((10, 14, 6), np.float32))
    with pytest.raises(InputError) as caught:
        prepare(listed, tmp_path / "data")
    lines = str(caught.value).splitlines()
    assert "3 faults in the data, so nothing was written" in lines[0]
    assert "a_0_T1.nii: not a NIfTI file" in lines[1]
    assert (
        "b_0_seg.nii: 3 (3 voxels), 6 (5 voxels), 27 (7 voxels); the description has 0, 1, 2, 9 (whole, core)"
        in lines[2]
    )
    assert "c_0_FLAIR.nii: FLAIR has only the values 0" in lines[3]
    assert not (tmp_path / "data").exists()


def test_a_name_twice_and_a_case_without_labels(listing):
    words = refused(with_case(with_case(listing, 1, name="a_0"), 2, labels=None))
    assert "a_0: 2 cases have this name; rename all but one" in words
    assert "b_0: no label map; add the file, or remove the case" in words
    assert "'caf\\udce9': the name of a case, patient or group is not valid Unicode" in refused(
        with_case(listing, 1, name=os.fsdecode(b"caf\xe9"))
    )


def test_a_cohort_without_any_target_is_refused(listing):
    described = dataclasses.replace(TWO, targets=(Target("x", (3,)),), painted=(), ignore=9)
    for case, (shape, _, _) in zip(listing.cases, CASES.values(), strict=True):
        save(case.labels, np.zeros(shape, np.uint8))
    assert "no case has a voxel of any target: x (3)" in refused(dataclasses.replace(listing, description=described))


def test_a_target_that_no_case_has_is_noted(listing):
    described = dataclasses.replace(TWO, targets=(*TWO.targets, Target("z", (7, 8))), painted=())
    notes = check_cohort(dataclasses.replace(listing, description=described), "x").summary.contents.notes
    assert notes[-1] == "no case has a voxel of z (7, 8)"


def test_notes_of_cases_are_reported_once(listing):
    for case in listing.cases[:3]:
        save(case.labels, load(case.labels) + 0.0005)
    save(listing.cases[2].labels, np.zeros(CASES["b_0"][0], np.uint8))
    notes = check_cohort(with_case(listing, 1, group="west"), "x").summary.contents.notes
    assert notes == (
        "a note of the listing",
        "labels rounded to the nearest whole numbers (2 cases: a_0, a_1)",
        "no voxel of any target (1 case: b_0)",
        "patient a has cases in several groups: north, west",
    )


def undeclared(listing: Listing, *values: int) -> Listing:
    """The labels of each case in turn contain 0 and one of these values."""
    for index, (case, (shape, _, _)) in enumerate(zip(listing.cases, CASES.values(), strict=True)):
        save(case.labels, (labels_of(shape) > 0) * np.uint8(values[index % len(values)]))
    described = dataclasses.replace(TWO, targets=(Target("?", (1,)),), painted=(), ignore=None)
    return dataclasses.replace(listing, description=described, targets_known=False)


def test_targets_that_nobody_declares_come_from_the_values(listing, tmp_path):
    cohort = check_cohort(undeclared(listing, 1, 4), "x")
    assert [target.labels for target in cohort.summary.description.targets] == [(1,), (4,)]
    assert [target.cases for target in cohort.summary.contents.targets] == [2, 2]
    folder = mri_cohort.write(cohort, tmp_path)
    assert {value for case in read_cases(folder) for value in np.unique(case.volume.labels)} == {0, 1, 4}


def test_masks_of_255_that_nobody_declares_are_one_target(listing, tmp_path):
    cohort = check_cohort(undeclared(listing, 255), "x")
    assert [target.labels for target in cohort.summary.description.targets] == [(1,)]
    folder = mri_cohort.write(cohort, tmp_path)
    assert {value for case in read_cases(folder) for value in np.unique(case.volume.labels)} == {0, 1}
    words = refused(undeclared(listing, 255, 4))
    assert words.count("a mask of 0 and 255, but other label maps contain 1, 4") == 2
    assert "a_0_seg.nii" in words and "b_0_seg.nii" in words


def test_an_ignored_255_alone_is_no_mask(listing, tmp_path):
    listing = undeclared(listing, 1, 255)
    described = dataclasses.replace(listing.description, ignore=255)
    cohort = check_cohort(dataclasses.replace(listing, description=described), "x")
    assert [target.labels for target in cohort.summary.description.targets] == [(1,)]
    assert [target.cases for target in cohort.summary.contents.targets] == [2]
    folder = mri_cohort.write(cohort, tmp_path)
    assert {value for case in read_cases(folder) for value in np.unique(case.volume.labels)} == {0, 1, 255}


@pytest.mark.parametrize("value", [0, 256, -1])
def test_what_cannot_be_ignored(value):
    with pytest.raises(InputError, match=f"ignored label {value}; give a whole number from 1 to 255"):
        dataclasses.replace(TWO, ignore=value)


def test_pairs_of_images_have_no_spacing(tmp_path):
    rng = np.random.default_rng(0)
    cases = []
    for name in "abc":
        image, mask = tmp_path / f"{name}.png", tmp_path / f"{name}_mask.png"
        Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)).save(image)
        Image.fromarray(np.uint8(255) * (rng.random((9, 8)) < 0.5)).save(mask)
        cases.append(CaseFiles(name, name, "", {"": image}, mask))
    described = Description(("red", "green", "blue"), (Target("tumor", (1,)),))
    cohort = check_cohort(Listing("pairs", tmp_path, described, tuple(cases), (), {}), "x")
    assert cohort.summary.contents.targets[0].milliliters is None
    assert (cohort.summary.contents.spacings, cohort.summary.contents.without_spacing) == ((), 3)
    folder = mri_cohort.write(cohort, tmp_path / "data")
    assert [case.volume.spacing for case in read_cases(folder)] == [None] * 3
    assert prepared.read_summary(folder) == cohort.summary


# What is read again, and what not.


@pytest.fixture
def old_files(monkeypatch):
    """Makes files old enough for `source_index`, which does not trust recent ones."""
    monkeypatch.setattr(source_index, "_MIN_AGE", -60.0)


def test_an_unchanged_source_is_not_read_again(listed, tmp_path, monkeypatch, old_files):
    folder = prepare(listed, tmp_path / "data")
    monkeypatch.setattr(prepare_source, "check_cohort", lambda *_, **__: pytest.fail("read again"))
    assert prepare(listed, tmp_path / "data") == folder
    shutil.rmtree(folder)
    with pytest.raises(pytest.fail.Exception, match="read again"):
        prepare(listed, tmp_path / "data")


def test_young_files_are_read_again(listed, tmp_path, monkeypatch):
    prepare(listed, tmp_path / "data")
    assert not (tmp_path / "data" / ".sources").exists()


def test_a_change_behind_the_same_size_and_time_is_seen(listed, tmp_path, old_files):
    folder = prepare(listed, tmp_path / "data")
    path = listed.cases[2].labels
    before = path.stat()
    save(path, labels_of(CASES["b_0"][0])[:, ::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert prepare(listed, tmp_path / "data") != folder


def test_other_code_reads_again(listed, tmp_path, monkeypatch, old_files):
    prepare(listed, tmp_path / "data")
    signature = source_index.signature_of(listed.root)
    assert source_index.find(tmp_path / "data", listed.root, signature)
    monkeypatch.setattr(source_index, "_code", lambda: "other")
    assert source_index.signature_of(listed.root) != signature
    (index,) = (tmp_path / "data" / ".sources").iterdir()
    for text in ("{", "[]", "{}"):
        index.write_text(text)
        assert source_index.find(tmp_path / "data", listed.root, signature) is None


def test_one_content_is_written_once(listed, tmp_path, monkeypatch):
    folder = prepare(listed, tmp_path / "data")
    monkeypatch.setattr(mri_cohort, "write", lambda *_, **__: pytest.fail("written again"))
    assert prepare(listed, tmp_path / "data") == folder


def test_files_that_change_while_they_are_prepared_are_noticed(listing, tmp_path):
    cohort = check_cohort(listing, "x")
    save(listing.cases[2].labels, labels_of(CASES["b_0"][0])[:, ::-1])
    with pytest.raises(InputError, match="case b_0: its files changed while it was prepared; prepare again"):
        mri_cohort.write(cohort, tmp_path / "data")
    assert not [path for path in (tmp_path / "data").glob("mri_cohort/*/*") if path.exists()]


def test_shards_hold_whole_cases(listing, tmp_path, monkeypatch):
    monkeypatch.setattr(mri_cohort, "_SHARD", 2 * 3 * 10 * 12 * 6)  # two cases of two channels and labels
    folder = mri_cohort.write(check_cohort(listing, "x"), tmp_path)
    assert tfds.builder_from_directory(folder).info.splits["slices"].shard_lengths == [11, 7, 6]
    assert [case.name for case in read_cases(folder)] == list(CASES)


def test_no_more_than_two_are_read_ahead():
    begun = []

    def read(item):
        begun.append(item)
        time.sleep(0.001)
        return item

    for item in map_ahead(read, range(20)):
        assert len(begun) <= item + 3
        time.sleep(0.003)
    assert begun == list(range(20))


# Back from disk.


def test_the_lgg_data_come_back_as_cases(tmp_path):
    tree = write_tree(tmp_path / "kaggle_3m")
    folder = prepare_source.prepare(str(tree), tmp_path, progress=False)
    first, second = read_cases(folder)
    assert (first.name, first.patient, first.group) == ("TCGA_DU_0001_19990101", "TCGA_DU_0001", "DU")
    assert first.volume.voxels.shape == (11, 256, 256, 3) and first.volume.spacing is None
    assert first.volume.numbers == tuple(range(1, 12))
    for case in (first, second):
        for number, labels in zip(case.volume.numbers, case.volume.labels, strict=True):
            mask = np.asarray(Image.open(tree / case.name / f"{case.name}_{number}_mask.tif"))
            np.testing.assert_array_equal(labels, mask == 255)
    assert (first.grade, second.grade) == (-1, -1)
    text = (tree / "data.csv").read_text().replace("1,45,2,", "1,45,2,3")
    (tree / "data.csv").write_text(text)
    first, second = read_cases(prepare_source.prepare(str(tree), tmp_path, progress=False))
    assert (first.grade, second.grade) == (3, -1)
    assert prepared.read_summary(folder).description == LGG


def test_an_unchanged_lgg_source_is_not_read_again(tmp_path, monkeypatch, old_files):
    tree = write_tree(tmp_path / "kaggle_3m", cases={"TCGA_DU_0001_19990101": 2})
    folder = prepare_source.prepare(str(tree), tmp_path / "data", progress=False)
    monkeypatch.setattr(lgg, "read_source", lambda *_, **__: pytest.fail("read again"))
    assert prepare_source.prepare(str(tree), tmp_path / "data", progress=False) == folder
    (tree / "data.csv").touch()
    with pytest.raises(pytest.fail.Exception, match="read again"):
        prepare_source.prepare(str(tree), tmp_path / "data", progress=False)


def test_sets_of_both_datasets_are_listed(listed, tmp_path):
    tree = write_tree(tmp_path / "kaggle_3m", cases={"TCGA_DU_0001_19990101": 1})
    data = tmp_path / "data"
    folders = [prepare_source.prepare(str(tree), data, progress=False), prepare(listed, data)]
    found = prepared.list_prepared(data)
    assert list(found) == folders
    assert [summary.cases for summary in found.values()] == [1, 4]
    assert prepare_source.prepare("kaggle", data, progress=False) == folders[0]


@pytest.mark.parametrize("damage", ["pixels", "metadata", "features", "fewer slices"])
def test_a_damaged_set_is_reported(listed, tmp_path, damage):
    folder = prepare(listed, tmp_path / "data")
    (records,) = folder.glob("*.array_record*")
    if damage == "pixels":
        data = bytearray(records.read_bytes())
        data[len(data) // 2] ^= 0xFF
        records.write_bytes(data)
    elif damage == "fewer slices":
        metadata = folder / "metadata.json"
        metadata.write_text(metadata.read_text().replace('"slices": 24', '"slices": 25'))
    else:
        (folder / f"{damage}.json").write_text("{")
    with pytest.raises(InputError, match=r"1\.0\.0: damaged \(.*Delete this folder and prepare again"):
        list(read_cases(folder))
