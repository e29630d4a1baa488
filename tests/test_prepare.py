"""The command `python -m brainseg_jax.data.prepare`, as a user runs it, and the table that it prints."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from brainseg_jax.data.phantom_cohort import write_phantom_cohort
from brainseg_jax.data.prepare_source import check, prepare
from brainseg_jax.data.prepared import PUBLISHED_INSTITUTIONS, Contents, Summary, TargetCounts, read_summary
from brainseg_jax.data.prepared_tables import describe, print_summary, verdict
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Description, Target

WHOLE = Summary("f" * 64, "kaggle_3m", 110, 3929, 1373, 0.0103, PUBLISHED_INSTITUTIONS, 110)
SUBSET = Summary("0123456789abcdef" * 4, "x", 3, 60, 25, 0.01234, {"CS": 1, "DU": 2}, 3)
MADE_UP = Summary("f" * 64, "phantom:2:0", 2, 32, 20, 0.02, {"PA": 2}, 2)


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "brainseg_jax.data.prepare", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rows(text: str) -> list[list[str]]:
    """The cells of each row of a printed table."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]


def printed(summary: Summary) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(describe(summary))
    return console.file.getvalue()


def test_good_data_ends_with_the_table(phantom_folder, tmp_path):
    result = run(f"--source={phantom_folder}", f"--data_dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    masks = list(Path(phantom_folder).rglob("*_mask.tif"))
    assert ["patients", "8"] in rows(result.stdout)
    assert ["slices", str(len(masks))] in rows(result.stdout)
    folder = result.stdout.rsplit("Folder: ", 1)[1].strip()
    assert Path(folder, "dataset_info.json").is_file()
    assert "published" not in result.stdout.split("Not the")[0]
    assert "Downloading" not in result.stdout + result.stderr  # TFDS prints this by itself
    assert str(len(masks)) in result.stderr, "the progress bar counts the slices"


def test_bad_data_ends_in_one_error_without_a_traceback(tmp_path):
    case = tmp_path / "kaggle_3m" / "TCGA_DU_0001_19990101"
    case.mkdir(parents=True)
    (case / f"{case.name}_1.tif").write_bytes(b"")
    result = run(f"--source={tmp_path}", f"--data_dir={tmp_path / 'data'}")
    assert result.returncode == 2
    assert "\nerror: " in "\n" + result.stderr
    assert f"{case.name}_1.tif: an image without a mask" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "data").exists()


def test_the_published_counts_stand_beside_real_data_only():
    for row in (
        ["patients", "3", "110"],
        ["slices", "60", "3929"],
        ["tumor slices", "25", "1373"],
        ["tumor pixels", "1.234%", "1.03%"],
        ["patients of DU", "2", "45"],
        ["patients of EZ", "0", "1"],
        ["fingerprint", "0123456789abcdef", ""],
    ):
        assert row in rows(printed(SUBSET))
    assert ["patients of PA", "2"] in rows(printed(MADE_UP))
    assert "published" in printed(SUBSET)
    assert "published" not in printed(MADE_UP)


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        (WHOLE, "All published patients, slices and tumor slices."),
        (SUBSET, "A subset: 3 of the 110 published patients."),
        (dataclasses.replace(WHOLE, slices=3928), "differ from the published ones"),
        (MADE_UP, "Not the published set"),
    ],
)
def test_the_verdict(summary, words):
    assert words in verdict(summary)


def test_check_reads_everything_and_writes_nothing(phantom_folder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    result = run(f"--source={phantom_folder}", f"--data_dir={tmp_path}", "--check")
    assert result.returncode == 0, result.stderr
    assert ["patients", "8"] in rows(result.stdout)
    assert "No faults. Checked only; nothing was written." in result.stdout
    assert sorted(tmp_path.rglob("*")) == before
    case = tmp_path / "kaggle_3m" / "TCGA_DU_0001_19990101"
    case.mkdir(parents=True)
    (case / f"{case.name}_1.tif").write_bytes(b"")
    result = run(f"--source={tmp_path}", "--check")
    assert result.returncode == 2
    assert "an image without a mask" in result.stderr and "No fault" not in result.stdout


COHORT = Summary(
    fingerprint="0123456789abcdef" * 4,
    source="/data/[own]",
    patients=5,
    slices=70,
    target_slices=33,
    target_fraction=0.01,
    groups={"": 2, "north": 3},
    cases=7,
    description=Description(("T1", "FLAIR"), (Target("whole", (1, 2)), Target("core", (1,))), "FLAIR", ignore=9),
    contents=Contents(
        kind="nnU-Net raw",
        notes=("patients taken from names [see above]",),
        targets=(
            TargetCounts("whole", (1, 2), 6, 12345, 12.345, 1.5),
            TargetCounts("core", (1,), 4, 99, None, None),
        ),
        sizes=((10.0, 10.0, 10.0), (64.0, 80.5, 96.0), (64.0, 80.0, 96.0)),
        spacings=((3.0, 3.0, 3.0), (0.9, 1.0, 1.1), (0.9, 1.0, 1.1)),
        without_spacing=2,
        ranges={"T1": (-3.5, 1704300.0), "FLAIR": (0.0, 255.0)},
        replaced={"T1": 2},
    ),
)


def test_the_tables_of_a_cohort():
    console = Console(width=120, file=io.StringIO())
    print_summary(COHORT, console)
    text = console.file.getvalue()
    found = rows(text)
    for row in (
        ["patients", "5"],
        ["cases", "7"],
        ["slices", "70, 33 with a target"],
        ["groups (patients)", "unknown (2), north (3)"],
        ["slices, rows, columns", "10 x 64-80.5-96 x 64-80-96"],
        ["spacing in mm", "3 x 0.9-1-1.1 x 0.9-1-1.1"],
        ["cases without spacing", "2"],
        ["ignored label", "9"],
        ["T1", "-3.5", "1.7043e+06", "2 by FLAIR"],
        ["FLAIR", "0", "255", "0"],
        ["whole", "1, 2", "6", "12345", "12.345", "1.5"],
        ["core", "1", "4", "99", "unknown", "unknown"],
    ):
        assert row in found
    assert "Cohort: nnU-Net raw" in text
    assert "Note: patients taken from names [see above]" in text, "brackets are no markup"
    assert "Source: /data/[own]" in text
    assert "published" not in text and "Not the published set" not in text


def write_nnunet(root: Path, cases: int = 3) -> Path:
    """Writes cases of two channels and two labels; every second one has another orientation."""
    described = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "whole": [1, 2], "core": 1},
        "regions_class_order": [2, 1],
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    for case in range(cases):
        affine = np.diag([-1.0, -1.0, 1.0, 1.0] if case % 2 else [1.0, 1.0, 1.0, 1.0]) * 4
        affine[3, 3] = 1
        pixels = np.random.default_rng(case).integers(0, 200, (2, 9, 8, 7), np.uint8)
        labels = np.zeros((9, 8, 7), np.uint8)
        labels[2:5, 2:4, 3] = 2
        labels[3, 3, 3] = 1
        images = {f"imagesTr/c{case}_{channel:04d}.nii.gz": pixels[channel] for channel in range(2)}
        for name, values in {**images, f"labelsTr/c{case}.nii.gz": labels}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, affine), root / name)
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def write_msd(root: Path, nnunet: Path, cases: int = 3) -> Path:
    """Writes the same cases as a Decathlon task, which names channels and labels differently in its JSON."""
    training = []
    for case in range(cases):
        files = [nib.load(nnunet / f"imagesTr/c{case}_{channel:04d}.nii.gz") for channel in range(2)]
        stacked = np.stack([np.asanyarray(file.dataobj) for file in files], axis=-1)
        for folder in ("imagesTr", "labelsTr"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(stacked, files[0].affine), root / f"imagesTr/c{case}.nii.gz")
        shutil.copy(nnunet / f"labelsTr/c{case}.nii.gz", root / f"labelsTr/c{case}.nii.gz")
        training.append({"image": f"./imagesTr/c{case}.nii.gz", "label": f"./labelsTr/c{case}.nii.gz"})
    described = {
        "modality": {"0": "MRI one", "1": "MRI two"},
        "labels": {"0": "background", "1": "Middle", "2": "Rim"},
        "numTraining": cases,
        "training": training,
    }
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def test_nnunet_and_decathlon_of_one_content_prepare_to_one_fingerprint(tmp_path):
    nnunet = write_nnunet(tmp_path / "Dataset001_A")
    msd = write_msd(tmp_path / "Task01_A", nnunet)
    folders = [prepare(str(source), tmp_path / "data", progress=False) for source in (nnunet, msd)]
    first, second = (read_summary(folder) for folder in folders)
    assert first.fingerprint == second.fingerprint
    assert folders[0] != folders[1]
    assert [target.voxels for target in first.contents.targets] == [18, 3]
    assert [target.voxels for target in second.contents.targets] == [3, 15]
    assert first.contents.targets[0].milliliters == pytest.approx(18 * 0.064)


def test_the_command_prepares_a_folder_of_any_format(tmp_path):
    source = write_nnunet(tmp_path / "Dataset001_A")
    result = run(f"--source={source}", f"--data_dir={tmp_path / 'data'}")
    assert result.returncode == 0, result.stderr
    assert ["cases", "3"] in rows(result.stdout)
    assert ["whole", "1, 2", "3", "18", "1.152", "0.384"] in rows(result.stdout)
    assert "nnU-Net raw, 3 cases" in result.stderr, "what was recognized"
    assert "3/3 cases" in result.stderr, "the progress bar counts the cases"
    assert Path(result.stdout.rsplit("Folder: ", 1)[1].strip(), "dataset_info.json").is_file()


def test_the_command_lists_all_faults_of_a_folder_and_writes_nothing(tmp_path):
    source = write_nnunet(tmp_path / "Dataset001_A")
    (source / "imagesTr" / "c0_0001.nii.gz").write_bytes(b"")
    nib.save(nib.Nifti1Image(np.full((9, 8, 7), 7, np.uint8), np.diag([-4.0, -4, 4, 1])), source / "labelsTr/c1.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((9, 8, 7), np.uint8), np.diag([2.0, 2, 2, 1])), source / "labelsTr/c2.nii.gz")
    for flags in ([f"--data_dir={tmp_path / 'data'}"], ["--check"]):
        result = run(f"--source={source}", *flags)
        assert result.returncode == 2
        assert "3 faults in the data, so nothing was written" in result.stderr
        assert "c0_0001.nii.gz: not a NIfTI file" in result.stderr
        assert "c1.nii.gz: 7 (504 voxels); the description has 0, 1, 2 (whole, core)" in result.stderr
        assert "c2.nii.gz: its grid is not that of c2_0000.nii.gz" in result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("layout", ["lgg", "nnunet"])
def test_a_prepared_set_is_a_source_too(dataset_folder, tmp_path, layout):
    folder = dataset_folder
    if layout == "nnunet":
        write_phantom_cohort(tmp_path / "files", layout=layout, patients=2, seed=0)
        folder = prepare(str(tmp_path / "files" / "Dataset901_Phantom"), tmp_path / "data", progress=False)
        shutil.rmtree(tmp_path / "files")
    moved = shutil.copytree(folder, tmp_path / "moved" / Path(*folder.parts[-3:]))
    assert prepare(str(moved), tmp_path / "elsewhere", progress=False) == moved
    assert check(str(moved), progress=False).fingerprint == read_summary(folder).fingerprint
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "link").symlink_to(moved)
    for other in (tmp_path / "link", moved / ".." / moved.name):
        assert prepare(str(other), None, progress=False) == moved
    (moved / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"1\.0\.0: damaged .*prepare again"):
        prepare(str(moved), None, progress=False)
