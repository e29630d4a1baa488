"""Training processes with faults from outside: each reports the fault, loses no more than it must, and resumes.

The tests compare the files of a run after a fault and a restart with an undisturbed run, byte for byte.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import fill, once, xla_flags

from brainseg_jax.config import default_config
from brainseg_jax.errors import TrainingStopped
from brainseg_jax.runs.checkpoint import Checkpoints
from brainseg_jax.training import loop as story

pytestmark = pytest.mark.usefixtures("optax_promotion")
CONFIG = Path(__file__).parents[1] / "configs" / "unet_dice.py"
STEPS, EPOCHS = 5, 12
SETTINGS = {
    "model": {"features": 2, "depth": 2},
    "data": {"image_size": 32, "source": "phantom:8:0"},
    # All that a run remembers is in play: moments, moving average, a plateau that lowers the rate.
    "optimizer": {
        "schedule": "plateau",
        "plateau_patience": 1,
        "plateau_factor": 0.5,
        "ema_decay": 0.9,
    },
    "train": {"epochs": EPOCHS, "batch_size": 8, "steps_per_epoch": STEPS, "log_every": 2, "early_stop_patience": 0},
    "eval": {"batch_size": 24, "threshold": 0.6},
}
# A moment of `killed_run`, and seconds after it; the first two starts find nothing saved.
KILLS = [
    ("before the first step", 0.0),
    ("in the second epoch", 0.0),
    ("before the second validation", 0.0),
    ("after the second validation", 0.0),
    ("with a row and no checkpoint", 0.0),
    ("in the second save", 0.0),
    ("in the second save", 0.01),
    ("in the second save", 0.03),
    ("in the second save", 0.1),
    ("before the results", 0.0),
    ("in the results", 0.0),
]
MAIN = ("-m", "brainseg_jax.main")
SAVED = re.compile(r"step (\d+) is saved in .*checkpoints; the same command resumes")


class Training:
    """A process of `python -m brainseg_jax.main`, or of another `program`; its console is read line by line."""

    def __init__(self, dataset_folder: Path, workdir: Path, *arguments: str, devices: int = 1, program=MAIN):
        flat = [f"--config.{s}.{k}={v}" for s, keys in SETTINGS.items() for k, v in keys.items()]
        command = [sys.executable, *program, f"--config={CONFIG}:quick", f"--workdir={workdir}", *flat]
        command += [f"--config.data.dir={dataset_folder.parents[2]}", *arguments]
        environment = {**os.environ, "XLA_FLAGS": xla_flags(devices)}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.console = ""

    def wait_for(self, words: str) -> None:
        for line in self.process.stdout:
            self.console += line
            if words in line:
                return
        raise AssertionError(f"{words!r} was not said:\n{self.console}")

    def end(self) -> int:
        self.console += self.process.stdout.read()
        assert "Traceback" not in self.console, self.console
        return self.process.wait()


def files_of(workdir):
    """SHA-256 of each file of a run, except the checkpoints and TensorBoard's files, which contain times."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in workdir.iterdir() if p.is_file()}


def arrays_of(workdir):
    """Every array of every checkpoint, read by Orbax only."""
    folders = sorted(p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    with ocp.StandardCheckpointer() as reader:
        return {p.name: jax.tree.map(np.asarray, reader.restore(p / "state")) for p in folders}


def assert_same_run(workdir, other):
    assert files_of(workdir) == files_of(other)
    assert (workdir / "results.json").exists()
    jax.tree.map(np.testing.assert_array_equal, arrays_of(workdir), arrays_of(other))


def losses_of(workdir):
    return [json.loads(line)["train_loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(dataset_folder, tmp_path_factory):
    def run(folder):
        training = Training(dataset_folder, folder / "run")
        assert training.end() == 0, training.console

    workdir = once(tmp_path_factory, "undisturbed", run) / "run"
    rates = [json.loads(line)["learning_rate"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(rates) == EPOCHS and rates[-1] < rates[0]
    return workdir


@pytest.fixture(scope="module")
def stopped(dataset_folder, tmp_path_factory):
    """A run ended by SIGTERM after a few epochs."""

    def run(folder):
        training = Training(dataset_folder, folder / "run")
        training.wait_for("epoch 3/")
        training.process.send_signal(signal.SIGTERM)
        assert training.end() == 75, training.console
        assert "SIGTERM: saving after this step" in training.console and "stopped by SIGTERM" in training.console
        step = int(SAVED.search(training.console)[1])
        assert (folder / "run" / "checkpoints" / str(step)).is_dir() and step >= 3 * STEPS
        assert not (folder / "run" / "results.json").exists()

    return once(tmp_path_factory, "stopped", run) / "run"


def copy_of(workdir, tmp_path):
    return Path(shutil.copytree(workdir, tmp_path / "run"))


def newest(workdir):
    return max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def array_file(step_folder):
    """The largest file with numbers; Orbax and zarr write descriptions next to them."""
    return max((step_folder / "state").glob("**/d/*"), key=lambda p: p.stat().st_size)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(undisturbed, dataset_folder, tmp_path):
    assert Training(dataset_folder, tmp_path / "run").end() == 0
    assert_same_run(tmp_path / "run", undisturbed)


def test_stopped_and_started_again_is_the_same_run(stopped, undisturbed, dataset_folder, tmp_path):
    workdir = copy_of(stopped, tmp_path)
    training = Training(dataset_folder, workdir)
    assert training.end() == 0, training.console
    assert "resuming from step" in training.console
    assert_same_run(workdir, undisturbed)


def test_a_second_signal_ends_at_once(dataset_folder, tmp_path):
    training = Training(dataset_folder, tmp_path / "run")
    training.wait_for("patients to train")  # the step is compiled now
    training.process.send_signal(signal.SIGINT)
    training.wait_for("SIGINT: saving after this step")
    training.process.send_signal(signal.SIGTERM)
    assert training.end() == 128 + signal.SIGTERM
    assert "is saved" not in training.console


@pytest.mark.slow
def test_kill_storm(undisturbed, dataset_folder, tmp_path):
    """Repeats SIGKILL at every kind of moment of a run."""
    workdir = tmp_path / "run"
    steps = []
    for moment, seconds in KILLS:
        program = (Path(__file__).with_name("killed_run.py"), moment, str(seconds))
        training = Training(dataset_folder, workdir, program=program)
        assert training.end() == -signal.SIGKILL, f"not killed {moment}: {training.console}"
        found = re.search(r"resuming from step (\d+)", training.console)
        steps.append(int(found[1]) if found else 0)
    last = Training(dataset_folder, workdir)
    assert last.end() == 0, last.console
    steps.append(int(re.search(r"resuming from step (\d+)", last.console)[1]))
    assert steps == sorted(steps) and all(step % STEPS == 0 for step in steps)  # only whole saves are gone on from
    assert steps[:2] == [0, 0] and steps[-2:] == [EPOCHS * STEPS] * 2, steps
    # In the second epoch the save of the first has started, but may not be finished.
    assert all(after - before <= 2 * STEPS for before, after in pairwise(steps[:-2])), steps
    assert len(set(steps)) > 4, steps
    assert_same_run(workdir, undisturbed)


@pytest.mark.slow
def test_killed_while_its_slices_lie_on_disk_it_is_the_run_in_memory(undisturbed, dataset_folder, tmp_path):
    workdir, data_dir = tmp_path / "run", tmp_path / "data"
    shutil.copytree(dataset_folder.parents[2], data_dir)
    folder = data_dir / dataset_folder.relative_to(dataset_folder.parents[2])
    for moment in ("in the second epoch", "in the second save"):
        program = (Path(__file__).with_name("killed_run.py"), moment, "0.0")
        training = Training(folder, workdir, "--config.data.residence=disk", program=program)
        assert training.end() == -signal.SIGKILL, training.console
        assert "slices on disk (data.residence=disk)" in training.console
    last = Training(folder, workdir, "--config.data.residence=disk")
    assert last.end() == 0, last.console
    assert "resuming from step" in last.console
    here, there = (json.loads((run / "config.json").read_text()) for run in (workdir, undisturbed))
    assert here["data"].pop("residence") == "disk" and here["data"].pop("dir") == str(data_dir)
    assert there["data"].pop("residence") == "auto" and there["data"].pop("dir")
    assert here == there
    for name in ("config.json", "report.html"):  # a report lists the settings
        shutil.copy(undisturbed / name, workdir)
    assert_same_run(workdir, undisturbed)


def flip_bits(path):
    """Flips one bit in each of 64 positions, since not every byte of the file belongs to an array."""
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), len(content) // 64):
        content[place] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_bits, truncate, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(damage, stopped, undisturbed, dataset_folder, tmp_path):
    workdir = copy_of(stopped, tmp_path)
    bad = newest(workdir)
    damage(array_file(bad))
    training = Training(dataset_folder, workdir)
    training.wait_for("patients to train")
    assert f"{bad} is damaged" in training.console
    assert f"Moved it to {workdir}/damaged_checkpoints/{bad.name}.0" in training.console
    assert f"resuming from step {newest(workdir).name}" in training.console
    assert not bad.exists() and (workdir / "damaged_checkpoints" / f"{bad.name}.0").is_dir()
    if damage is flip_bits:
        assert training.end() == 0, training.console
        assert_same_run(workdir, undisturbed)
    else:
        training.process.kill()
        training.end()


def test_nothing_whole_is_an_error_and_no_fresh_start(stopped, dataset_folder, tmp_path):
    workdir = copy_of(stopped, tmp_path)
    for folder in (workdir / "checkpoints").iterdir():
        flip_bits(array_file(folder))
    before = files_of(workdir)
    training = Training(dataset_folder, workdir)
    assert training.end() == 4
    assert "error: all checkpoints of this run are damaged; nothing was changed" in training.console
    assert files_of(workdir) == before and not (workdir / "damaged_checkpoints").exists()


@pytest.mark.slow
def test_a_full_disk(undisturbed, dataset_folder, small_disk):
    workdir = small_disk / "run"
    training = Training(dataset_folder, workdir)
    training.wait_for("epoch 2/")
    fill(small_disk)
    filled = time.monotonic()
    assert training.end() == 4, training.console
    assert time.monotonic() - filled < 30
    assert re.search(
        r"error: .*cannot be written.*(No space left|RESOURCE_EXHAUSTED|Failed to write)", training.console
    ), training.console
    (small_disk / "ballast").unlink()
    again = Training(dataset_folder, workdir)
    assert again.end() == 0, again.console
    assert int(re.search(r"resuming from step (\d+)", again.console)[1]) >= STEPS
    assert_same_run(workdir, undisturbed)


def test_a_folder_that_may_not_be_written(stopped, dataset_folder, tmp_path):
    workdir = copy_of(stopped, tmp_path)
    if os.geteuid() == 0:  # whom permissions do not stop
        command = f"mount --bind {workdir} {workdir} && mount -o remount,ro,bind {workdir}"
        if subprocess.run(command, shell=True, capture_output=True).returncode:
            pytest.skip("a read-only mount needs more rights")
    else:
        workdir.chmod(0o555)
    try:
        training = Training(dataset_folder, workdir)
        assert training.end() == 2
        assert re.search(rf"error: --workdir={workdir}.*cannot be written to", training.console)
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "--lazy", workdir], check=True)
        else:
            workdir.chmod(0o755)


@pytest.mark.slow
def test_one_owner(stopped, dataset_folder, tmp_path):
    workdir = copy_of(stopped, tmp_path)
    first = Training(dataset_folder, workdir)
    first.wait_for("patients to train")
    first.process.send_signal(signal.SIGSTOP)
    second = Training(dataset_folder, workdir)
    assert second.end() == 2
    owner = rf"process {first.process.pid} on {re.escape(socket.gethostname())}, started 20\d\d-\S+\+00:00"
    assert re.search(rf"error: {workdir} is in use by {owner}; wait", second.console), second.console
    first.process.kill()
    first.process.wait()
    third = Training(dataset_folder, workdir)
    third.wait_for("patients to train")
    assert re.search(rf"taking over {workdir} from {owner}", third.console), third.console
    third.process.kill()
    third.end()


def test_another_split_is_refused(stopped, dataset_folder, tmp_path):
    workdir = copy_of(stopped, tmp_path)
    split = json.loads((workdir / "split.json").read_text())
    split["train"][0], split["test"][0] = split["test"][0], split["train"][0]
    (tmp_path / "other.json").write_text(json.dumps(split))
    training = Training(dataset_folder, workdir, f"--config.split.file={tmp_path / 'other.json'}")
    assert training.end() == 2
    assert "split.json is not the split of this config" in training.console
    assert f"  {split['train'][0]}: test before, train now" in training.console
    assert f"  {split['test'][0]}: train before, test now" in training.console


@pytest.mark.slow
def test_other_hardware(stopped, undisturbed, dataset_folder, tmp_path):
    """One device before the stop, eight after it, and the reverse."""
    workdir = copy_of(stopped, tmp_path)
    training = Training(dataset_folder, workdir, devices=8)
    training.wait_for("epoch 5/")
    training.process.send_signal(signal.SIGINT)
    assert training.end() == 75, training.console
    assert "8 device(s)" in training.console
    assert Training(dataset_folder, workdir).end() == 0
    np.testing.assert_allclose(losses_of(workdir), losses_of(undisturbed), rtol=1e-5)


@pytest.mark.slow
def test_two_processes_stop_together_and_one_goes_on(undisturbed, dataset_folder, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    together = [f"--coordinator=127.0.0.1:{port}", "--processes=2"]
    pair = [Training(dataset_folder, tmp_path / "run", *together, f"--process={i}") for i in (0, 1)]
    pair[0].wait_for("epoch 2/")
    pair[1].process.send_signal(signal.SIGTERM)
    assert [training.end() for training in pair] == [75, 75], pair[0].console + pair[1].console
    steps = {int(SAVED.search(training.console)[1]) for training in pair}
    assert len(steps) == 1
    assert "stopped by a signal to another process" in pair[0].console
    alone = Training(dataset_folder, tmp_path / "run")
    assert alone.end() == 0, alone.console
    assert f"resuming from step {steps.pop()}," in alone.console
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses_of(undisturbed), rtol=1e-5)


@pytest.fixture(scope="module")
def short_run(dataset_folder, tmp_path_factory):
    """A config and its undisturbed run in this process, where a test can send a signal at an exact moment."""
    config = default_config("quick")
    config.update(SETTINGS)
    config.data.dir, config.train.epochs = str(dataset_folder.parents[2]), 3
    return config, once(tmp_path_factory, "short", lambda folder: story.train(config, folder / "run")) / "run"


@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("in an epoch", STEPS + 2),
        pytest.param("last step of an epoch", 2 * STEPS, marks=pytest.mark.slow),
        pytest.param("evaluation", 2 * STEPS, marks=pytest.mark.slow),
        pytest.param("save", 2 * STEPS, marks=pytest.mark.slow),
    ],
)
def test_exact_resume_from_any_place(place, step, short_run, tmp_path, monkeypatch):
    config, whole = short_run
    owner, name, at = {
        "in an epoch": (story, "_check_reports", 4),  # checks: after steps 2, 4, 5, 7, ...
        "last step of an epoch": (story, "_check_reports", 6),
        "evaluation": (story, "_validate", 2),
        "save": (Checkpoints, "save", 2),
    }[place]
    original, calls = getattr(owner, name), []

    def interrupted(*args, **options):
        calls.append(None)
        result = original(*args, **options)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # the signal is heard by another thread
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(TrainingStopped, match=rf"stopped by SIGTERM; step {step} is saved"):
            story.train(config, tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    story.train(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)
