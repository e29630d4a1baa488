"""`--sequences`: which file or series is which sequence, said by hand."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from brainseg_jax.errors import InputError
from brainseg_jax.scans.sequences import FLAIR, POST, PRE

_KEYS = {"flair": FLAIR, "pre": PRE, "post": POST}
REMEDY = "say by hand which is which, as in --sequences='flair=*FLAIR*,pre=*T1pre*,post=*T1post*'"

Patterns = Mapping[str, str]  # by sequence


def read_patterns(text: str) -> Patterns | None:
    """Reads a flag such as `flair=*FLAIR*,pre=*T1pre*,post=*T1post*`; None where it is empty.

    Raises:
      InputError: another key, no pattern, a key twice, or none for FLAIR.
    """
    if not text.strip():
        return None
    patterns: dict[str, str] = {}
    for part in text.split(","):
        key, equals, pattern = (piece.strip() for piece in part.partition("="))
        if key.lower() not in _KEYS or not equals or not pattern:
            raise InputError(
                f"--sequences={text}: {part!r}; give flair=PATTERN, and pre=PATTERN and post=PATTERN where they are "
                "there, with a comma between"
            )
        if _KEYS[key.lower()] in patterns:
            raise InputError(f"--sequences={text}: {key} twice; give one pattern for it")
        patterns[_KEYS[key.lower()]] = pattern
    if FLAIR not in patterns:
        raise InputError(
            f"--sequences={text}: no pattern for flair, and no other sequence can stand in for it; add one"
        )
    return patterns


def matches(pattern: str, *names: str) -> bool:
    """Whether a pattern with `*`, `?` and `[...]` fits one of the names as a whole; small and large letters alike."""
    return any(fnmatchcase(name.lower(), pattern.lower()) for name in names)


def without(pattern: str, name: str) -> str:
    """What a name says beside the letters of a pattern that it fits, so that of `P1_a` and `*_a` is `P1`."""
    parts = re.split(r"(\*|\?|\[[^\]]+\])", pattern)
    regex = "".join(
        f"({'.*' if part == '*' else '.' if part == '?' else part})" if number % 2 else re.escape(part)
        for number, part in enumerate(parts)
    )
    match = re.fullmatch(regex, name, re.IGNORECASE)
    return "".join(match.groups()).strip("_-. ") if match else name


def check_all_used(patterns: Patterns, used: set[str], place: object) -> None:
    """Raises InputError where a pattern fitted nothing."""
    if missing := [f"{key}={patterns[name]}" for key, name in _KEYS.items() if name in patterns.keys() - used]:
        raise InputError(
            f"--sequences: {', '.join(missing)} fits no file, folder or series description in {place} (masks and what "
            "is no scan aside); correct the pattern, or leave it out"
        )
