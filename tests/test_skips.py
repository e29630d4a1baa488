"""The rules of the test session: a skip that is not allowed fails it, and so does a deprecated call in our code."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

CONFTEST = "from skips import ALLOWED_SKIPS, pytest_sessionfinish, pytest_terminal_summary\n"
CONFTEST += "ALLOWED_SKIPS['*/test_it.py::test_known*'] = 'nothing to be done'\n"
TESTS = "def test_runs(): pass\n"
KNOWN = "import pytest\n@pytest.mark.parametrize('x', [1, 2])\ndef test_known(x): pytest.skip('no moon')\n"
UNKNOWN = "import pytest\ndef test_unknown(): pytest.skip('no sun')\n"


@pytest.mark.parametrize(
    ("tests", "no_skips", "options", "status", "words"),
    [
        (TESTS + UNKNOWN, "", [], 0, ["\nskipped: test_it.py::test_unknown: no sun\n"]),
        (TESTS + KNOWN, "1", [], 0, ["\nskipped: test_it.py::test_known[2]: no moon\n"]),
        (KNOWN + UNKNOWN, "1", ["--numprocesses=1"], 1, ["ERROR: skipped", "test_it.py::test_unknown: no sun"]),
        ("import pytest\npytest.importorskip('no_such_library')\n", "1", [], 1, ["ERROR: skipped", "test_it.py: "]),
    ],
    ids=["only listed", "allowed", "not allowed, in a worker", "a library that lacks"],
)
def test_a_skip_that_is_not_on_the_list_fails_the_session(tmp_path, tests, no_skips, options, status, words):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(tests)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(Path(__file__).parent), "BRAINSEG_NO_SKIPS": no_skips}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == status, done.stdout + done.stderr
    assert all(word in done.stdout for word in words), done.stdout


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
@pytest.mark.parametrize("module", ["brainseg_jax.data.lgg", "experiments.cell", "benchmarks.speed", "test_run"])
def test_a_deprecated_call_of_ours_is_an_error(module, category):
    with pytest.raises(category, match="old"):
        warnings.warn_explicit("old", category, "file.py", 1, module=module)
    with warnings.catch_warnings(record=True) as seen:
        warnings.warn_explicit("old", category, "file.py", 1, module="flax.core")  # a warning inside the library itself
    assert len(seen) == 1
