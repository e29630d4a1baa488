"""Recognizes the sequences of a scan by names, and stacks them into the channels of the networks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from brainseg_jax.errors import InputError
from brainseg_jax.scans.grid import Grid
from brainseg_jax.scans.intensity import to_8_bits
from brainseg_jax.scans.scan import STAND_IN

PRE, FLAIR, POST = "pre-contrast", "FLAIR", "post-contrast"
CHANNELS = (PRE, FLAIR, POST)
ALL = ""  # key of a file or series of unknown sequence
# Other results of `read_name`; such files are never used as FLAIR.
OTHER, MASK, DERIVED, UNCLEAR = "another sequence", "a mask or an earlier result", "a derived map", "unclear"

# Words in names, by mark. Words can be joined without a separator: T1postcontrast, FLAIRreg.
_MARKS = {
    "FLAIR": "flair t2f darkfluid",
    "T1": "t1 t1w mprage mp2rage spgr fspgr bravo vibe",
    "T1 pre": "t1n",
    "T1 post": "t1c t1ce t1gd t1gad t1km t1wce",
    "T2": "t2 t2w",
    "pre": "pre precontrast noncontrast noncon unenhanced nativ",
    "post": "post postcontrast gad gado gadolinium gd inj injection magnevist dotarem gadavist gadovist prohance "
    "multihance omniscan clariscan elucirem vueway",
    "agent": "contrast ce km cm enhanced",  # post-contrast if the name has T1 too
    "agent after": "c",  # post-contrast directly after T1
    "none": "no non without wo ohne vor sans sin",
    "other": "t2star dwi dti adc swi swip swan hemo stir bold fmri rsfmri asl dsc dce perf perfusion diffusion tof mra "
    "mrv angio mrs svs csi fieldmap localizer localiser scout survey trace tracew cbf cbv rcbv nrcbv srcbv ncbf mtt "
    "ttp tmax ktrans phase pdw ciss fiesta",
    "weak other": "pd fa md gre epi",  # may also be initials of patients
    "mask": "mask masks seg segmentation segmentations roi rois labels groundtruth annotation annotations",
    "minus": "-",  # directly after a contrast agent, as in `Gd-`
    "weak mask": "label pred probability uncertainty overlay gt",
    "derived": "bias biasfield subtraction subtracted mip minip mosaic",
    "difference": "sub minus",  # a derived map if the name has T1 too; `sub-01` is a patient
    "map": "map maps",  # a derived map if the name has T1 or T2 too
    "to": "to in on onto into",  # the words after it name the target space of a registration
    "": "reg registered coreg coregistered resliced resampled warped n4 brain bet ax axial tra trans transverse sag "
    "sagittal cor coronal 3d 2d se tse fse fs fatsat iso mni sri24 norm normalized corrected corr stripped "
    "skullstripped tr ts native tumor tumour lesion weighted with isotropic sinc nach mit avec apres",
}
_MARKS_OF = {
    word: frozenset(marks.split() if marks.startswith("T1") else [marks])
    for marks, words in _MARKS.items()
    for word in words.split()
}
_AFTER = frozenset(["post", "agent", "agent after"])
# Directly before such a word, pre or post is a time point, not a contrast state.
_EVENT = re.compile(
    r"op|operat.*|surg.*|rt|radio.*|treat.*|therap.*|tx|chemo.*|biops.*|proc|process.*|natal|mortem|resect.*"
)
# Naming schemes of TCIA archives, dcm2niix and BIDS.
_TCIA = re.compile(r"[0-9]+(?:\.[0-9]+)?-(?P<name>.+)-[0-9]{5}")
_DCM2NIIX = re.compile(r"(?P<name>.+_[0-9]{14})_[0-9]+[a-z]?")
_BIDS = re.compile(r"(?P<case>sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?)_.+")
_OTHER_SPACE = re.compile(r"(?<=[_-])space-[A-Za-z0-9]+_?")
_TOKEN = re.compile(r"[^\W_]+|\+|-(?![^\W_])")
_PATIENT = re.compile(r"[a-z]+[0-9]+(?=[a-z])")  # joined to the next word, as in `p2flair`
_B_VALUE = re.compile(r"b(?:0|50|[1-9][0-9]?[05]0)")  # of diffusion, in s/mm^2; may also be initials of patients
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SEPARATORS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class ParsedName:
    """The content of a name.

    Attributes:
      sequence: one of `CHANNELS`, OTHER, MASK, DERIVED, UNCLEAR; None if the name gives none.
      contrast: whether the name states that a T1 is pre- or post-contrast. Without a statement, T1 is pre-contrast.
      case: the name without words of sequences; may be empty.
      key: the name also without words of processing, so that all sequences of a case share it; may be empty.
    """

    sequence: str | None
    contrast: bool
    case: str
    key: str

    @property
    def alone(self) -> bool:
        """Whether the name is only a sequence, with or without a number: `FLAIR` and `12_FLAIR`, not `FLAIR_study`."""
        return self.sequence is not None and (not self.key or self.key.isdecimal())


@dataclass(frozen=True)
class _Word:
    text: str
    start: int
    token: int  # index of the token; joined words share it
    marks: frozenset[str] | None  # None if the word is unknown

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @property
    def names_agent(self) -> bool:
        """Whether the word names a contrast agent, as `Gd` and `T1c` do; `post` does not."""
        return bool((self.marks or frozenset()) & _AFTER) and self.text not in ("post", "postcontrast")


@cache
def read_name(name: str, *, description: bool = False) -> ParsedName:
    """Reads sequence and case from the words of a name, in any order: `13-T1post-77241`, `P1_flair`.

    Words inside other words do not count: `press` is not pre-contrast, but `T1postcontrast` is post-contrast.

    Args:
      name: of a file, without its suffix, or of a folder.
      description: whether it is a description in a DICOM header, which has no initials of patients.
    """
    plain = re.sub("(?i)dark[ _-]fluid", "darkfluid", re.sub("(?i)w/o", "without ", _OTHER_SPACE.sub("", name)))
    for pattern in (_TCIA, _DCM2NIIX):
        if match := pattern.fullmatch(plain):
            plain = match["name"]
    words = _words(plain)
    sequence, contrast, used = _decide(words, description)
    if sequence is None:
        return ParsedName(None, False, name, name)
    neutral = {word for word in words if word.marks == frozenset([""])}
    case, key = _without(plain, used), _SEPARATORS.sub("_", _without(plain, used | neutral)).casefold()
    if match := _BIDS.fullmatch(name):
        case = key = match["case"]
    return ParsedName(sequence, contrast, case, key)


def _words(name: str) -> list[_Word]:
    """Splits a name into words, in order; also splits joined words."""
    words: list[_Word] = []
    for number, token in enumerate(_TOKEN.finditer(name)):
        if token[0] == "-" and not (words and words[-1].names_agent and token.start() == words[-1].end):
            continue  # a separator
        pieces = _pieces(token[0].lower(), inside=False) or _pieces_after_patient(token[0].lower())
        if pieces is None:
            humps = [hump for hump in _HUMP.split(token[0]) if hump]
            pieces = tuple(piece for hump in humps for piece in _pieces(hump.lower(), inside=False) or (hump.lower(),))
        start = token.start()
        for piece in pieces:
            marks = _MARKS_OF.get(piece)
            if piece == "+":
                marks = frozenset(["agent after"])
            elif piece == "2" and len(pieces) > 1:
                marks = frozenset(["to"])
            elif _B_VALUE.fullmatch(piece):
                marks = frozenset(["weak other"])
            words.append(_Word(piece, start, number, marks))
            start += len(piece)
    return words


@cache
def _pieces(token: str, *, inside: bool) -> tuple[str, ...] | None:
    """Splits a token into known words and numbers; None if that is not possible."""
    if not token or token in _MARKS_OF:
        return (token,) if token else ()
    for length in range(len(token), 0, -1):
        head, tail = token[:length], token[length:]
        if (head in _MARKS_OF and length > 1) or (head.isdecimal() and not tail[:1].isdecimal()):
            # A number directly after t1 or t2 makes it another word, such as T12.
            if head in _MARKS_OF and head[-1].isdecimal() and tail[:1].isdecimal() and not tail[1:2].isalpha():
                continue
            if (rest := _pieces(tail, inside=True)) is not None:
                return head, *rest
    return None


def _pieces_after_patient(token: str) -> tuple[str, ...] | None:
    """As `_pieces`, after letters and a number; None if all words could also be initials."""
    if not (match := _PATIENT.match(token)) or (rest := _pieces(token[match.end() :], inside=True)) is None:
        return None
    weak = {"weak other", "weak mask", "agent after", ""}
    return None if all(_MARKS_OF.get(piece, weak) <= weak for piece in rest) else (match[0], *rest)


def _decide(words: list[_Word], description: bool) -> tuple[str | None, bool, set[_Word]]:
    """Sequence, whether contrast is stated, and the words that state them."""
    by_mark: dict[str, set[_Word]] = {}
    after_to = False  # after a word such as `to`
    for index, word in enumerate(words):
        marks, following = word.marks or frozenset(), words[index + 1] if index + 1 < len(words) else None
        if after_to := after_to or ("to" in marks and bool(by_mark.keys() & {"FLAIR", "T1", "T2"})):
            by_mark.setdefault("after to", set()).update({word} if marks else ())
            continue
        if marks <= {"pre", "post"} and following and _EVENT.fullmatch(following.text):
            continue
        before = next((other for other in reversed(words[:index]) if other.text not in ("i", "v", "iv")), None)
        negated = before and "none" in (before.marks or ()) and marks & _AFTER
        if negated and not ("agent after" in marks and "T1" not in by_mark):
            assert before is not None  # it is the word that negates
            marks = frozenset(["pre"])
            by_mark.setdefault("pre", set()).add(before)
        elif word.names_agent and "T1" not in marks and before and before.text == "pre":
            marks = frozenset(["pre"])
        elif word.names_agent and following and "minus" in (following.marks or ()):
            marks = marks - _AFTER | {"pre"}
            by_mark.setdefault("pre", set()).add(following)
        elif "agent after" in marks:
            is_after_t1 = before and (before.marks or frozenset()) & {"T1", "agent after"}
            marks = frozenset(["agent"] if is_after_t1 else ())
        elif "difference" in marks:
            is_before_t1 = following and "T1" in (following.marks or ())
            is_patient = following and following.text[:1].isdecimal()
            marks = frozenset(
                ["derived"] if is_before_t1 or (by_mark.keys() & {"T1", "post"} and not is_patient) else ()
            )
        elif marks & {"weak other", "weak mask"} and not description:
            marks = marks if all(other.marks == frozenset([""]) for other in words[index + 1 :]) else frozenset()
        for mark in marks - {"", "none", "to", "minus"}:
            by_mark.setdefault(mark, set()).add(word)
    sequence, contrast, relevant = _decide_by(by_mark)
    return sequence, contrast, set().union(*(by_mark.get(mark, ()) for mark in (*relevant, "after to")))


def _decide_by(by_mark: Mapping[str, set[_Word]]) -> tuple[str | None, bool, tuple[str, ...]]:
    """Sequence, whether contrast is stated, and the relevant marks."""
    imaging = ("FLAIR", "T1", "T2", "pre", "post", "other", "weak other")
    if by_mark.keys() & {"mask", "weak mask"}:
        return MASK, False, (*imaging, "mask", "weak mask")
    if "derived" in by_mark or ("map" in by_mark and by_mark.keys() & {"T1", "T2"}):
        return DERIVED, False, (*imaging, "derived", "map")
    if "other" in by_mark:
        return UNCLEAR if "FLAIR" in by_mark else OTHER, False, imaging
    if "T1" in by_mark and by_mark.keys() & {"FLAIR", "T2"}:
        return UNCLEAR, False, (*imaging, "agent")
    if "FLAIR" in by_mark:
        return FLAIR, False, imaging[:5]
    if "T1" in by_mark:
        after, before = by_mark.get("post", set()) | by_mark.get("agent", set()), by_mark.get("pre", set())
        tokens = {word.token for word in by_mark["T1"]}
        close = [{word for word in group if word.token in tokens} for group in (before, after)]
        before, after = close if any(close) else (before, after)
        sequence = UNCLEAR if before and after else POST if after else PRE
        return sequence, bool(before or after), ("T1", "pre", "post", "agent")
    if "T2" in by_mark:
        return OTHER, False, imaging
    if by_mark.keys() & {"pre", "post"}:
        both = {"pre", "post"} <= by_mark.keys()
        return UNCLEAR if both else PRE if "pre" in by_mark else POST, True, ("pre", "post", "agent")
    return (OTHER, False, imaging) if "weak other" in by_mark else (None, False, ())


def _without(name: str, words: set[_Word]) -> str:
    """The name without these words and without repeated separators."""
    letters = list(name)
    for word in words:
        letters[word.start : word.start + len(word.text)] = [""] * len(word.text)
    text = "".join(letters)
    return re.sub(r"([\W_])[\W_]+", r"\1", text).strip("_-. +")


def to_channels(grid: Grid, volumes: Mapping[str, np.ndarray], path: Path) -> tuple[np.ndarray, list[str]]:
    """Stacks the sequences of a scan; FLAIR replaces a missing one, as in the Kaggle set.

    Args:
      grid: the common grid.
      volumes: [I, J, K] by sequence, with FLAIR.
      path: for messages.

    Returns:
      [S, H, W, 3] uint8, and notes on values and sequences.

    Raises:
      InputError: see `to_8_bits`.
    """
    notes, missing = [], [sequence for sequence in CHANNELS if sequence not in volumes]
    voxels = np.empty((*grid.to_slices(volumes[FLAIR]).shape, len(CHANNELS)), np.uint8)
    for sequence in CHANNELS:
        if sequence in missing:
            continue
        try:
            channel, mapping = to_8_bits(volumes[sequence])
        except InputError as error:
            raise InputError(f"{path}: {sequence}: {error}") from None
        notes += [f"{sequence}: {mapping}"] if mapping else []
        for index, name in enumerate(CHANNELS):
            if name == sequence or (sequence == FLAIR and name in missing):
                voxels[..., index] = grid.to_slices(channel)
    if missing:
        notes.append(STAND_IN if len(missing) == 2 else f"no {missing[0]}: it is replaced by FLAIR")
    return voxels, notes
