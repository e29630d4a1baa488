"""Assigns cases to patients: by `patients.csv`, a table with one row per case, or by a pattern for case names."""

import csv
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

from brainseg_jax.data.formats.listing import Draft
from brainseg_jax.errors import InputError
from brainseg_jax.scans.untrusted import read_bounded

NAME = "patients.csv"


def apply_table(draft: Draft, patient_column: str = "patient", group_column: str = "group") -> None:
    """Sets patient and group of each case from the table in the folder of the cohort, if it exists.

    Adds faults to the draft: for cases without a row, rows without a case, repeated cases, empty fields, and patients
    in two groups.

    Args:
      draft: changed in place.
      patient_column: name of a required column.
      group_column: name of a column; required unless it is `group`.
    """
    path = draft.root / NAME
    if not path.is_file():
        if (patient_column, group_column) != ("patient", "group"):
            draft.faults.append(
                f"cohort.toml names columns of {NAME}, but the folder has no such file; add the table, or remove "
                "patient_column and group_column"
            )
        return
    rows = _read(draft, path, patient_column, group_column)
    if rows is None:
        return
    names = {case.name for case in draft.cases}
    table: dict[str, tuple[str, str]] = {}
    group_of: dict[str, tuple[str, int]] = {}
    for line, case, patient, group in rows:
        where = f"{NAME}: line {line}"
        if not case or not patient:
            draft.faults.append(f"{where}: no {'patient' if case else 'case'}; fill it in, or remove the line")
        elif case in table:
            draft.faults.append(f"{where}: case {case} a second time; keep one line")
        elif case not in names:
            draft.faults.append(f"{where}: no case {case} in the folder; correct the name, or remove the line")
        if patient and (first := group_of.setdefault(patient, (group, line)))[0] != group:
            draft.faults.append(
                f"{where}: patient {patient} is of group {group!r}, and of {first[0]!r} in line {first[1]}; give one "
                "group"
            )
        table.setdefault(case, (patient, group))
    draft.faults += [f"{NAME}: no line for case {name}; add one" for name in sorted(names - table.keys())]
    draft.cases = [
        dataclasses.replace(case, patient=table[case.name][0], group=table[case.name][1])
        if table.get(case.name, ("", ""))[0]
        else case
        for case in draft.cases
    ]
    draft.patients_known = True
    draft.notes.append(f"patients by {NAME}: {len({case.patient for case in draft.cases})} of {len(draft.cases)} cases")


def apply_pattern(draft: Draft, pattern: re.Pattern, field: str) -> None:
    """Sets `patient` or `group` of each case to the first group of a pattern that matches its whole name.

    Adds a fault for a name that does not match.
    """
    changed = []
    draft.patients_known |= field == "patient"
    for case in draft.cases:
        match = pattern.fullmatch(case.name)
        if match is None or not match[1]:
            draft.faults.append(
                f"cohort.toml: {field} = {pattern.pattern!r} does not fit the case {case.name}; give a pattern that "
                f"fits the whole name of every case, with parentheses around the {field}"
            )
        else:
            change: dict[str, Any] = {field: match[1]}
            case = dataclasses.replace(case, **change)
        changed.append(case)
    draft.cases = changed


def _read(draft: Draft, path: Path, patient_column: str, group_column: str) -> list[tuple[int, str, str, str]] | None:
    """Line, case, patient and group of each row; None, with a fault, if the table is invalid as a whole."""
    try:
        text = read_bounded(path).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = reader.fieldnames or ()
        rows = [(reader.line_num, row) for row in reader]
    except (InputError, UnicodeDecodeError, csv.Error) as error:
        draft.faults.append(f"{NAME}: not readable as a table ({error}); correct it")
        return None
    required = ["case", patient_column] + ([group_column] if group_column != "group" else [])
    if missing := [name for name in required if name not in columns]:
        draft.faults.append(
            f"{NAME}: no column {', '.join(missing)} (present: {', '.join(columns) or 'none'}); give a table with the "
            "columns case, patient and, if known, group, separated by commas"
        )
        return None

    def cell(row: dict[str, Any], column: str) -> str:
        return (row.get(column) or "").strip()

    return [(line, cell(row, "case"), cell(row, patient_column), cell(row, group_column)) for line, row in rows]
