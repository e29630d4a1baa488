"""Reads the four clinical fields that are used of Kaggle's `data.csv`."""

import csv
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

from absl import logging

from brainseg_jax.errors import InputError
from brainseg_jax.scans.untrusted import read_bounded

MISSING = -1
MAX_CODE = 2**31 - 1  # the fields are stored as int32


class Clinical(NamedTuple):
    """Clinical codes as in `data.csv`; -1 means missing."""

    grade: int = MISSING
    histological_type: int = MISSING
    age: int = MISSING  # years at the first diagnosis
    gender: int = MISSING


UNKNOWN = Clinical()
# The column of each field of `Clinical`, in the same order.
COLUMNS = ("neoplasm_histologic_grade", "histological_type", "age_at_initial_pathologic", "gender")


def read_clinical(path: Path | zipfile.Path) -> tuple[dict[str, Clinical], list[str]]:
    """Reads `data.csv`, keyed by patient (`TCGA_DU_5849`, without the scan date).

    Args:
      path: the table, in a folder or a zip. If there is no such file, the result is empty and a warning is logged.

    Returns:
      The fields of each patient, and one message for each fault of the table.
    """
    if not path.is_file():
        logging.warning("No %s: grade, histological type, age and gender will be missing (-1).", path)
        return {}, []
    remedy = "correct it, or remove data.csv to prepare without clinical fields"
    try:
        reader = csv.DictReader(io.StringIO(read_bounded(path).decode("utf-8-sig"), newline=""), strict=True)
        missing = [name for name in ("Patient", *COLUMNS) if name not in (reader.fieldnames or ())]
        if missing:
            return {}, [f"data.csv: no column {', '.join(missing)}; {remedy}"]
        rows = [(reader.line_num, row) for row in reader]
    except (InputError, UnicodeDecodeError, csv.Error) as error:
        return {}, [f"data.csv: not readable as a table ({error}); {remedy}"]
    table: dict[str, Clinical] = {}
    faults = []
    for line, row in rows:
        patient = (row["Patient"] or "").strip()
        if None in row or None in row.values():
            faults.append(f"data.csv: line {line}: the number of fields differs from the header; {remedy}")
        elif not patient or patient in table:
            fault = f"patient {patient} is listed twice" if patient else "no patient"
            faults.append(f"data.csv: line {line}: {fault}; {remedy}")
        else:
            codes = [_code(row[name]) for name in COLUMNS]
            table[patient] = Clinical(*(MISSING if code is None else code for code in codes))
            faults += [
                f"data.csv: line {line} ({patient}): {name} is {row[name]!r}, neither a whole number nor blank; "
                f"{remedy}"
                for name, code in zip(COLUMNS, codes, strict=True)
                if code is None
            ]
    return table, faults


def _code(text: str) -> int | None:
    """A non-negative integer; -1 for a blank; None for any other text."""
    text = text.strip()
    if not text:
        return MISSING
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_CODE))
    return int(text) if is_number and int(text) <= MAX_CODE else None
