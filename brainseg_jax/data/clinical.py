"""The four clinical fields that are kept from Kaggle's `data.csv`."""

import csv
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

from absl import logging

from brainseg_jax.errors import InputError
from brainseg_jax.scans.untrusted import read_bounded

MISSING = -1
LARGEST = 2**31 - 1  # the fields are stored as int32


class Clinical(NamedTuple):
    """Codes as in `data.csv`; -1 is missing."""

    grade: int = MISSING
    histological_type: int = MISSING
    age: int = MISSING  # years at the first diagnosis
    gender: int = MISSING


UNKNOWN = Clinical()
COLUMNS = Clinical(
    grade="neoplasm_histologic_grade",
    histological_type="histological_type",
    age="age_at_initial_pathologic",
    gender="gender",
)


def read_clinical(path: Path | zipfile.Path) -> tuple[dict[str, Clinical], list[str]]:
    """Reads `data.csv`, keyed by patient (`TCGA_DU_5849`, without the date of the scan).

    Args:
      path: the table, in a folder or in a zip. Where there is none, only these fields are lost, with a warning.

    Returns:
      The fields of each patient, and one sentence for each fault of the table.
    """
    if not path.is_file():
        logging.warning("No %s: grade, histological type, age and gender will be missing (-1).", path)
        return {}, []
    remedy = "correct it, or take data.csv away to go without clinical fields"
    try:
        reader = csv.DictReader(io.StringIO(read_bounded(path).decode("utf-8-sig"), newline=""), strict=True)
        absent = [name for name in ("Patient", *COLUMNS) if name not in (reader.fieldnames or ())]
        if absent:
            return {}, [f"data.csv: no column {', '.join(absent)}; {remedy}"]
        rows = [(reader.line_num, row) for row in reader]
    except (InputError, UnicodeDecodeError, csv.Error) as error:
        return {}, [f"data.csv: not readable as a table ({error}); {remedy}"]
    table, faults = {}, []
    for line, row in rows:
        patient = (row["Patient"] or "").strip()
        if None in row or None in row.values():
            faults.append(f"data.csv: line {line}: not as many fields as the header; {remedy}")
        elif not patient or patient in table:
            what = f"patient {patient} a second time" if patient else "no patient"
            faults.append(f"data.csv: line {line}: {what}; {remedy}")
        else:
            table[patient] = Clinical(*(_code(row[name]) for name in COLUMNS))
            faults += [
                f"data.csv: line {line} ({patient}): {name} is {row[name]!r}, not a whole number or a blank; {remedy}"
                for name, code in zip(COLUMNS, table[patient], strict=True)
                if code is None
            ]
    return table, faults


def _code(text: str) -> int | None:
    """A whole number from 0; -1 for a blank; None for anything else."""
    text = text.strip()
    if not text:
        return MISSING
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST))
    return int(text) if is_number and int(text) <= LARGEST else None
