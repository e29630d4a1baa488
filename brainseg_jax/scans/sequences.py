"""The three sequences of a scan: how names tell them, and how they become the channels of the networks."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.scans.grid import Grid
from brainseg_jax.scans.intensity import to_8_bits
from brainseg_jax.scans.scan import STAND_IN

PRE, FLAIR, POST, OTHER = "pre-contrast", "FLAIR", "post-contrast", "unused"
CHANNELS = (PRE, FLAIR, POST)
ALL = ""  # in place of a sequence: of a file or folder whose name tells none
# The last word of a name; also those of BraTS.
_WORDS = {
    PRE: ("pre", "t1", "t1n"),
    FLAIR: ("flair", "t2f"),
    POST: ("post", "t1ce", "t1c", "t1gd"),
    OTHER: ("t2", "t2w"),
}
_SEQUENCE_OF = {word: sequence for sequence, words in _WORDS.items() for word in words}
_NAME = re.compile(rf"(?:(?P<case>.+)[_ -])?(?P<word>{'|'.join(_SEQUENCE_OF)})", re.IGNORECASE)


def split_name(name: str) -> tuple[str, str] | None:
    """Case and sequence that a name says, as of `P1_flair`; the case can be empty. None where it says no sequence."""
    match = _NAME.fullmatch(name)
    return match and (match["case"] or "", _SEQUENCE_OF[match["word"].lower()])


def check_found(case: str, found: Mapping[str, tuple[Path, ...]]) -> None:
    """Raises InputError where a sequence was found twice, or FLAIR not at all."""
    for sequence in CHANNELS:
        if len(found.get(sequence, ())) > 1:
            raise InputError(f"{case}: {sequence} twice: {', '.join(map(str, found[sequence]))}; keep one")
    if FLAIR not in found:
        paths = [str(path) for paths in found.values() for path in paths]
        raise InputError(
            f"{case}: no FLAIR beside {', '.join(paths)}; its name ends in {' or '.join(_WORDS[FLAIR])}, and no other "
            "sequence can stand in for it"
        )


def to_channels(grid: Grid, volumes: Mapping[str, np.ndarray], path: Path) -> tuple[np.ndarray, list[str]]:
    """Stacks the sequences of a scan; FLAIR stands in for one that is missing, as in the Kaggle set.

    Args:
      grid: of all of them.
      volumes: [I, J, K] by sequence, FLAIR at least.
      path: for messages.

    Returns:
      [S, H, W, 3] uint8, and notes on values and sequences.

    Raises:
      InputError: see `to_8_bits`.
    """
    notes, channels = [], {}
    for sequence in CHANNELS:
        if sequence not in volumes:
            continue
        try:
            channels[sequence], mapping = to_8_bits(volumes[sequence])
        except InputError as error:
            raise InputError(f"{path}: {sequence}: {error}") from None
        notes += [f"{sequence}: {mapping}"] if mapping else []
    missing = [sequence for sequence in CHANNELS if sequence not in channels]
    if missing:
        notes.append(STAND_IN if len(missing) == 2 else f"no {missing[0]}: FLAIR stands in for it")
    stacked = np.stack([channels.get(sequence, channels[FLAIR]) for sequence in CHANNELS], axis=-1)
    return np.ascontiguousarray(grid.to_slices(stacked)), notes
