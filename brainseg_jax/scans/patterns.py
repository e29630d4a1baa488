"""Parses `--sequences`, which assigns files or series to sequences by name patterns."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from brainseg_jax.errors import InputError
from brainseg_jax.scans.sequences import FLAIR, POST, PRE

_KEYS = {"flair": FLAIR, "pre": PRE, "post": POST}
REMEDY = "assign them by hand, as in --sequences='flair=*FLAIR*,pre=*T1pre*,post=*T1post*'"

Patterns = Mapping[str, str]  # by sequence


def read_patterns(text: str) -> Patterns | None:
    """Parses a flag such as `flair=*FLAIR*,pre=*T1pre*,post=*T1post*`; None if it is empty.

    Raises:
      InputError: an unknown or repeated key, an empty pattern, or no pattern for FLAIR.
    """
    if not text.strip():
        return None
    patterns: dict[str, str] = {}
    for part in text.split(","):
        key, equals, pattern = (piece.strip() for piece in part.partition("="))
        if key.lower() not in _KEYS or not equals or not pattern:
            raise InputError(
                f"--sequences={text}: {part!r}; give flair=PATTERN and optionally pre=PATTERN and post=PATTERN, "
                "separated by commas"
            )
        if _KEYS[key.lower()] in patterns:
            raise InputError(f"--sequences={text}: {key} twice; give one pattern for it")
        patterns[_KEYS[key.lower()]] = pattern
    if FLAIR not in patterns:
        raise InputError(f"--sequences={text}: no pattern for flair, and no other sequence can replace it; add one")
    return patterns


def matches(pattern: str, *names: str) -> bool:
    """Whether a pattern with `*`, `?` and `[...]` matches one of the whole names; ignores case."""
    return any(fnmatchcase(name.lower(), pattern.lower()) for name in names)


def without(pattern: str, name: str) -> str:
    """The text of a name that the wildcards of a pattern match: `P1` for the name `P1_a` and the pattern `*_a`."""
    parts = re.split(r"(\*|\?|\[[^\]]+\])", pattern)
    regex = "".join(
        f"({'.*' if part == '*' else '.' if part == '?' else part})" if number % 2 else re.escape(part)
        for number, part in enumerate(parts)
    )
    match = re.fullmatch(regex, name, re.IGNORECASE)
    return "".join(match.groups()).strip("_-. ") if match else name


def check_all_used(patterns: Patterns, used: set[str], path: object) -> None:
    """Raises InputError if a pattern fits nothing."""
    if missing := [f"{key}={patterns[name]}" for key, name in _KEYS.items() if name in patterns.keys() - used]:
        raise InputError(
            f"--sequences: {', '.join(missing)} fits no file, folder or series description in {path} (except masks "
            "and files that are not scans); correct the pattern, or remove it"
        )
