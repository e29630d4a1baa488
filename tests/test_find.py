"""The search of a folder: sequences by words in names, cases, links, and the reasons for files passed over."""

import os
import re
from pathlib import Path

import pytest

from brainseg_jax.errors import InputError
from brainseg_jax.prediction.job import table
from brainseg_jax.scans import walk
from brainseg_jax.scans.find import find_scans
from brainseg_jax.scans.patterns import read_patterns
from brainseg_jax.scans.scan import Refused
from brainseg_jax.scans.sequences import ALL, DERIVED, FLAIR, MASK, OTHER, POST, PRE, UNCLEAR, read_name
from brainseg_jax.scans.slices import SliceSource


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder, sequences=""):
    """Names of the files of each case by sequence, notes, faults, and counts of what is passed over."""
    result = find_scans(folder, read_patterns(sequences))
    cases, notes, faults = {}, {}, []
    for source in result:
        if isinstance(source, Refused):
            faults.append(source.fault)
        elif isinstance(source, SliceSource):
            cases[source.name] = [(number, path.name) for number, path in source.files]
        else:
            cases[source.name] = {key: path.name for key, (path,) in source.files.items()}
        notes |= {source.name: source.notes} if source.notes else {}
    return cases, notes, faults, {reason: len(paths) for reason, paths in result.passed_over.items()}


@pytest.mark.parametrize(
    ("sequence", "names"),
    {
        FLAIR: "36529-FLAIRreg-88719 FLAIR_N4_x flair P1_t2f BraTS-GLI-00001-000-t2f sub-01_space-T1w_FLAIR T2FLAIR "
        "T2_FLAIR 3dflair axFLAIR flair1 FLAIR_reg_to_T1 flair2t1 P1_pre_op_FLAIR postop_FLAIR PD_003_flair "
        "MAP_01_FLAIR t2_tirm_tra_dark-fluid AX_FLAIR_POST Preston_FLAIR",
        PRE: "40845-T1prereg-53096 P1_t1 P1_T1w BraTS-GLI-00001-000-t1n T1_MPRAGE P1_pre T1_WITHOUT_CONTRAST T1_no_gad "
        "T1_W/O_CONTRAST C_001_T1 T1w2 preT1 T1native Sag_3D_T1 P1_post_op_T1",
        POST: "13-T1post-77241 T1POST_N4_x_regtoMNI AX_T1_POST_GAD T1postcontrast sub-01_ce-GAD_T1w P1_t1ce P1_t1c "
        "P1_t1gd T1_C T1+C T1C+ P1_post preop_T1ce pre_T1ce T1-KM Gd_MPRAGE T1_contrast",
        OTHER: "37758-T2reg-76823 T2_N4_x P1_t2w P1_SWI P1_ADC DWI P1_PD t2star_3 sub-01_bold TOF_3D localizer",
        MASK: "5395-MaskTumor-37344 P1_mask P1_flair_seg BraTS20_Training_001_seg P1_flair_pred brainmask labels "
        "P1_overlay sub-01_T1w_desc-brain_mask label",
        DERIVED: "P1_bias P1_FLAIR_bias T1map T1_T2_subtraction",
        UNCLEAR: "T1_FLAIR FLAIR_T1 DWI_FLAIR T1_T2",
        None: "press Preston posterior_fossa T12_spine PT1_scan whole scan_20240101120000 P1_postop prediction_set_1 "
        "once_12 PD_003 P1_0003 preop a_1 P1_post_op pre-surgical_7",
    }.items(),
)
def test_words_anywhere_in_a_name_determine_the_sequence(sequence, names):
    told = {name: read_name(name).sequence for name in names.split()}
    assert told == dict.fromkeys(told, sequence)


def test_files_that_are_alike_but_for_the_sequence_are_a_case(tmp_path):
    """Names of TCIA, of a pipeline, BIDS, BraTS of both kinds, dcm2niix, and folders named for sequences."""
    touch(tmp_path / "tcia" / "P1", *(f"{name}.nii" for name in ("13-T1post-77241", "36529-FLAIRreg-88719")))
    touch(tmp_path / "tcia" / "P1", "37758-T2reg-76823.nii", "40845-T1prereg-53096.nii", "5395-MaskTumor-37344.nii")
    touch(tmp_path / "n4", *(f"{name}.nii.gz" for name in ("T1POST_N4_x_regtoMNI", "T2_N4_x", "FLAIR_N4_x_regtoMNI")))
    touch(tmp_path, *(f"sub-1/sub-1_{name}.nii" for name in ("acq-3D_T1w", "ce-GAD_T1w", "FLAIR", "desc-brain_mask")))
    touch(tmp_path, *(f"BraTS-GLI-1-000/BraTS-GLI-1-000-{name}.nii" for name in ("t1n", "t1c", "t2w", "t2f", "seg")))
    touch(tmp_path, *(f"BraTS20_001/BraTS20_001_{name}.nii" for name in ("t1", "t1ce", "t2", "flair", "seg")))
    touch(tmp_path, "dcm2niix/D1_AX_FLAIR_20240101120000_5.nii", "dcm2niix/D1_AX_T1_POST_20240101120000_9a.nii")
    touch(tmp_path, "folders/FLAIR/F1.nii", "folders/T1/F1.nii", "folders/FLAIR/F2.nii", "folders/labelsTr/F1.nii")
    touch(tmp_path, "folders/P3/FLAIR/a.nii", "folders/P3/T1post/b.nii")
    cases, notes, faults, passed_over = found(tmp_path)
    assert cases == {
        "P1": {
            FLAIR: "36529-FLAIRreg-88719.nii",
            PRE: "40845-T1prereg-53096.nii",
            POST: "13-T1post-77241.nii",
        },
        "N4_x": {FLAIR: "FLAIR_N4_x_regtoMNI.nii.gz", POST: "T1POST_N4_x_regtoMNI.nii.gz"},
        "sub-1": {FLAIR: "sub-1_FLAIR.nii", PRE: "sub-1_acq-3D_T1w.nii", POST: "sub-1_ce-GAD_T1w.nii"},
        "BraTS-GLI-1-000": {
            FLAIR: "BraTS-GLI-1-000-t2f.nii",
            PRE: "BraTS-GLI-1-000-t1n.nii",
            POST: "BraTS-GLI-1-000-t1c.nii",
        },
        "BraTS20_001": {FLAIR: "BraTS20_001_flair.nii", PRE: "BraTS20_001_t1.nii", POST: "BraTS20_001_t1ce.nii"},
        "D1_AX_20240101120000": {
            FLAIR: "D1_AX_FLAIR_20240101120000_5.nii",
            POST: "D1_AX_T1_POST_20240101120000_9a.nii",
        },
        "F1": {FLAIR: "F1.nii", PRE: "F1.nii"},
        "F2": {FLAIR: "F2.nii"},
        "P3": {FLAIR: "a.nii", POST: "b.nii"},
    }
    assert not faults and passed_over == {"masks and earlier results": 5, "another sequence, not used beside FLAIR": 4}
    assert notes["P1"] == ("37758-T2reg-76823.nii is not used",)


def test_patients_are_not_put_together(tmp_path):
    """One patient with only FLAIR, one with only T1; each file of unknown sequence is a case of FLAIR."""
    touch(tmp_path, "study_flair_001.nii", "study_t1_002.nii", "whole.nii", "scan_3.nii.gz")
    cases, _, (fault,), _ = found(tmp_path)
    assert cases == {
        "study_001": {FLAIR: "study_flair_001.nii"},
        "whole": {ALL: "whole.nii"},
        "scan_3": {ALL: "scan_3.nii.gz"},
    }
    assert fault.startswith("study_002: no FLAIR among ") and "study_t1_002.nii (pre-contrast), and no other" in fault


@pytest.mark.parametrize("name", ["P1_T1w", "P1_ce-GAD_T1w", "T1_MPRAGE", "AX_T1_POST_GAD", "P1_T1_FLAIR", "P1_0000"])
def test_alone_they_are_refused_with_the_remedy(tmp_path, name):
    touch(tmp_path, f"{name}.nii.gz")
    cases, _, (fault,), _ = found(tmp_path / f"{name}.nii.gz")
    assert not cases and f"{name}.nii.gz" in fault and "assign them by hand" in fault and "--sequences=" in fault


@pytest.mark.parametrize("name", ["P1_SWI", "P1_ADC", "P1_bias", "P1_T2w", "P1_seg"])
def test_alone_they_are_passed_over(tmp_path, name):
    touch(tmp_path, f"{name}.nii.gz")
    with pytest.raises(InputError, match=rf"no scan in it; give .*; passed over:\n  1 x .*: {name}.nii.gz"):
        found(tmp_path)
    touch(tmp_path, "P2.nii")
    assert found(tmp_path)[0] == {"P2": {ALL: "P2.nii"}}


def test_numbered_channels_are_refused_until_they_are_named(tmp_path):
    """nnU-Net's `_0000` to `_0003`; a longer numbering counts cases."""
    touch(tmp_path / "a", *(f"P{n}_000{channel}.nii.gz" for n in (1, 2) for channel in range(4)))
    cases, _, faults, _ = found(tmp_path / "a")
    assert not cases and len(faults) == 2 and "P1_0000.nii.gz, " in faults[0] and "as by nnU-Net" in faults[0]
    cases, notes, faults, _ = found(tmp_path / "a", "flair=*_0003, pre=*_0000, POST=*_0001.nii.gz")
    assert not faults and notes["P1"] == ("P1_0002.nii.gz is not used",)
    assert cases == {
        f"P{n}": {FLAIR: f"P{n}_0003.nii.gz", PRE: f"P{n}_0000.nii.gz", POST: f"P{n}_0001.nii.gz"} for n in (1, 2)
    }
    touch(tmp_path / "b", *(f"P_00{number:02d}.nii" for number in range(12)))
    assert len(found(tmp_path / "b")[0]) == 12


def test_sequences_by_hand(tmp_path):
    touch(tmp_path, "P1_a.nii", "P1_b.nii", "P1_c.nii", "P2_a.nii", "P2_t1.nii", "P2_a_mask.nii")
    cases, _, faults, passed_over = found(tmp_path, "flair=*_a,post=*_B")
    assert cases == {"P1": {FLAIR: "P1_a.nii", POST: "P1_b.nii"}, "P2": {FLAIR: "P2_a.nii"}} and not faults
    assert passed_over == {"masks and earlier results": 1, "fits no pattern of --sequences": 2}
    touch(tmp_path / "s", "P3/one/x.nii", "P3/two/y.nii", "P4/one/x.nii")
    assert found(tmp_path / "s", "flair=two,pre=one") == (
        {"P3": {FLAIR: "y.nii", PRE: "x.nii"}},
        {},
        [f"P4: two of --sequences, for FLAIR, fits none of {tmp_path}/s/P4/one/x.nii; correct the pattern"],
        {},
    )
    touch(tmp_path / "t", "P5_flair.nii", "P5_flair_2d.nii")
    for words, sequences in {
        r"flair=\*_x fits no file, folder or series": "flair=*_x",
        r"post=\*_x fits no file": "flair=*_a,post=*_x",
        "'t2=x'; give flair=PATTERN": "flair=*_a,t2=x",
        "'flair='; give": "flair=",
        "flair twice": "flair=a,flair=b",
        "no pattern for flair": "pre=*_a",
    }.items():
        with pytest.raises(InputError, match=words):
            found(tmp_path, sequences)
    touch(tmp_path / "t", "P6_flair.nii")
    cases, _, (fault,), _ = found(tmp_path / "t", "flair=*flair*")
    assert cases == {"P6": {FLAIR: "P6_flair.nii"}}  # the other goes on
    assert re.search(r"\*flair\* fits 2 of P5, for FLAIR: .*P5_flair.nii, .*P5_flair_2d.nii; give a", fault)


def test_slices_of_other_programs(tmp_path):
    """OsiriX, plain numbers, and a date. Taken as a slice number, the date asked for 2e13 integers."""
    touch(tmp_path, "IM-0001-0001.png", "IM-0001-0002.png", "scan_20240101120000.png", "P9/001.png", "P9/2.png")
    touch(tmp_path, "masks/001.png", "P9/T1/001.png", "a_1.tif", "a_1_mask.tif", "20240101120000.tif")
    cases, _, (fault,), passed_over = found(tmp_path)
    assert cases == {
        "IM-0001": [(1, "IM-0001-0001.png"), (2, "IM-0001-0002.png")],
        "scan_20240101120000": [(1, "scan_20240101120000.png")],
        "20240101120000": [(1, "20240101120000.tif")],
        "P9": [(1, "001.png"), (2, "2.png")],
        "a": [(1, "a_1.tif")],
    }
    assert "T1: images named as pre-contrast" in fault and "add --sequences='flair=*T1*'" in fault
    assert passed_over == {"masks and earlier results": 2}
    assert found(tmp_path / "P9" / "T1", "flair=*T1*")[0] == {"T1": [(1, "001.png")]}


def test_links_are_followed_each_folder_once(tmp_path):
    touch(tmp_path / "elsewhere", "P1_flair.nii", "P1_t1.nii")
    touch(tmp_path / "in", "P2/P2.nii")
    os.symlink(tmp_path / "elsewhere", tmp_path / "in" / "a_linked_case")
    os.symlink(tmp_path / "in", tmp_path / "in" / "P2" / "loop")
    os.symlink(tmp_path / "in" / "P2", tmp_path / "in" / "again")
    os.symlink(tmp_path / "elsewhere" / "P1_t1.nii", tmp_path / "in" / "P3.nii")
    os.symlink(tmp_path / "nowhere", tmp_path / "in" / "gone.nii")
    cases, _, faults, passed_over = found(tmp_path / "in")
    assert cases["P1"] == {FLAIR: "P1_flair.nii", PRE: "P1_t1.nii"} and not faults
    assert cases["P2"] == {ALL: "P2.nii"} and cases["P3"] == {ALL: "P3.nii"} and len(cases) == 3
    assert passed_over == {walk._LINKED_AGAIN: 2, "a broken link": 1}


def test_all_that_is_passed_over_is_listed_with_a_reason(tmp_path, monkeypatch):
    touch(tmp_path, "P1.nii", *(f"x{number}.mha" for number in range(9)), "x.nrrd", "x.jpg", "notes.txt")
    touch(tmp_path, "P1.json", ".hidden/a.nii", "Thumbs.db", "closed/a.nii", "DICOMDIR")
    os.mkfifo(tmp_path / "pipe.nii")
    scan = os.scandir

    def closed(place):
        if place.name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(place)

    monkeypatch.setattr(os, "scandir", closed)
    result = find_scans(tmp_path)
    assert table(result, tmp_path) == [
        "case  pre-contrast  FLAIR     post-contrast",
        "P1    -             P1.nii *  -",
        "(-: FLAIR replaces it; *: FLAIR, or all three channels as colors or along a fourth axis)",
        "Passed over:",
        "  2 x a hidden or system file: .hidden, Thumbs.db",
        "  1 x an index of DICOM files; the files themselves are read: DICOMDIR",
        "  11 x an unsupported format; convert scans to NIfTI (.nii.gz): x.jpg, x.nrrd, x0.mha, ...",
        "  1 x cannot be read (Permission denied): closed",
        "  1 x not a regular file: pipe.nii",
        "  2 x not a scan by its name: P1.json, notes.txt",
    ]


def test_of_many_cases_the_table_shows_the_first(tmp_path):
    touch(tmp_path, *(f"P{number:02d}.nii" for number in range(23)))
    lines = table(find_scans(tmp_path), tmp_path)
    assert len(lines) == 1 + 20 + 2 and lines[20].startswith("P19 ") and lines[21] == "and 3 more cases"


@pytest.mark.parametrize(
    ("sequence", "names"),
    {
        PRE: "T1 ohne KM|T1 C-|T1 vor KM|T1 Gd-|T1c-|T1 Gd- tra|T1 ohne i.v. KM|T1 sans inj|T1 sin gado|T1 pre contrast"
        "|T1_pre_gad|T1_vorKM|T1 C-_P7|T1_sub-01|sub-01_T1w|P1_T1_sinc|T1 vor OP|vibe_tra|p2t1|case12t1",
        POST: "T1 DOTAREM|T1 magnevist|T1 gadavist|T1 gadovist|T1 prohance|T1 multihance|T1 omniscan|T1 clariscan"
        "|T1 INJ|T1 nach KM|T1 Gd+|P1-T1c-001|T1-KM|T1_post_sinc|T1-Gd-3D|p2t1ce",
        DERIVED: "T1 SUB|T1 minus|T1 post SUB|T1 post minus pre|SUB T1 post",
        OTHER: "b1000|b0|P1_b1000|b1000_tra|SWIp|PD_tra",
        FLAIR: "p2flair|P1_flair_sinc|b100_flair|flair_b12|FLAIR vor OP",
        None: "B3|b12|b1000_P1|PD_003|scan1pd|PT1_scan|a1c|p2press|sub-01|vor_7|minus_3",
    }.items(),
)
def test_words_of_scanners_and_languages_determine_the_sequence(sequence, names):
    told = {name: read_name(name).sequence for name in names.split("|")}
    assert told == dict.fromkeys(told, sequence)


@pytest.mark.parametrize(
    "without, with_agent", [("vor_KM", "nach_KM"), ("Gd-", "Gd+"), ("C-", "C+"), ("ohne_KM", "KM")]
)
def test_without_and_with_contrast_are_a_whole_case(tmp_path, without, with_agent):
    touch(tmp_path, "Meier_FLAIR.nii", f"Meier_T1_{without}.nii", f"Meier_T1_{with_agent}.nii", "Meier_T1_SUB.nii")
    cases, _, faults, _ = found(tmp_path)
    assert not faults
    assert cases == {
        "Meier": {FLAIR: "Meier_FLAIR.nii", PRE: f"Meier_T1_{without}.nii", POST: f"Meier_T1_{with_agent}.nii"}
    }


def test_patients_by_letter_and_number_are_cases_of_their_own(tmp_path):
    touch(tmp_path, "p2t1.nii.gz", "p2flair.nii.gz", "p3flair.nii.gz", "b1000.nii.gz")
    cases, _, faults, passed_over = found(tmp_path)
    assert cases == {"p2": {FLAIR: "p2flair.nii.gz", PRE: "p2t1.nii.gz"}, "p3": {FLAIR: "p3flair.nii.gz"}}
    assert not faults and passed_over == {"another sequence, no FLAIR beside it": 1}


def test_two_of_one_name_are_refused_and_the_others_go_on(tmp_path):
    touch(tmp_path, "base.nii", "base.nii.gz", "other.nii.gz")
    cases, _, (fault,), _ = found(tmp_path)
    assert cases == {"other": {ALL: "other.nii.gz"}}
    assert fault.startswith(f"{tmp_path}/base.nii, {tmp_path}/base.nii.gz: more than one scan is named ./base, so ")


def test_the_image_file_of_a_pair_is_read_by_its_header(tmp_path):
    touch(tmp_path, "pair.hdr", "pair.img", "lone.img")
    assert found(tmp_path / "pair.img")[0] == {"pair": {ALL: "pair.hdr"}}
    assert found(tmp_path / "lone.img")[0] == {"lone": {ALL: "lone.img"}}  # its reader asks for the header


def test_a_file_without_permission_is_reported(tmp_path, monkeypatch):
    touch(tmp_path, "P1.nii", "IM0001")
    usual = Path.open

    def closed(path, *args, **kwargs):
        if path.name == "IM0001":
            raise PermissionError(13, "Permission denied")
        return usual(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", closed)
    assert found(tmp_path)[3] == {"cannot be read (Permission denied)": 1}
