"""The command `python -m brainseg_jax.data.prepare`, as a user runs it, and the table it ends with."""

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from brainseg_jax.data.prepare import describe, verdict
from brainseg_jax.data.prepared import PUBLISHED_INSTITUTIONS, Summary

WHOLE = Summary("f" * 64, "kaggle_3m", 110, 3929, 1373, 0.0103, PUBLISHED_INSTITUTIONS)
SUBSET = Summary("0123456789abcdef" * 4, "x", 3, 60, 25, 0.01234, {"CS": 1, "DU": 2})
MADE_UP = Summary("f" * 64, "phantom:2:0", 2, 32, 20, 0.02, {"PA": 2})


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
    assert "Downloading" not in result.stdout + result.stderr  # what TFDS prints of its own accord
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
def test_the_verdict_in_words(summary, words):
    assert words in verdict(summary)
