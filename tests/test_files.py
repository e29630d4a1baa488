import pytest

from brainseg_jax.files import write_whole


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "split.json"

    def first(part):
        part.write_text("first")
        write_whole(path, lambda other: other.write_text("second"))  # begins and ends before the first renames
        assert path.read_text() == "second"

    write_whole(path, first)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("old")

    def fails(part):
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fails)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
