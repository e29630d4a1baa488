"""What all tests share: eight fake devices, strict promotion, and data that one worker writes per session."""

import os

# Read when jax starts its backend, so it must be set before the first import of jax. LLVM's optimizations take three
# quarters of the time of a compilation, and gain nothing in programs this small; XLA's own passes stay as they are.
# Flags that are set already are kept: so CI runs the slow tests as a user's programs are compiled.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS") or "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from filelock import FileLock
from ml_collections import ConfigDict
from skips import pytest_sessionfinish, pytest_terminal_summary  # noqa: F401

from brainseg_jax.config import default_config
from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.lgg import prepare
from brainseg_jax.data.load_cohort import load_cohort
from brainseg_jax.data.phantom import write_phantom
from brainseg_jax.prediction.job import predict
from brainseg_jax.prediction.results import Wanted
from brainseg_jax.prediction.stream import Outcome
from brainseg_jax.training.loop import train

# Many tests start the same small run: it is compiled once a session, in their subprocesses and other workers too.
# Where the variable is set already, the programs are kept from session to session.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def xla_flags(devices: int) -> str:
    """`XLA_FLAGS` for a process with this number of fake devices and the compiler options of this process."""
    return os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")


@pytest.fixture(scope="module")
def optax_promotion():
    """For tests of optax or bfloat16 batch norm, which need implicit promotion; our code does not."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Returns the folder `name`. The first worker creates it and calls `make(folder)`; the others wait.

    Tests must not change its content. If `make` fails, the next caller tries again.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # that of the session, above the folders of its workers
    folder, done = root / "shared" / name, root / "shared" / f"{name}.done"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_name(f"{name}.lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `kaggle_3m` folder with 8 synthetic patients."""
    return once(tmp_path_factory, "phantom", lambda folder: write_phantom(folder, patients=8, seed=0)) / "kaggle_3m"


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same patients as a prepared dataset."""
    data_dir = once(tmp_path_factory, "prepared", lambda folder: prepare("phantom:8:0", folder, progress=False))
    return prepare("phantom:8:0", data_dir, progress=False)


@pytest.fixture(scope="session")
def cohort(dataset_folder: Path) -> Cohort:
    """The same patients in memory, at 64 pixels."""
    return load_cohort(dataset_folder, image_size=64, normalization="volume_zscore")


@pytest.fixture(scope="session")
def trained_run(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ConfigDict]:
    """The folder of a short run on these patients, which tests must not change, and its config."""
    config = default_config("quick")
    config.update({"model": {"features": 2, "depth": 2}, "data": {"image_size": 32}, "eval": {"batch_size": 24}})
    config.update({"train": {"epochs": 3, "batch_size": 8, "steps_per_epoch": 4}, "optimizer": {"ema_decay": 0.9}})
    config.eval.choose = True
    config.data.dir, config.data.source = str(dataset_folder.parents[2]), "phantom:8:0"
    with jax.numpy_dtype_promotion("standard"):
        folder = once(tmp_path_factory, "trained", lambda folder: train(config, folder / "run"))
    return folder / "run", config


@pytest.fixture(scope="session")
def case(phantom_folder: Path, trained_run: tuple[Path, ConfigDict]) -> Path:
    """The folder of a patient in whom that run finds a part of the tumor."""
    split = json.loads((trained_run[0] / "split.json").read_text())
    return phantom_folder / split["test"][0]


def call_predict(
    run: Path | list[Path],
    scans: Path,
    output: Path,
    *,
    wanted: Wanted | None = None,
    mirror: bool | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Calls `predict` as its command does without flags."""
    runs = run if isinstance(run, list) else [run]
    return predict(runs, scans, output, wanted=wanted or Wanted(), mirror=mirror, overwrite=overwrite)


@pytest.fixture(scope="session")
def lgg_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real patients, from the folder in the environment variable BRAINSEG_LGG.

    This is a `kaggle_3m` folder, or a folder with `data.csv` and one archive `<case>.tar.xz` per patient. The
    fixture unpacks the first three archives.
    """
    if "BRAINSEG_LGG" not in os.environ:
        pytest.skip("BRAINSEG_LGG does not name a folder with real patients")
    folder = Path(os.environ["BRAINSEG_LGG"])
    archives = sorted(folder.glob("*.tar.xz"))[:3]
    if not archives:
        return folder
    unpacked = tmp_path_factory.mktemp("lgg") / "kaggle_3m"
    for archive in archives:
        shutil.unpack_archive(archive, unpacked, filter="data")
    shutil.copy(folder / "data.csv", unpacked)
    return unpacked


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path) -> None:
    """Fills the remaining space of `small_disk` with a file `ballast`."""
    with (disk / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
