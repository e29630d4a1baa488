"""A failure on the first process fails all; the run folder on a full disk; a stop in the first epoch; messages."""

import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import fill
from jax.experimental import multihost_utils

from brainseg_jax import sharding
from brainseg_jax.compilation import use_plain_numbers
from brainseg_jax.config import default_config, idle_keys
from brainseg_jax.errors import InputError, StorageError, TrainingStopped
from brainseg_jax.runs.checkpoint import Checkpoints
from brainseg_jax.runs.metrics_log import MetricsLog, Progressed, cut_rows, epoch_line
from brainseg_jax.runs.processes import on_all_processes, on_first_process
from brainseg_jax.runs.run_folder import lock_run_folder
from brainseg_jax.training.loop_state import LoopState
from brainseg_jax.training.state import TrainState


@pytest.mark.parametrize(
    ("raised", "elsewhere"),
    [
        (InputError, InputError),
        (StorageError, StorageError),
        (TrainingStopped, TrainingStopped),
        (OSError, RuntimeError),
        (KeyError, RuntimeError),
        (None, None),
    ],
)
def test_an_error_of_the_first_process_comes_to_all(monkeypatch, raised, elsewhere):
    sent = []

    def broadcast(number):
        sent.append(number)
        return sent[0]

    def action():
        if raised:
            raise raised("no luck")
        return "done"

    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", broadcast)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process, kind, words in ((0, raised, "no luck"), (1, elsewhere, "process 0 could not do it")):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        if kind is None:
            assert on_first_process("do it", action) == (None if process else "done")
            continue
        with pytest.raises(kind, match=words):
            on_first_process("do it", action)
    assert len(sent) == 2


@pytest.mark.parametrize(
    ("own", "other", "kind", "words"),
    [
        (None, -1, None, None),
        (InputError, -1, InputError, "no luck"),
        (None, 0, InputError, "another process could not do it"),
        (None, 1, StorageError, "another process could not do it"),
        (KeyError, 0, KeyError, "no luck"),
    ],
)
def test_an_error_of_any_process_comes_to_all(monkeypatch, own, other, kind, words):
    def action():
        if own:
            raise own("no luck")
        return "done"

    def gather(halves):
        return np.stack([halves, np.array([other >> 31, other & (2**31 - 1)], np.int32)])

    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    if kind is None:
        assert on_all_processes("do it", action) == "done"
        return
    with pytest.raises(kind, match=words):
        on_all_processes("do it", action)


_CHOOSE = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from pathlib import Path
from brainseg_jax import sharding
from brainseg_jax.config import default_config
from brainseg_jax.errors import InputError
from brainseg_jax.runs import evaluation
from brainseg_jax.runs.processes import minimum_of_processes, processes_of_host
sharding.connect()
evaluation.free_memory = lambda: (2**45, 2**20)[jax.process_index()]
config = default_config("quick")
print(evaluation.choose_for(config, Path(sys.argv[3])))
config.data.residence = "memory"
try:
    evaluation.choose_for(config, Path(sys.argv[3]))
except InputError as error:
    print(error)
print(minimum_of_processes(2**40 + 5 + jax.process_index()) - 2**40, processes_of_host())
"""


@pytest.mark.slow
def test_two_processes_of_different_memory_decide_alike(dataset_folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _CHOOSE, address, str(process), str(dataset_folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    for process in running:
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err[-3000:]
        chosen, refused, numbers = out.splitlines()[-3:]  # gloo writes too
        # 128 slices of 64 x 64 with 4 bytes, and labels of 256 x 256; half of 1 MiB for each of two processes.
        assert chosen == "slices on disk (at most 10.0 MiB of slices and labels, 0.5 MiB of memory free)"
        assert refused.startswith("data.residence=memory: at most 10.0 MiB")
        assert numbers == "5 2"


def test_a_run_folder_on_a_full_disk(small_disk):
    (small_disk / "run").mkdir()
    log = small_disk / "run" / "metrics.jsonl"
    log.write_text('{"epoch": 1}\n')
    fill(small_disk)
    with (
        pytest.raises(InputError, match=rf"--workdir={small_disk}/run cannot be written to .*No space.*make room"),
        lock_run_folder(small_disk / "run"),
    ):
        pass
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written .*No space"):
        cut_rows(log, 1)
    assert log.read_text()


def saved(folder, *steps):
    """Checkpoints of (step, loop state, score)."""
    one = sharding.put(np.ones((), np.float32), sharding.replicated(sharding.data_mesh()))
    checkpoints, state = Checkpoints(folder), TrainState(one, {}, {}, (), None, one)
    for step, loop, score in steps:
        checkpoints.save(state.replace(step=one.astype(np.int32) * step), loop, score=score)
    checkpoints.close()
    return Checkpoints(folder), state.replace(step=one.astype(np.int32))


def test_a_stop_in_the_first_epoch_loses_nothing(tmp_path, caplog):
    loop = LoopState(losses=(0.5,))
    checkpoints, like = saved(tmp_path, (2, loop, None))
    state, found = checkpoints.recover(like)
    assert int(state.step) == 2 and found == loop and found.best_dice == -1.0
    assert "lost" not in caplog.text
    checkpoints.close()


def test_a_lost_best_of_which_no_other_score_is_left(tmp_path, caplog):
    loop = LoopState(epoch=3, best_dice=0.8, best_epoch=2)
    checkpoints, like = saved(tmp_path, (7, loop, None))
    _, found = checkpoints.recover(like)
    assert (found.best_dice, found.best_epoch) == (-1.0, 3)
    assert "the best epoch, 2 (validation Dice 0.8000), is lost, and no other epoch with a score remains" in caplog.text
    caplog.clear()
    _, found = checkpoints.recover(like, keep="last")  # there the best one is not kept, so it cannot be lost
    assert found == loop and not caplog.text
    checkpoints.close()


def test_against_the_clock_the_clock_is_shown(tmp_path):
    assert Progressed(epochs=24, minutes=0.0)(8, 700.0) == "epoch 8/24"
    assert Progressed(epochs=10_000, minutes=25.0)(8, 700.0) == "epoch 8, 11.7 of 25 min"
    row = {"epoch": 8, "train_loss": 0.5, "val_loss": 0.5, "val_dice_mean": 0.5, "val_dice_median": 0.5}
    line = epoch_line(row, Progressed(10_000, 25.0)(8, 700.0), 9.0, is_best=False)
    assert line.startswith("epoch 8, 11.7 of 25 min  loss 0.5000")
    journal = MetricsLog(
        *(tmp_path,),
        **{"epochs": 10_000, "steps_per_epoch": 100, "resumed_epoch": 7, "enabled": True},
        **{"minutes": 25.0, "spent_seconds": 600.0},
    )
    (task,) = journal._bar.tasks
    assert (task.completed, task.total) == (600.0, 1500.0)
    journal.advance(step=750, epoch=8, loss=0.5, images_per_second=9.0, spent_seconds=660.0)
    assert (task.completed, task.fields["done"]) == (660.0, "11.0 of 25 min")


@pytest.mark.parametrize("scale", [None, "cpu", "quick"])
def test_settings_without_effect_are_reported(scale):
    config = default_config(scale)
    assert idle_keys(config) == []
    config.loss.name, config.loss.smooth, config.data.area_power = "focal", 1.0, 0.5
    config.optimizer.schedule, config.optimizer.plateau_patience = "constant", 9
    config.eval.choose, config.eval.largest_component = True, True  # which counts in each epoch's validation
    assert [line.split("=")[0] for line in idle_keys(config)] == [
        *("loss.smooth", "data.area_power", "optimizer.plateau_patience")
    ]
    assert idle_keys(config)[1] == "data.area_power=0.5 (with data.by_patient and data.tumor_sampling only)"
    config.loss.name, config.data.by_patient, config.data.tumor_sampling = "dice", True, 0.5
    config.optimizer.schedule, config.eval.choose = "plateau", False
    assert idle_keys(config) == []


@pytest.mark.parametrize(
    ("name", "found", "wanted"),
    [
        ("jax_enable_x64", True, False),
        ("jax_numpy_dtype_promotion", "strict", "standard"),
        ("jax_numpy_rank_promotion", "raise", "allow"),
    ],
)
def test_commands_compute_in_32_bits_and_promote(caplog, name, found, wanted):
    keys = ("jax_enable_x64", "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion")
    before = {key: getattr(jax.config, key) for key in keys}
    try:
        jax.config.update("jax_numpy_dtype_promotion", "standard")
        jax.config.update("jax_numpy_rank_promotion", "allow")
        jax.config.update(name, found)
        use_plain_numbers()
        assert getattr(jax.config, name) == wanted
        assert caplog.messages == [f"{name.upper()}={found} is not supported: {wanted} is used"]
    finally:
        for key, value in before.items():
            jax.config.update(key, value)


def test_a_precision_of_the_environment_has_no_effect_and_is_reported(caplog):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        use_plain_numbers()
        assert not caplog.messages
        with jax.default_matmul_precision("highest"):
            use_plain_numbers()
    assert caplog.messages == [
        "JAX_DEFAULT_MATMUL_PRECISION=highest has no effect: model.precision of the config is used"
    ]
