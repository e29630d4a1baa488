"""Shards are disjoint, cover all items, and have the names that a user gives."""

import pytest

from brainseg_jax.errors import InputError
from brainseg_jax.shards import ALL, Shard, parse_shard


def test_shards_are_every_nth_item():
    items = ["a", "b", "c", "d", "e"]
    assert [Shard(index, 3).of(items) for index in range(3)] == [["a", "d"], ["b", "e"], ["c"]]
    assert Shard(3, 4).of(items[:2]) == []  # more shards than items
    assert ALL.of(items) == items and ALL.is_whole and not Shard(0, 2).is_whole


def test_a_shard_is_read_and_written_alike():
    assert parse_shard("3/12") == Shard(3, 12) and str(parse_shard("3/12")) == "3/12"
    assert parse_shard("3/12").name == "3-of-12" and parse_shard("0/1").is_whole


@pytest.mark.parametrize(
    "text", ["", "1", "2/2", "3/2", "0/0", "-1/2", "1/2/3", "1 / 2", "0.0/1", "a/b", "\u0663/9", "1/2\n"]
)
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(InputError) as refused:
        parse_shard(text, "--cell")
    assert str(refused.value) == f"--cell={text}: give i/n with i from 0 to n - 1, for example 0/4"
