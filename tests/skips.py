"""Lists skipped tests at the end of a session. With BRAINSEG_NO_SKIPS a skip that is not allowed fails the session.

`conftest.py` imports the hooks from here.
"""

import os
from fnmatch import fnmatch

import pytest

# Test id: why it may be skipped there. Everything else runs wherever all the extras are installed.
ALLOWED_SKIPS: dict[str, str] = {}
if os.geteuid() != 0:
    ALLOWED_SKIPS["*/test_faults.py::test_a_full_disk"] = "mounting a small file system needs root"
    ALLOWED_SKIPS["*/test_checkpoint.py::test_a_full_disk_*"] = "mounting a small file system needs root"
if "BRAINSEG_LGG" not in os.environ:
    ALLOWED_SKIPS["*::test_real_patients_*"] = "the real patients do not lie beside every checkout"


def skipped(reporter: pytest.TerminalReporter) -> dict[str, str]:
    """The reason of each skipped test or file; xdist workers report a file once each."""
    reports = reporter.stats.get("skipped", [])
    return {r.nodeid: r.longrepr[2] if isinstance(r.longrepr, tuple) else str(r.longrepr) for r in reports}


def forbidden(reporter: pytest.TerminalReporter) -> dict[str, str]:
    """The skips that fail the session."""
    if not os.environ.get("BRAINSEG_NO_SKIPS"):
        return {}
    allowed = lambda test: any(fnmatch(f"/{test}", pattern) for pattern in ALLOWED_SKIPS)
    return {test: reason for test, reason in skipped(reporter).items() if not allowed(test)}


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Sets the exit status; an xdist worker leaves this to its main session."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    good = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if reporter and good and not hasattr(session.config, "workerinput") and forbidden(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists each skipped test with its reason."""
    bad = forbidden(terminalreporter)
    for test, reason in skipped(terminalreporter).items():
        words = "ERROR: skipped, which BRAINSEG_NO_SKIPS forbids" if test in bad else "skipped"
        terminalreporter.write_line(f"{words}: {test}: {reason.removeprefix('Skipped: ')}")
