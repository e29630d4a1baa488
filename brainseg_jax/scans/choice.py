"""Which of the files or series of one case is which channel; nothing is picked where two would do."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brainseg_jax.scans.patterns import REMEDY, Patterns, matches
from brainseg_jax.scans.sequences import ALL, FLAIR, POST, PRE, UNCLEAR
from brainseg_jax.scans.walk import PassedOver

MASKS = "masks and earlier results"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A file or series of a case.

    Attributes:
      label: what a user knows it by, in tables and notes.
      where: the same for messages, with its folder.
      paths: its files.
      sequence: one of `CHANNELS`, OTHER, MASK, DERIVED, UNCLEAR; None where nothing tells it.
      contrast: whether it says that it is pre- or post-contrast.
      names: what a pattern of `--sequences` is held against; where none of a case fits, `folders`.
      folders: names of folders that hold nothing else.
      note: what is odd about how its sequence was told.
    """

    label: str
    where: str
    paths: tuple[Path, ...]
    sequence: str | None
    contrast: bool = False
    names: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    note: str = ""


@dataclass
class Choice:
    """What was chosen for a case.

    Attributes:
      chosen: by channel, or at `ALL`; empty where there is nothing to segment.
      unused: what was not chosen, and why where it could have been.
      fault: why the case is refused, or empty.
    """

    chosen: dict[str, Candidate] = field(default_factory=dict)
    unused: list[tuple[Candidate, str]] = field(default_factory=list)
    fault: str = ""

    @property
    def notes(self) -> list[str]:
        """What the case is to be told of."""
        odd = [f"{one.label}: {one.note}" for one in self.chosen.values() if one.note]
        return odd + [f"{one.label} is not used{f': {why}' if why else ''}" for one, why in self.unused]

    @property
    def cells(self) -> dict[str, str]:
        """What was chosen for each channel, for the table."""
        return {FLAIR if channel == ALL else channel: one.label for channel, one in self.chosen.items()}

    def tell_unused(self, passed_over: PassedOver, *, by_hand: bool) -> None:
        """Lists what is passed over."""
        for one, _ in self.unused:
            if self.fault:
                continue  # which tells of them all
            if by_hand:
                reason = "fits no pattern of --sequences"
            else:
                beside = "not used beside FLAIR" if self.chosen else "no FLAIR beside it"
                reason = f"{one.sequence or 'tells no sequence'}, {beside}"
            passed_over[reason] += one.paths


# Those of several candidates for a channel that are to be preferred, and why in words; given FLAIR, once it is chosen.
Prefer = Callable[[str, list[Candidate], Candidate | None], tuple[list[Candidate], str]]


def choose(case: str, candidates: Sequence[Candidate], prefer: Prefer) -> Choice:
    """Chooses by what names and headers tell.

    Args:
      case: its name, for messages.
      candidates: all of the case.
      prefer: narrows down several, or leaves out what cannot be used; none of one can be left.
    """
    choice, by, reasons = Choice(), defaultdict(list), {}
    for candidate in candidates:
        by[candidate.sequence].append(candidate)
    known, silent = [*by[PRE], *by[POST], *by[UNCLEAR]], by[None]
    if not by[FLAIR]:
        if len(silent) == 1 and not known:
            choice.chosen[ALL] = silent[0]
        elif silent or known:
            choice.fault = _no_flair(case, known, silent)
    for channel in (FLAIR, PRE, POST) if by[FLAIR] else ():
        found, reason = prefer(channel, by[channel], choice.chosen.get(FLAIR))
        if len(found) > 1 and len(said := [one for one in found if one.contrast]) == 1:
            found, reason = said, f"another one says that it is {channel}"
        if len(found) > 1:
            choice.fault = (
                f"{case}: {channel} twice: {_listed(one.where for one in found)}; keep one in the folder, or {REMEDY}"
            )
            break
        if found:
            choice.chosen[channel] = found[0]
        reasons |= {one: reason for one in by[channel] if one not in found}
    choice.unused = _rest(choice, candidates, reasons)
    return choice


def choose_by_hand(case: str, candidates: Sequence[Candidate], patterns: Patterns, used: set[str]) -> Choice:
    """Chooses by the patterns of `--sequences` alone; a case of which one fits two candidates is refused."""
    choice = Choice()
    for channel, pattern in patterns.items():
        found = [one for one in candidates if matches(pattern, *one.names)]
        found = found or [one for one in candidates if matches(pattern, *one.folders)]
        used |= {channel} if found else set()
        if len(found) > 1:
            choice.fault = choice.fault or (
                f"--sequences: {pattern} fits {len(found)} of {case}, for {channel}: "
                f"{_listed(one.where for one in found)}; give a longer pattern"
            )
        elif found:
            choice.chosen[channel] = found[0]
    for one in (chosen := list(choice.chosen.values())):
        if chosen.count(one) > 1:
            choice.fault = f"--sequences: two patterns fit {one.where}; let each fit one sequence"
    if not choice.fault and choice.chosen and FLAIR not in choice.chosen:
        names = _listed(one.where for one in candidates)
        choice.fault = f"{case}: {patterns[FLAIR]} of --sequences, for FLAIR, fits none of {names}; correct the pattern"
    choice.unused = _rest(choice, candidates, {})
    return choice


def _no_flair(case: str, known: list[Candidate], silent: list[Candidate]) -> str:
    if not known:
        return (
            f"{case}: {len(silent)} series of one study, of which neither headers nor folders tell the sequence: "
            f"{_listed(one.where for one in silent)}; give the folder of one, or {REMEDY}"
        )
    told = [f"{one.where} ({one.note or one.sequence})" for one in known]
    told += [f"{one.where} (tells no sequence)" for one in silent]
    return (
        f"{case}: no FLAIR among {_listed(told)}, and no other sequence can stand in for it; add it, or, if one of "
        f"them is FLAIR, {REMEDY}"
    )


def _rest(
    choice: Choice, candidates: Sequence[Candidate], reasons: Mapping[Candidate, str]
) -> list[tuple[Candidate, str]]:
    taken = set(choice.chosen.values())
    return [(one, reasons.get(one) or one.note) for one in candidates if one not in taken]


def _listed(words: Iterable[str]) -> str:
    words = list(words)
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
