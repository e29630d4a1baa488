"""Results of each predicted scan: files for masks and maps, and its rows of the two tables."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.quality import columns
from brainseg_jax.evaluation.scores import write_table
from brainseg_jax.files import explain, write_together, write_whole
from brainseg_jax.inference.ensemble import Maps
from brainseg_jax.inference.quality import Quality, Removed
from brainseg_jax.scans.description import Description
from brainseg_jax.scans.scan import MASK, PROBABILITY, UNCERTAINTY, Scan, Source

SCANS_TABLE, SLICES_TABLE = "predictions.csv", "areas.csv"
FLAGS, NOT_COMPARED = "flags", "not compared"  # a column of `predictions.csv`, and its value without comparison


@dataclass(frozen=True)
class Wanted:
    """The files to write with the masks."""

    probabilities: bool = False
    uncertainty: bool = False
    overlays: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of `Scan.write`. The mask comes last: if it exists, all files exist."""
        maps = {PROBABILITY: self.probabilities, UNCERTAINTY: self.uncertainty}
        return (*(kind for kind, wanted in maps.items() if wanted), MASK)


class Written(NamedTuple):
    """Results of one scan.

    Attributes:
      scans: its rows of `predictions.csv`, one per target. With several targets, the column "target" names it.
      slices: its rows of `areas.csv`, likewise.
      notes: messages about it for the user.
    """

    scans: list[dict]
    slices: list[dict]
    notes: tuple[str, ...]


def check_tables_free(output: Path) -> None:
    """Raises InputError if a table already exists."""
    _refuse([path for path in (output / SCANS_TABLE, output / SLICES_TABLE) if os.path.exists(path)])


def check_free(
    sources: list[Source], description: Description, output: Path, wanted: Wanted, *, tables: bool = True
) -> None:
    """Raises InputError if a file of these scans already exists, or a table if `tables`. Writes nothing."""
    paths = [output / SCANS_TABLE, output / SLICES_TABLE] if tables else []
    for source in sources:
        case_paths = _outputs(source, description, output, wanted)
        paths += case_paths + [_nifti_fallback(path) for path in case_paths if path.suffix == ".dcm"]
    _refuse([path for path in paths if os.path.exists(path)])  # os.path.exists also accepts names that are too long


def is_written(source: Source, description: Description, output: Path, wanted: Wanted) -> bool:
    """Whether all files of a scan exist."""
    return all(
        os.path.exists(path) or (path.suffix == ".dcm" and _nifti_fallback(path).exists())
        for path in _outputs(source, description, output, wanted)
    )


def _nifti_fallback(path: Path) -> Path:
    """The NIfTI file that replaces a DICOM SEG where none can be written, see `SeriesScan.write`."""
    return path.with_suffix(".nii.gz")


def _refuse(existing: list[Path]) -> None:
    if existing:
        more, verb = f" and {len(existing) - 1} more of the results", "exist"
        if len(existing) == 1:
            more, verb = "", "exists"
        raise InputError(f"{existing[0]}{more} already {verb}; give another --output, or --overwrite to replace them")


def write_tables(scans: list[dict], slices: list[dict], output: Path) -> None:
    """Writes `predictions.csv` and `areas.csv`, both or neither; nothing without rows. Raises InputError on failure."""
    if not scans:
        return
    try:
        tables = {SCANS_TABLE: scans, SLICES_TABLE: slices}
        write_together({output / name: partial(write_table, rows=rows) for name, rows in tables.items()})
    except OSError as error:
        raise InputError(f"--output={output} cannot be written to ({explain(error)})") from error


def write_results(
    source: Source,
    scan: Scan,
    maps: Maps,
    masks: np.ndarray,
    qualities: Sequence[Quality],
    description: Description,
    output: Path,
    wanted: Wanted,
) -> Written:
    """Writes the files of one scan.

    Args:
      source: determines the file names.
      scan: determines grid and file format. It has only the shown channel, [S, H, W, 1].
      maps: its probabilities.
      masks: of the targets, [S, H, W, K] bool.
      qualities: quality of the mask of each target.
      description: of the network.
      output: folder for results. Subfolders are created.
      wanted: the files to write.

    Raises:
      OSError: a file cannot be written. New files of this scan are then deleted.
    """
    several = len(description.names) > 1
    texts = [str(quality) for quality in qualities]
    prefixes = [f"{name}: " if several else "" for name in description.names]
    lines = [prefix + text for prefix, text in zip(prefixes, texts, strict=True)]
    values: dict = {MASK: masks, PROBABILITY: maps.probability, UNCERTAINTY: maps.uncertainty}
    (output / source.folder).mkdir(parents=True, exist_ok=True)
    new_paths = [path for path in _outputs(source, description, output, wanted) if not _exists(path)]
    try:
        if wanted.overlays:
            from brainseg_jax.evaluation.pictures import draw_overlay  # imported here because matplotlib loads slowly

            draw = partial(
                draw_overlay,
                scan=scan.voxels[..., 0],
                masks=masks,
                numbers=scan.numbers,
                targets=description.names,
                lines=lines,
            )
            write_whole(output / _overlay(source), draw)
        write_notes = [
            scan.write(
                kind,
                values[kind],
                [output / path for path in source.outputs(kind, description)],
                description,
                texts,
            )
            for kind in wanted.kinds
        ]
    except BaseException:
        for path in new_paths:  # no partial results; on a full disk this also makes room for the tables
            path.unlink(missing_ok=True)
        raise
    empty_masks = [text for text, quality in zip(lines, qualities, strict=True) if quality.agreement is None]
    removed = [
        prefix + _removed_in_words(quality.removed, scan.numbers)
        for prefix, quality in zip(prefixes, qualities, strict=True)
        if quality.removed
    ]
    notes = (*scan.notes, *filter(None, write_notes), *empty_masks, *removed)
    written = Written([], [], notes)
    for index, (name, quality) in enumerate(zip(description.names, qualities, strict=True)):
        case = {"case": source.name} | ({"target": name} if several else {})
        row, areas = _measure(case, scan, masks[..., index], quality, notes)
        written.scans.append(row)
        written.slices.extend(areas)
    return written


def _removed_in_words(removed: Removed, numbers: Sequence[int]) -> str:
    first, last = numbers[removed.first], numbers[removed.last]
    slices = f"slice {first}" if first == last else f"slices {first} to {last}"
    return (
        f"a second region in {slices} was removed; it has {removed.fraction:.0%} of the mask's size. The expected Dice "
        "does not know which one is right: check both"
    )


def _measure(
    case: dict, scan: Scan, mask: np.ndarray, quality: Quality, notes: tuple[str, ...]
) -> tuple[dict, list[dict]]:
    """Rows of a mask [S, H, W]: volume in mL and areas in mm², or in voxels and pixels if the spacing is unknown."""
    slice_gap, row, column = scan.spacing or (1.0, 1.0, 1.0)
    units = ("mL", "mm2") if scan.spacing else ("voxels", "pixels")
    pixels = mask.sum(axis=(1, 2), dtype=np.int64)
    areas = [float(count * row * column) if scan.spacing else int(count) for count in pixels]
    largest = int(np.argmax(pixels))
    total = int(pixels.sum())
    scan_row = case | {
        "slices": len(mask),
        "tumor_slices": int((pixels > 0).sum()),
        "volume": total * slice_gap * row * column / 1000.0 if scan.spacing else total,
        "volume_unit": units[0],
        "largest_slice": scan.numbers[largest] if total else None,
        "largest_area": areas[largest],
        "area_unit": units[1],
        **columns(quality),
        FLAGS: NOT_COMPARED if scan.flags is None else "; ".join(scan.flags),
        "notes": "; ".join(notes),
    }
    slice_rows = [
        case | {"slice": number, "area": area, "unit": units[1]}
        for number, area in zip(scan.numbers, areas, strict=True)
    ]
    return scan_row, slice_rows


def _outputs(source: Source, description: Description, output: Path, wanted: Wanted) -> list[Path]:
    paths = [output / path for kind in wanted.kinds for path in source.outputs(kind, description)]
    return [*paths, output / _overlay(source)] if wanted.overlays else paths


def _exists(path: Path) -> bool:
    """Whether the file exists. Raises OSError if it cannot exist, such as for a name that is too long."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _overlay(source: Source) -> Path:
    return source.folder / f"{source.stem}_overlay.png"
