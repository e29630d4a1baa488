"""Damaged files of every kind in predict, evaluate and prepare; `python tests/fuzz.py` runs thousands of trials."""

import pytest
from fuzz import KINDS, fuzz


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_give_messages(kind, tmp_path):
    outcome = fuzz(kind, count=40, seed=1, keep=tmp_path)
    assert outcome.trials == 40
    assert not outcome.failures, f"seed 1; the files and tracebacks: {outcome.kept}"
    assert outcome.read < 40  # most of them are damaged enough to be refused


@pytest.mark.parametrize(("kind", "seed", "number"), [("dicom", 3, 131)])
def test_what_was_found_once_stays_found(kind, seed, number, tmp_path):
    """More pixels than the header declares."""
    assert fuzz(kind, count=1, seed=seed, keep=tmp_path, only=number).trials == 1


def test_the_fuzzer_finds_what_it_looks_for(tmp_path, monkeypatch):
    """An exception, a lost neighbor, memory: each is a failure, and its files are kept."""
    import fuzz as module

    find = module.find_scans

    def raises(folder):
        raise KeyError("Rows")

    def takes(folder):
        assert len(bytes(range(256)) * 2**21) == 2**29
        return find(folder)

    for broken, words in {
        raises: "KeyError in -: #",
        takes: "Broken in -: memory: # MB",
        (lambda folder: []): "Broken in -: lost neighbor: not found",
    }.items():
        monkeypatch.setattr(module, "find_scans", broken)
        outcome = fuzz("png", count=2, seed=0, keep=tmp_path / "kept")
        assert dict(outcome.failures) == {words: 2}
        (kept,) = outcome.kept.values()
        assert (kept / "traceback.txt").exists() and list((kept / "scans" / "bad").iterdir())
