"""Any exception of a command ends in one line, which names a file with the traceback."""

import errno
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from etils import epath

from brainseg_jax import cli, files
from brainseg_jax.compilation import keep_compiled
from brainseg_jax.data import download
from brainseg_jax.data.lgg import prepare
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.scores import read_table, write_table
from brainseg_jax.files import describe_unforeseen, explain, user_path, write_whole

COMMAND = """
import sys
from brainseg_jax import cli
if sys.argv[1:] == ["--import"]:
    import no_such_package
from absl import flags
flags.DEFINE_string("do", "", "")

def main(argv):
    if flags.FLAGS.do == "print":
        print("12 mm\\u00b2, M\\udcffller")
    if flags.FLAGS.do == "devices":
        import jax
        jax.devices()
    if flags.FLAGS.do == "interrupt":
        raise KeyboardInterrupt("interrupted; 2 of 4 scans are done")
    if flags.FLAGS.do == "raise":
        raise IndexError("index 7\\nis out of bounds")

cli.run(main)
"""


@pytest.fixture
def command(tmp_path):
    (tmp_path / "command.py").write_text(COMMAND)
    (tmp_path / "logs").mkdir()

    def run(*arguments, **environment):
        return subprocess.run(
            [sys.executable, "command.py", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(tmp_path / "logs"), **environment},
        )

    return run


@pytest.mark.parametrize(
    ("argument", "words", "in_log"),
    [
        ("--do=raise", "IndexError: index 7", "IndexError: index 7\nis out of bounds"),
        ("--import", "ModuleNotFoundError: No module named 'no_such_package'", "line 5, in <module>"),
    ],
)
def test_any_exception_is_one_line_with_the_file_of_its_traceback(command, tmp_path, argument, words, in_log):
    done = command(argument)
    assert done.returncode == 1
    pattern = rf"error: {words} \(unforeseen; its traceback is in ({tmp_path}/logs/brainseg_jax_\w+\.log)\)\n"
    found = re.fullmatch(pattern, done.stderr)
    assert found, done.stderr
    log = Path(found[1]).read_text()
    assert log.startswith("Traceback") and in_log in log


def test_an_interrupted_command_says_what_is_done(command):
    done = command("--do=interrupt")
    assert (done.returncode, done.stderr) == (130, "error: interrupted; 2 of 4 scans are done\n")


def test_without_a_folder_for_the_log_the_traceback_goes_to_stderr(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(files, "_log", [])
    monkeypatch.setattr(files, "_log_folders", lambda: [str(tmp_path / "missing")])
    try:
        raise ValueError("bad")
    except ValueError as error:
        words = describe_unforeseen(error)
    assert words == "ValueError: bad (unforeseen; its traceback is above, since no log file can be written)"
    assert capsys.readouterr().err.startswith("Traceback")


def test_the_log_goes_to_the_current_folder_where_no_other_can_be_written_to(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "_log", [])
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path / "missing"))
    assert re.search(r"its traceback is in /?.*brainseg_jax_\w+\.log", describe_unforeseen(MemoryError()))
    assert len(list(tmp_path.glob("brainseg_jax_*.log"))) == 1


def test_a_platform_that_is_not_there_is_named(command):
    done = command("--do=devices", JAX_PLATFORMS="nonsense")
    assert done.returncode == 2
    assert done.stderr.startswith("error: JAX cannot start with JAX_PLATFORMS=nonsense (Unable to initialize backend")
    assert done.stderr.endswith("unset it, or set it to cpu\n") and "Traceback" not in done.stderr


def test_an_ascii_terminal_is_no_error(command):
    done = command("--do=print", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="")
    assert (done.returncode, done.stdout, done.stderr) == (0, "12 mm\\xb2, M\\udcffller\n", "")


def test_tables_keep_names_of_any_bytes(tmp_path, monkeypatch):
    rows = [{"case": "M\u00fc\udcff", "unit": "mm\u00b2"}]
    write_table(tmp_path / "areas.csv", rows)
    assert (tmp_path / "areas.csv").read_bytes() == b"case,unit\r\nM\xc3\xbc\xff,mm\xc2\xb2\r\n"
    assert read_table(tmp_path / "areas.csv") == rows


def test_files_whose_owner_has_no_name_can_be_used(tmp_path, monkeypatch):
    """As in a container with an arbitrary user id: TFDS and Orbax ask etils for file sizes."""
    (tmp_path / "shard").write_bytes(bytes(7))
    backend = sys.modules["etils.epath.backend"]._OsPathBackend

    def unknown(number):
        raise KeyError(f"uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(KeyError):  # when etils has mended this, our change can go
        epath.Path(tmp_path / "shard").stat()
    monkeypatch.setattr(backend, "stat", backend.stat)  # put back after the test
    cli._accept_unknown_owners()
    assert epath.Path(tmp_path / "shard").stat().length == 7


@pytest.fixture
def homeless(monkeypatch):
    def unknown(number):
        raise KeyError(f"uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_home_folder(homeless, monkeypatch, tmp_path, caplog):
    cache = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        keep_compiled()
    finally:
        jax.config.update("jax_compilation_cache_dir", cache)
    assert "compiled programs are not cached: Could not determine home directory." in caplog.text
    assert user_path(str(tmp_path), "--run") == tmp_path
    with pytest.raises(InputError, match=r"^--run=~/x: the home folder for ~ is unknown"):
        user_path("~/x", "--run")
    with pytest.raises(
        InputError,
        match=r"default folder of prepared data, ~/tensorflow_datasets, .*; set another folder with --data_dir",
    ):
        prepare("phantom", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "kagglehub"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"cache of kagglehub cannot be used \(Could not .*set HOME to a folder"):
        download.download()


def test_without_a_folder_for_temporary_files(monkeypatch, tmp_path):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(files.tempfile, "gettempdir", none)
    with pytest.raises(InputError, match=r"^No usable temporary directory found in \['/tmp'\]; set TMPDIR to a folder"):
        prepare("phantom", tmp_path)


def test_paths_that_the_system_refuses(tmp_path):
    with pytest.raises(InputError, match=r"^--run=~nosuchuser/x: the home folder for ~ is unknown"):
        user_path("~nosuchuser/x", "--run")
    with pytest.raises(InputError, match=r"^--output=z+: File name too long: a name has at most 255 bytes; give a"):
        user_path("z" * 300, "--output")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"loop: Too many levels of symbolic links; give another path"):
        user_path(str(tmp_path / "loop"), "--input")
    assert user_path(str(tmp_path / "new" / "folder"), "--output") == tmp_path / "new" / "folder"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device; make room, or give another folder",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded; make room, or give another folder"),
        (
            RuntimeError("write: No space left on device; x"),
            "write: No space left on device; x; make room, or give",
        ),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied; give another folder"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system; give another folder"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "File name too long: a name has at most 255 bytes; give a"),
    ],
)
def test_room_is_asked_for_only_where_the_disk_is_full(error, words):
    assert explain(error).startswith(words)
    assert ("make room" in explain(error)) == ("make room" in words)


def test_a_name_as_long_as_the_system_allows_is_written(tmp_path):
    path = tmp_path / f"{'z' * 248}.nii.gz"
    write_whole(path, lambda part: part.write_text(part.name[-7:]))
    assert path.read_text() == ".nii.gz"
    assert list(tmp_path.iterdir()) == [path]
