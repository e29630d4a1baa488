import json
from collections import Counter

import pytest

from brainseg_jax.data.splits import Split, read_split, split_by_folds, split_by_fractions, write_split
from brainseg_jax.errors import InputError

# The institutions of the Kaggle set: 110 patients.
INSTITUTIONS = ["DU"] * 45 + ["HT"] * 34 + ["CS"] * 16 + ["FG"] * 14 + ["EZ"]
CASES = [f"TCGA_{institution}_{number:04d}_19990101" for number, institution in enumerate(INSTITUTIONS)]
PATIENTS = [case[:12] for case in CASES]


def institution_counts(part: tuple[str, ...]) -> Counter:
    return Counter(patient.split("_")[1] for patient in part)


def test_fractions_share_out_every_institution():
    split = split_by_fractions(CASES, PATIENTS, INSTITUTIONS, val=0.1, test=0.2, seed=0)
    assert [len(part) for part in (split.train, split.val, split.test)] == [77, 11, 22]
    assert sorted(split.train + split.val + split.test) == sorted(CASES)
    for part, share in ((split.val, 0.1), (split.test, 0.2), (split.train, 0.7)):
        for institution, count in Counter(INSTITUTIONS).items():
            assert abs(institution_counts(part)[institution] - share * count) < 2, institution


def test_the_order_of_the_patients_does_not_matter_but_the_seed_does():
    split = split_by_fractions(CASES, PATIENTS, INSTITUTIONS, val=0.1, test=0.2, seed=0)
    assert split_by_fractions(CASES[::-1], PATIENTS[::-1], INSTITUTIONS[::-1], val=0.1, test=0.2, seed=0) == split
    assert split_by_fractions(CASES, PATIENTS, INSTITUTIONS, val=0.1, test=0.2, seed=1) != split


def test_the_split_is_the_one_that_sha256_says():
    """Hashed with coreutils: `for p in 0 1 2 3 4; do printf "7:TCGA_AA_000$p" | sha256sum; done`.

    These hashes give the order 3 4 0 2 1. The middle person is in the test set. Of the remaining 3 4 2 1 the person at
    index 4 // 2 validates.
    """
    patients = [f"TCGA_AA_000{number}" for number in range(5)]
    cases = [f"{patient}_20000101" for patient in patients]
    split = split_by_fractions(cases, patients, ["AA"] * 5, val=0.2, test=0.2, seed=7)
    assert (split.val, split.test) == ((cases[2],), (cases[0],))


def test_folds_test_every_patient_once():
    splits = [split_by_folds(CASES, PATIENTS, INSTITUTIONS, folds=11, fold=fold, seed=3) for fold in range(11)]
    assert sorted(patient for split in splits for patient in split.test) == sorted(CASES)
    for fold, split in enumerate(splits):
        assert len(split.test) == 10
        assert split.val == splits[(fold + 1) % 11].test
        assert sorted(split.train + split.val + split.test) == sorted(CASES)
        for institution, count in Counter(INSTITUTIONS).items():
            assert abs(institution_counts(split.test)[institution] - count / 11) < 1


@pytest.mark.parametrize("seed", range(5))
def test_cases_of_one_patient_stay_together(seed):
    """Also if the case names do not contain the patient."""
    cases, patients = [f"case {number}" for number in range(12)], [f"patient {number % 6}" for number in range(12)]
    by_fraction = split_by_fractions(cases, patients, ["AA"] * 12, val=0.2, test=0.3, seed=seed)
    by_fold = split_by_folds(cases, patients, ["AA"] * 12, folds=4, fold=0, seed=seed)
    for split in (by_fraction, by_fold):
        parts = [{int(case[5:]) % 6 for case in part} for part in (split.train, split.val, split.test)]
        assert sum(len(part) for part in parts) == len(set.union(*parts)) == 6
        assert len(split.train) + len(split.val) + len(split.test) == 12


def test_refuses_parts_without_patients():
    with pytest.raises(InputError, match="no patients for val, test"):
        split_by_fractions(CASES[:4], PATIENTS[:4], INSTITUTIONS[:4], val=0.1, test=0.1, seed=0)
    with pytest.raises(InputError, match="below 1"):
        split_by_fractions(CASES, PATIENTS, INSTITUTIONS, val=0.5, test=0.5, seed=0)
    for folds in (2, 111):
        with pytest.raises(InputError, match=f"folds={folds}: give 3 to 110"):
            split_by_folds(CASES, PATIENTS, INSTITUTIONS, folds=folds, fold=0, seed=0)
    with pytest.raises(InputError, match="fold=5: give 0 to 4"):
        split_by_folds(CASES, PATIENTS, INSTITUTIONS, folds=5, fold=5, seed=0)


def test_a_split_file_comes_back_as_it_was_written(tmp_path):
    split = split_by_fractions(CASES, PATIENTS, INSTITUTIONS, val=0.1, test=0.2, seed=0)
    write_split(tmp_path / "split.json", split)
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"]
    assert read_split(tmp_path / "split.json", CASES, PATIENTS) == split


def test_cases_left_out_by_a_split_file_are_named_in_the_log(tmp_path, caplog):
    write_split(tmp_path / "split.json", Split(train=(CASES[0],), val=(CASES[1],), test=(CASES[2],)))
    with caplog.at_level("WARNING", logger="absl"):
        read_split(tmp_path / "split.json", CASES[:5], PATIENTS[:5])
    assert f"2 cases of the data: {CASES[3]}, {CASES[4]}" in caplog.text


def test_all_faults_of_a_split_file_are_listed_at_once(tmp_path):
    path = tmp_path / "split.json"
    second_case = CASES[0].replace("19990101", "20050101")
    content = {
        "train": [CASES[0], CASES[1], CASES[1]],
        "val": [CASES[1], second_case, "TCGA_XX_0000_19990101"],
        "tset": [CASES[2]],
    }
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_split(path, [*CASES, second_case], [*PATIENTS, PATIENTS[0]])
    message = str(caught.value)
    assert str(path) in message
    for fault in (
        "unknown part 'tset'",
        "part 'test' is missing",
        f"{CASES[1]} is listed in train and again in train",
        f"{CASES[1]} is listed in train and again in val",
        f"{second_case} (val) belongs to patient {PATIENTS[0]}, who also has a case in train",
        "TCGA_XX_0000_19990101 (val) is not a case of the data",
    ):
        assert fault in message


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"train": [', "cannot be read as a JSON split file"),
        ("[]", "a list, but not of two or more folds"),
        ('[{"train": ["a"], "val": ["b"]}]', "a list, but not of two or more folds"),
        ('[{"train": ["a"]}, {"val": ["b"]}]', "a list, but not of two or more folds"),
        ('{"train": [], "val": "TCGA", "test": [1]}', "'train' is not a list of at least one"),
    ],
)
def test_malformed_split_files_are_refused(tmp_path, text, fault):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(InputError, match=fault):
        read_split(tmp_path / "split.json", CASES, PATIENTS)


def test_a_missing_split_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json"):
        read_split(tmp_path / "none.json", CASES, PATIENTS)


def test_a_split_of_nnunet_is_read_as_folds_are_dealt(tmp_path):
    """The fold's validation cases become the test set; those of the next fold validate."""
    cases = list("abcdef")
    folds = [{"train": [c for c in cases if c not in val], "val": list(val)} for val in ("ab", "cd", "ef")]
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(folds))
    assert read_split(path, cases, cases, fold=0) == Split(train=("e", "f"), val=("c", "d"), test=("a", "b"))
    assert read_split(path, cases, cases, fold=2) == Split(train=("c", "d"), val=("a", "b"), test=("e", "f"))
    with pytest.raises(InputError, match=r"has 3 folds, but split\.fold=3; give 0 to 2"):
        read_split(path, cases, cases, fold=3)
    with pytest.raises(InputError, match=r"c \(val\) belongs to patient x, who also has a case in train"):
        read_split(path, cases, ["a", "b", "x", "d", "x", "f"], fold=0)
