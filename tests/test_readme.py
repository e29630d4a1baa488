"""What the README shows works: its Python code runs, and its losses fall."""

import re
from pathlib import Path

import jax
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_there_is_code():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: str(README[: README.index(code)].count("\n") + 1))
def test_code_runs(code, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # As for a reader, without the strict promotion of the tests.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    for value in re.findall(r"\d\.\d+", capsys.readouterr().out):
        assert 0.0 <= float(value) < 0.5  # what a loop prints at its end is a loss that fell
