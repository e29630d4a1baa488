import os
from pathlib import Path

import pytest

from brainseg_jax.files import write_together, write_whole


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


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_files_that_cannot_get_their_names_leave_all_old_ones(tmp_path, monkeypatch, links):
    """Renaming the third of three files fails, after the first two are renamed."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError("no links here")))
    first, new, last, gone = (tmp_path / name for name in ("first", "new", "last", "gone"))
    first.write_text("old")
    gone.write_text("old")
    last.symlink_to("elsewhere")
    replace = Path.replace

    def fails(self, target):
        if target == last and self.name.startswith(".part-"):
            raise OSError("no")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    writers = {path: lambda part: part.write_text("new") for path in (first, new, last)}
    with pytest.raises(OSError, match=r"^no$"):
        write_together(writers, remove=[gone])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "gone", "last"]
    assert (first.read_text(), gone.read_text(), os.readlink(last)) == ("old", "old", "elsewhere")
    monkeypatch.setattr(Path, "replace", replace)
    write_together(writers, remove=[gone])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("first", "new", "last"), "new"
    )
    assert not last.is_symlink()


def test_a_folder_in_the_place_of_a_file_changes_nothing(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError, match=r"directory|permitted"):
        write_together({tmp_path / name: lambda part: part.write_text("new") for name in "ab"})
    assert (tmp_path / "a").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
