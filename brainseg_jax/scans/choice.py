"""Chooses a file or series of a case for each channel; refuses the case if two fit."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from brainseg_jax.scans.patterns import REMEDY, Patterns, matches
from brainseg_jax.scans.sequences import ALL, FLAIR, POST, PRE, UNCLEAR
from brainseg_jax.scans.walk import PassedOver

MASKS = "masks and earlier results"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A file or series of a case.

    Attributes:
      label: short name for tables and notes.
      location: name with its folder, for messages.
      paths: its files.
      sequence: one of `CHANNELS`, OTHER, MASK, DERIVED, UNCLEAR; None if unknown.
      contrast: whether name or header state pre- or post-contrast explicitly.
      names: texts that patterns of `--sequences` are matched against.
      folders: names of folders that hold no other candidate; matched if no name of the case fits.
      note: anything unusual about how the sequence was recognized.
    """

    label: str
    location: str
    paths: tuple[Path, ...]
    sequence: str | None
    contrast: bool = False
    names: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    note: str = ""


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


@dataclass
class Choice(Generic[AnyCandidate]):
    """The chosen candidates of a case.

    Attributes:
      chosen: candidates by channel, or a single one at `ALL`; empty if there is nothing to segment.
      unused: the other candidates, each with the reason; "" if there is none to report.
      fault: why the case is refused; "" if it is not.
    """

    chosen: dict[str, AnyCandidate] = field(default_factory=dict)
    unused: list[tuple[AnyCandidate, str]] = field(default_factory=list)
    fault: str = ""

    @property
    def notes(self) -> list[str]:
        """Notes on chosen and unused candidates."""
        notes = [f"{candidate.label}: {candidate.note}" for candidate in self.chosen.values() if candidate.note]
        return notes + [
            f"{candidate.label} is not used{f': {reason}' if reason else ''}" for candidate, reason in self.unused
        ]

    @property
    def cells(self) -> dict[str, str]:
        """The label of each channel's candidate, for the table."""
        return {FLAIR if channel == ALL else channel: candidate.label for channel, candidate in self.chosen.items()}

    def report_unused(self, passed_over: PassedOver, *, by_patterns: bool) -> None:
        """Adds the unused files to `passed_over`, each with a reason."""
        for candidate, _ in self.unused:
            if self.fault:
                continue  # the fault lists all candidates
            if by_patterns:
                reason = "fits no pattern of --sequences"
            else:
                context = "not used beside FLAIR" if self.chosen else "no FLAIR beside it"
                reason = f"{candidate.sequence or 'unknown sequence'}, {context}"
            passed_over[reason] += candidate.paths


# From a channel, its candidates and the chosen FLAIR (or None): the preferred candidates, and the reason in words.
Prefer = Callable[[str, list[AnyCandidate], AnyCandidate | None], tuple[list[AnyCandidate], str]]


def choose(case: str, candidates: Sequence[AnyCandidate], prefer: Prefer[AnyCandidate]) -> Choice[AnyCandidate]:
    """Chooses by the sequences that names and headers give.

    Args:
      case: its name, for messages.
      candidates: all of the case.
      prefer: selects among several candidates for a channel, or drops unusable ones. It may return an empty list.
    """
    choice: Choice[AnyCandidate] = Choice()
    by_sequence: dict[str | None, list[AnyCandidate]] = defaultdict(list)
    reasons: dict[AnyCandidate, str] = {}
    for candidate in candidates:
        by_sequence[candidate.sequence].append(candidate)
    others, unnamed = [*by_sequence[PRE], *by_sequence[POST], *by_sequence[UNCLEAR]], by_sequence[None]
    if not by_sequence[FLAIR]:
        if len(unnamed) == 1 and not others:
            choice.chosen[ALL] = unnamed[0]
        elif unnamed or others:
            choice.fault = _no_flair(case, others, unnamed)
    for channel in (FLAIR, PRE, POST) if by_sequence[FLAIR] else ():
        preferred, reason = prefer(channel, by_sequence[channel], choice.chosen.get(FLAIR))
        if len(preferred) > 1 and len(explicit := [candidate for candidate in preferred if candidate.contrast]) == 1:
            preferred, reason = explicit, f"another one is named {channel}"
        if len(preferred) > 1:
            locations = _listed(candidate.location for candidate in preferred)
            choice.fault = f"{case}: {channel} twice: {locations}; keep one in the folder, or {REMEDY}"
            break
        if preferred:
            choice.chosen[channel] = preferred[0]
        reasons |= {candidate: reason for candidate in by_sequence[channel] if candidate not in preferred}
    choice.unused = _unused(choice, candidates, reasons)
    return choice


def choose_by_patterns(
    case: str, candidates: Sequence[AnyCandidate], patterns: Patterns, used: set[str]
) -> Choice[AnyCandidate]:
    """Chooses by the patterns of `--sequences` alone; refuses the case if a pattern fits two candidates."""
    choice: Choice[AnyCandidate] = Choice()
    for channel, pattern in patterns.items():
        fitting = [candidate for candidate in candidates if matches(pattern, *candidate.names)]
        fitting = fitting or [candidate for candidate in candidates if matches(pattern, *candidate.folders)]
        used |= {channel} if fitting else set()
        if len(fitting) > 1:
            choice.fault = choice.fault or (
                f"--sequences: {pattern} fits {len(fitting)} of {case}, for {channel}: "
                f"{_listed(candidate.location for candidate in fitting)}; give a longer pattern"
            )
        elif fitting:
            choice.chosen[channel] = fitting[0]
    for candidate in (chosen := list(choice.chosen.values())):
        if chosen.count(candidate) > 1:
            choice.fault = f"--sequences: two patterns fit {candidate.location}; let each fit one sequence"
    if not choice.fault and choice.chosen and FLAIR not in choice.chosen:
        names = _listed(candidate.location for candidate in candidates)
        choice.fault = f"{case}: {patterns[FLAIR]} of --sequences, for FLAIR, fits none of {names}; correct the pattern"
    choice.unused = _unused(choice, candidates, {})
    return choice


def _no_flair(case: str, others: Sequence[Candidate], unnamed: Sequence[Candidate]) -> str:
    if not others:
        return (
            f"{case}: {len(unnamed)} series of one study, and neither headers nor folders name their sequences: "
            f"{_listed(candidate.location for candidate in unnamed)}; give the folder of one, or {REMEDY}"
        )
    listed = [f"{candidate.location} ({candidate.note or candidate.sequence})" for candidate in others]
    listed += [f"{candidate.location} (unknown sequence)" for candidate in unnamed]
    return (
        f"{case}: no FLAIR among {_listed(listed)}, and no other sequence can replace it; add it, or, if one of "
        f"them is FLAIR, {REMEDY}"
    )


def _unused(
    choice: Choice[AnyCandidate], candidates: Sequence[AnyCandidate], reasons: Mapping[AnyCandidate, str]
) -> list[tuple[AnyCandidate, str]]:
    chosen = set(choice.chosen.values())
    return [
        (candidate, reasons.get(candidate) or candidate.note) for candidate in candidates if candidate not in chosen
    ]


def _listed(words: Iterable[str]) -> str:
    words = list(words)
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
