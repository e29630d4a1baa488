"""Shares of the work, `--shard=i/n`: each of n processes takes every n-th item, and a merge joins what they leave."""

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from brainseg_jax.errors import InputError

FOLDER = "shards"  # below the output: what shares leave for the merge
T = TypeVar("T")


class Shard(NamedTuple):
    """The share `index`, from 0, of `count`."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.index}-of-{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the work."""
        return self.count == 1

    def of(self, items: Sequence[T]) -> list[T]:
        """Every `count`-th item, from the item `index` on. The shares are disjoint and cover all items."""
        return list(items[self.index :: self.count])


WHOLE = Shard(0, 1)


def parse_shard(text: str, flag: str = "--shard") -> Shard:
    """The share that a flag names as `i/n`, with i from 0 to n - 1.

    Raises:
      InputError: it is anything else.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise InputError(f"{flag}={text}: give i/n with i from 0 to n - 1, for example 0/4")
    return Shard(int(match[1]), int(match[2]))
