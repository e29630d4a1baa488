"""Cohort folders for tests. The files are empty, since names and tables alone determine the format."""

import json
from pathlib import Path

import pytest

from brainseg_jax.data.formats import CaseFiles, list_cohort
from brainseg_jax.errors import InputError


def touch(root: Path, *names: str) -> Path:
    """Creates empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write_json(root: Path, content: object) -> None:
    """Writes `dataset.json`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))


def shown(root: Path, case: CaseFiles) -> tuple:
    """Name, patient, group, files by channel and labels of a case, as text relative to the folder."""

    def text(files):
        if files is None:
            return None
        if isinstance(files, Path):
            return files.relative_to(root).as_posix()
        return tuple((number, path.relative_to(root).as_posix()) for number, path in files)

    images = {channel: text(files) for channel, files in case.images.items()}
    return case.name, case.patient, case.group, images, text(case.labels)


def refusal(root: Path) -> str:
    """The message of the error that refuses a folder."""
    with pytest.raises(InputError) as caught:
        list_cohort(root)
    assert str(root) in str(caught.value)
    return str(caught.value)


def faults(root: Path) -> list[str]:
    """The faults of a refused cohort, one per line below a first line with their number."""
    first, *lines = refusal(root).splitlines()
    assert (
        first.startswith(f"{root} (") and f"): {len(lines)} fault" in first and all(line[:2] == "  " for line in lines)
    )
    return [line[2:] for line in lines]
