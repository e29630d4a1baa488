"""DICOM studies from archives and PACS: one head is one case, whatever its folders are called."""

import csv
import tracemalloc
import zlib

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")

from conftest import call_predict  # noqa: E402
from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, MRImageStorage, generate_uid  # noqa: E402

from brainseg_jax.errors import InputError  # noqa: E402
from brainseg_jax.prediction.job import table  # noqa: E402
from brainseg_jax.scans.find import find_scans  # noqa: E402
from brainseg_jax.scans.header import read_header  # noqa: E402
from brainseg_jax.scans.patterns import read_patterns  # noqa: E402
from brainseg_jax.scans.scan import Refused  # noqa: E402
from brainseg_jax.scans.sequences import ALL, FLAIR, OTHER, POST, PRE  # noqa: E402

STUDY, FRAME = generate_uid(), generate_uid()
# Times in ms as scanners give them at 3 T.
T1 = {"RepetitionTime": 600, "EchoTime": 10}
T1_POST = T1 | {"ContrastBolusAgent": "GADAVIST"}
T2 = {"RepetitionTime": 5000, "EchoTime": 100}
FLUID = {"RepetitionTime": 9000, "EchoTime": 120, "InversionTime": 2500}


def write(folder, *, slices=4, step=5.0, flat="", **tags):
    """Writes a series of 16 x 16 pixels per slice, without the tags of value None. Files are `flat` and a number."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(zlib.crc32(f"{folder}{flat}".encode())).integers(0, 255, (slices, 16, 16), np.uint16)
    series = generate_uid()
    for number, frame in enumerate(values):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        default = {
            "SOPClassUID": MRImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID, "StudyInstanceUID": STUDY,
            "SeriesInstanceUID": series, "FrameOfReferenceUID": FRAME, "PatientID": "P1", "PatientName": "Made^Up",
            "Modality": "MR", "InstanceNumber": number + 1, "SliceThickness": step, "PixelSpacing": [1.0, 1.0],
            "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
            "ImagePositionPatient": [-8.0, -8.0, step * number], "Rows": 16, "Columns": 16, "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0, "BitsAllocated": 16,
            "BitsStored": 16, "HighBit": 15, "PixelData": frame.tobytes(),
        }  # fmt: skip
        for name, value in (default | tags).items():
            if value is not None:
                setattr(one, name, value)
        one.save_as(folder / f"{flat}{number:03d}.dcm", enforce_file_format=True)


def found(folder, sequences=""):
    """Files of each case by sequence, as names below the folder; notes, faults, and files passed over."""
    result = find_scans(folder, read_patterns(sequences))
    cases = {
        source.name: {key: {path.parent.name for path in paths} for key, paths in source.files.items()}
        for source in result
        if not isinstance(source, Refused)
    }
    notes = {source.name: source.notes for source in result if source.notes}
    return cases, notes, [s.fault for s in result if isinstance(s, Refused)], result.passed_over


REAL = {
    "13-T1post-77241": {"SeriesDescription": "T1post"} | T1_POST,
    "36529-FLAIRreg-88719": {"SeriesDescription": "FLAIRreg"} | FLUID,
    "37758-T2reg-76823": {"SeriesDescription": "T2reg"} | T2,
    "40845-T1prereg-53096": {"SeriesDescription": "T1prereg"} | T1,
    "5395-MaskTumor-37344": {"SeriesDescription": "MaskTumor"},
}


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("told", ["by folders", "by descriptions", "by times"])
def test_a_real_study_is_one_case_with_one_mask(trained_run, tmp_path, capsys, told):
    """TCIA's Brain-Tumor-Progression: four series and a mask of one head."""
    for number, (name, tags) in enumerate(REAL.items(), start=1):
        if told == "by folders":
            tags = {}
        elif told == "by times" and "SeriesDescription" in tags:
            tags = {key: value for key, value in tags.items() if key != "SeriesDescription"}
            tags |= {} if "Mask" not in name else {"Modality": "SEG"}
        write(tmp_path / "in" / "P1" / (name if told == "by folders" else f"{number:03d}"), SeriesNumber=number, **tags)
    call_predict(trained_run[0], tmp_path / "in", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "P1_pred.dcm", "areas.csv", "predictions.csv"
    ]  # fmt: skip
    (row,) = csv.DictReader((tmp_path / "out" / "predictions.csv").open())
    t2 = "37758-T2reg-76823" if told == "by folders" else "003 (T2reg)" if told == "by descriptions" else "003"
    assert row["case"] == "P1" and row["notes"].startswith(f"{t2} is not used")
    folder = "36529-FLAIRreg-88719" if told == "by folders" else "002"
    uids = {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "in" / "P1" / folder).iterdir()}
    seg = hd.seg.segread(tmp_path / "out" / "P1_pred.dcm")
    assert {uid for _, _, uid in seg.get_source_image_uids()} == uids
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["case", "pre-contrast", "FLAIR", "post-contrast"]
    cells = {
        "by folders": "P1 40845-T1prereg-53096 36529-FLAIRreg-88719 13-T1post-77241",
        "by descriptions": "P1 004 (T1prereg) 002 (FLAIRreg) 001 (T1post)",
        "by times": "P1 004 002 001",
    }
    assert lines[1].split() == cells[told].split() and "Passed over:" in lines


def test_a_flat_folder_holds_several_series_and_heads(tmp_path):
    """Two patients and a localizer, an ADC map and a CT, all files in one folder, as a PACS exports them."""
    for patient in ("P1", "P2"):
        uids = {"PatientID": patient, "StudyInstanceUID": generate_uid()}
        write(tmp_path / "in", flat=f"{patient}a", SeriesDescription="AX T2 FLAIR", **uids, **FLUID)
        write(tmp_path / "in", flat=f"{patient}b", SeriesDescription="AX T1", **uids, **T1)
        write(tmp_path / "in", flat=f"{patient}c", SeriesDescription="AX T1 +C", **uids, **T1_POST)
    write(tmp_path / "in", flat="l", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **uids)
    write(tmp_path / "in", flat="m", ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "ADC"], **uids)
    write(tmp_path / "in", flat="x", slices=1, Modality="CT")
    result = find_scans(tmp_path / "in")
    files = {s.name: {key: {path.name[:3] for path in paths} for key, paths in s.files.items()} for s in result}
    assert files == {f"in_{p}": {FLAIR: {f"{p}a"}, PRE: {f"{p}b"}, POST: {f"{p}c"}} for p in ("P1", "P2")}
    assert {reason: len(paths) for reason, paths in result.passed_over.items()} == {
        "DICOM, but not an MR image (CT)": 1,
        "another sequence, not used beside FLAIR": 4,
        "a derived map, not used beside FLAIR": 4,
    }


def test_a_series_over_several_folders_is_one(tmp_path):
    uid = generate_uid()
    for part in (0, 1):
        write(
            tmp_path / "P1" / f"part{part}", slices=2, SeriesInstanceUID=uid, SeriesDescription="FLAIR", flat=str(part)
        )
    (source,) = find_scans(tmp_path)
    assert source.name == "P1" and len(source.files[FLAIR]) == 4


def test_without_identifiers_the_folders_tell_what_belongs_together(tmp_path):
    """Anonymized: no study, series or frame of reference; the heads P1 and P2, and P3 of one series."""
    none = dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"))
    for place in ("P1/AX_FLAIR", "P1/AX_T1_POST", "P1/AX_T1_PRE", "P2/flair", "P2/calibration", "P3"):
        write(tmp_path / place, **none)
    cases, notes, faults, _ = found(tmp_path)
    assert cases == {
        "P1": {FLAIR: {"AX_FLAIR"}, PRE: {"AX_T1_PRE"}, POST: {"AX_T1_POST"}},
        "P2": {FLAIR: {"flair"}},
        "P3": {ALL: {"P3"}},
    }
    assert notes == {"P2": ("calibration is not used",)} and not faults


def test_what_is_known_not_to_be_flair_is_never_taken_as_flair(tmp_path):
    """Each is the only series of a study: T1 is refused with a message, other sequences are passed over."""
    write(tmp_path / "t1", StudyInstanceUID=generate_uid(), **T1)
    write(tmp_path / "gad", StudyInstanceUID=generate_uid(), SeriesDescription="SAG MPRAGE GAD")
    write(tmp_path / "misnamed", StudyInstanceUID=generate_uid(), SeriesDescription="AX FLAIR", **T1)
    for name, tags in {"t2": T2, "swi": {"SeriesDescription": "SWI_Images"}}.items():
        write(tmp_path / name, StudyInstanceUID=generate_uid(), **tags)
    cases, _, faults, passed_over = found(tmp_path)
    assert not cases and len(faults) == 3
    for words in (
        "t1: no FLAIR among .*t1 \\(4 files\\) \\(pre-contrast\\)",
        "gad: .*\\(post-contrast\\)",
        "times are those of T1",
    ):
        with pytest.raises(InputError, match=words):
            raise InputError("\n".join(faults))
    assert len(passed_over["another sequence, no FLAIR beside it"]) == 8


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (FLUID, FLAIR),
        ({"RepetitionTime": 4800, "EchoTime": 340, "InversionTime": 1650}, FLAIR),  # 3-D, SPACE
        ({"RepetitionTime": 9000, "EchoTime": 120, "ScanningSequence": ["SE", "IR"]}, FLAIR),
        (T1, PRE),
        (T1_POST, POST),
        (T1 | {"ContrastBolusAgent": "NONE"}, PRE),
        ({"RepetitionTime": 2300, "EchoTime": 2.9, "InversionTime": 900}, PRE),  # MPRAGE
        ({"RepetitionTime": 2000, "EchoTime": 24, "InversionTime": 860}, PRE),  # T1-FLAIR
        (T2, OTHER),
        ({"RepetitionTime": 4000, "EchoTime": 70, "InversionTime": 180}, OTHER),  # STIR
        ({"RepetitionTime": 3000, "EchoTime": 30}, OTHER),  # proton density
        ({"RepetitionTime": 6000, "EchoTime": 90, "ScanningSequence": "EP"}, OTHER),  # diffusion
        ({"RepetitionTime": 24, "EchoTime": 3.4, "AngioFlag": "Y"}, OTHER),
        ({"RepetitionTime": 9000}, None),
        ({}, None),
    ],
)
def test_times_tell_the_sequence(tmp_path, tags, expected):
    write(tmp_path, slices=1, **tags)
    assert read_header(tmp_path / "000.dcm").by_times == expected


def test_of_two_series_for_one_channel_none_is_picked_in_silence(tmp_path):
    """A second FLAIR refuses the case. If only one is axial, or on T1's grid, it is used, with a note."""
    sagittal = {"ImageOrientationPatient": [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]}
    for case in ("twice", "axial", "grid"):
        study = {"StudyInstanceUID": generate_uid()}
        write(tmp_path / case / "a", SeriesDescription="FLAIR", **study)
        other = sagittal if case == "axial" else {}
        step = 4.0 if case == "grid" else 5.0
        write(tmp_path / case / "b", SeriesDescription="FLAIR 2", step=step, **study, **other)
        if case == "grid":
            write(tmp_path / case / "c", SeriesDescription="T1", **study)
            write(tmp_path / case / "d", SeriesDescription="T1 GD", step=4.5, **study)
    cases, notes, (fault,), _ = found(tmp_path)
    assert cases == {"axial": {FLAIR: {"a"}}, "grid": {FLAIR: {"a"}, PRE: {"c"}}}
    assert "twice: FLAIR twice: " in fault and "a (FLAIR, 4 files), " in fault and "--sequences=" in fault
    assert notes["axial"] == ("b (FLAIR 2) is not used: another FLAIR series is axial, and is used",)
    assert notes["grid"] == (
        "b (FLAIR 2) is not used: another FLAIR series is on the grid of T1, and is used",
        "d (T1 GD) is not used: its grid is not that of FLAIR; resample it onto the grid of FLAIR to use it",
    )
    cases, *_ = found(tmp_path / "twice", "flair=FLAIR,post=*2")
    assert cases == {"twice": {FLAIR: {"a"}, POST: {"b"}}}
    cases, _, (fault,), _ = found(tmp_path / "twice", "flair=*FLAIR*")
    assert not cases and "*FLAIR* fits 2 of twice, for FLAIR: " in fault and "a (FLAIR, 4 files), " in fault


def test_headers_that_cannot_be_read_stop_nothing(tmp_path):
    """Text under the name, a file cut in its header, one without the mark of the format, a deflated one."""
    write(tmp_path / "P1", SeriesDescription="FLAIR")
    whole = (tmp_path / "P1" / "001.dcm").read_bytes()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.dcm").write_text("no scan")
    (tmp_path / "text" / "b.dcm").write_bytes(whole[:150])
    (tmp_path / "P1" / "cut.dcm").write_bytes(whole[:140])
    assert read_header(tmp_path / "text" / "a.dcm") is None and read_header(tmp_path / "P1" / "cut.dcm") is None
    one = pydicom.dcmread(tmp_path / "P1" / "000.dcm")
    one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    one.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    (tmp_path / "bare.dcm").write_bytes(whole[whole.index(b"DICM") + 4 :])
    for name in ("deflated.dcm", "bare.dcm"):
        header = read_header(tmp_path / name)
        assert header.description == "FLAIR" and header.size == (16, 16) and header.position[2] in (0.0, 5.0), name
    for path in (tmp_path / "deflated.dcm", tmp_path / "bare.dcm"):
        path.unlink()
    result = find_scans(tmp_path)
    assert {s.name: [path.name for paths in s.files.values() for path in paths] for s in result} == {
        "P1": ["000.dcm", "001.dcm", "002.dcm", "003.dcm", "cut.dcm"],  # the reader tells of the damaged slice
        "text": ["a.dcm", "b.dcm"],
    }
    assert any("2 damaged files" in line for line in table(result, tmp_path))


def test_headers_take_little_memory(tmp_path):
    """A deflated file of 64 kB that unpacks to 64 MB, and a header that declares a text of 2 GB."""
    write(tmp_path, slices=1, SeriesDescription="FLAIR")
    one = pydicom.dcmread(tmp_path / "000.dcm")
    one.file_meta.TransferSyntaxUID, one.PixelData = DeflatedExplicitVRLittleEndian, bytes(2**26)
    one.save_as(tmp_path / "bomb.dcm", enforce_file_format=True)
    data = (tmp_path / "000.dcm").read_bytes()
    place = data.index(b"P1", data.index(b"\x10\x00\x20\x00LO"))
    long = data[: place - 4] + b"UT\0\0" + (2**31).to_bytes(4, "little") + data[place:]
    (tmp_path / "long.dcm").write_bytes(long)
    tracemalloc.start()
    assert read_header(tmp_path / "bomb.dcm").description == "FLAIR"
    read_header(tmp_path / "long.dcm")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


NOTHING = dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"))


def test_two_patients_without_identifiers_are_never_one_case(tmp_path):
    """By their PatientID, or without one by the folder names apart from the sequence."""
    for root, ids in {"ids": ("A", "B"), "no_ids": (None, None)}.items():
        for place, tags, patient in (("PatA_FLAIR", FLUID, ids[0]), ("PatB_T1", T1, ids[1])):
            write(tmp_path / root / place, slices=1, **NOTHING | tags | {"PatientID": patient})
        cases, _, (fault,), _ = found(tmp_path / root)
        assert cases == {"PatA_FLAIR": {FLAIR: {"PatA_FLAIR"}}} and fault.startswith("PatB_T1: no FLAIR among ")
    for place, patient in (("FLAIR", "A"), ("T1", "B")):
        write(tmp_path / "plain" / place, slices=1, **NOTHING | {"PatientID": patient})
    cases, _, (fault,), _ = found(tmp_path / "plain")
    assert cases == {"plain_A": {FLAIR: {"FLAIR"}}} and fault.startswith("plain_B: no FLAIR among ")


def test_folders_alike_but_for_the_sequence_are_a_case_of_that_name(tmp_path):
    for place in ("PatA_FLAIR", "PatA_T1", "PatB_FLAIR", "PatB_T1_post"):
        write(tmp_path / place, slices=1, **NOTHING | {"PatientID": None})
    cases, _, faults, _ = found(tmp_path)
    assert not faults
    assert cases == {
        "PatA": {FLAIR: {"PatA_FLAIR"}, PRE: {"PatA_T1"}},
        "PatB": {FLAIR: {"PatB_FLAIR"}, POST: {"PatB_T1_post"}},
    }


def test_a_folder_keeps_its_name_beside_one_that_names_a_sequence_and_more(tmp_path):
    write(tmp_path / "Schmidt", slices=1, SeriesDescription="FLAIR", **NOTHING | {"PatientID": "S"})
    write(tmp_path / "Meier", slices=1, SeriesDescription="T1 post", **NOTHING | {"PatientID": "M"})
    write(tmp_path / "Flair_Huber", slices=1, SeriesDescription="FLAIR", PatientID="H")
    write(tmp_path / "d3_noAll", slices=1, **NOTHING | {"PatientID": None})
    cases, _, (fault,), _ = found(tmp_path)
    assert cases == {
        "Schmidt": {FLAIR: {"Schmidt"}},
        "Flair_Huber": {FLAIR: {"Flair_Huber"}},
        "d3_noAll": {ALL: {"d3_noAll"}},
    }
    assert fault.startswith("Meier: no FLAIR among ")


@pytest.mark.parametrize(
    "words", [("T1 vor KM", "T1 nach KM"), ("T1 Gd-", "T1 Gd+"), ("T1 pre", "T1 post"), ("T1", "T1 DOTAREM")]
)
def test_descriptions_tell_pre_from_post(tmp_path, words):
    for number, description in enumerate(("FLAIR", *words, "T1 post SUB")):
        write(tmp_path / f"{number}", slices=1, SeriesDescription=description)
    cases, notes, faults, _ = found(tmp_path)
    assert list(cases.values()) == [{FLAIR: {"0"}, PRE: {"1"}, POST: {"2"}}] and not faults
    assert list(notes.values()) == [("3 (T1 post SUB) is not used",)]


def test_a_slice_cut_before_its_pixels_goes_to_the_reader_of_its_series(tmp_path):
    """In a folder of two series: its header still has the series, but not its size."""
    write(tmp_path, flat="a", SeriesDescription="FLAIR")
    write(tmp_path, flat="b", SeriesDescription="T1")
    path = tmp_path / "a001.dcm"
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\x20\x00\x13\x00IS")])  # InstanceNumber; position and size come behind
    (source,) = find_scans(tmp_path)
    assert [file.name for file in source.files[FLAIR]] == ["a000.dcm", "a001.dcm", "a002.dcm", "a003.dcm"]
    with pytest.raises(InputError, match=r"a001\.dcm|a001"):
        source.read()


@pytest.mark.parametrize("dates", [("20200101", "20210302"), ("20200101", "20200101")])
def test_two_studies_of_a_patient_in_one_folder_are_distinguished(tmp_path, dates):
    uids = ("1.2.3.11111111", "1.2.3.22222222")
    for letter, uid, date in zip("ab", uids, dates, strict=True):
        write(tmp_path / "in", slices=1, flat=letter, SeriesDescription="FLAIR", StudyInstanceUID=uid, StudyDate=date)
    notes = found(tmp_path / "in")[1]
    same = dates[0] == dates[1]
    first, second = ("with a UID that ends in 11111111", "with a UID that ends in 22222222") if same else (
        "of 20200101", "of 20210302"
    )  # fmt: skip
    assert notes == {"in_1": (f"number 1 is the study {first}",), "in_2": (f"number 2 is the study {second}",)}


def test_a_damaged_slice_in_another_folder_goes_to_its_series(tmp_path):
    """Beside the other series of the study, whose files would otherwise be refused for it."""
    write(tmp_path / "FLAIR", SeriesDescription="FLAIR")
    write(tmp_path / "T1", SeriesDescription="T1", **T1)
    path = tmp_path / "T1" / "moved.dcm"
    data = (tmp_path / "FLAIR" / "001.dcm").read_bytes()
    path.write_bytes(data[: data.index(b"\x20\x00\x13\x00IS")])
    (source,) = find_scans(tmp_path)
    assert path in source.files[FLAIR] and path not in source.files[PRE]


def test_a_series_in_two_folders_without_other_identifiers(tmp_path):
    """Of its folders, only that of its first file is among those that a series begins in."""
    uid = {"StudyInstanceUID": None, "FrameOfReferenceUID": None, "SeriesInstanceUID": generate_uid()}
    for place in ("PatA_FLAIR_1", "PatA_FLAIR_2"):
        write(tmp_path / place, slices=2, **uid | FLUID)
    (source,) = find_scans(tmp_path)
    assert {path.parent.name for path in source.paths} == {"PatA_FLAIR_1", "PatA_FLAIR_2"}
