"""Global-batch semantics: the same losses on any number of devices and processes."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import xla_flags
from jax.sharding import AxisType
from twenty_steps import twenty_losses

from brainseg_jax import sharding
from brainseg_jax.data.load_cohort import load_cohort
from brainseg_jax.errors import InputError
from brainseg_jax.losses import dice_loss
from brainseg_jax.models import build_model
from brainseg_jax.training.feed import DeviceFeed
from brainseg_jax.training.optimizer import build_optimizer
from brainseg_jax.training.state import create_state
from brainseg_jax.training.step import make_batch_builder, make_update


def mesh_of(devices):
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


@pytest.fixture(scope="module")
def on_one_device(dataset_folder, optax_promotion):
    cohort = load_cohort(dataset_folder, image_size=32, normalization="volume_zscore")
    losses = twenty_losses(cohort, mesh_of(1))
    assert losses[-1] < losses[0]  # it does learn, so that equal losses mean something
    return cohort, losses


@pytest.mark.slow
@pytest.mark.parametrize("devices", [4, 8])
def test_devices(on_one_device, devices):
    cohort, expected = on_one_device
    np.testing.assert_allclose(twenty_losses(cohort, mesh_of(devices)), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("residence", ["whole", "divided", "host", "disk"])
def test_two_processes(on_one_device, dataset_folder, tmp_path, residence):
    """From disk both write the slices at once, and each reads its half of a batch.

    With the slices on each device, one process is later than the 30 s that Gloo waits for a connection.
    """
    folder = shutil.copytree(dataset_folder, tmp_path / Path(*dataset_folder.parts[-3:]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).with_name("twenty_steps.py")
    environment = {**os.environ, "XLA_FLAGS": xla_flags(2)}
    command = [sys.executable, script, folder, residence, f"127.0.0.1:{port}", "2"]
    late = ["0", "40" if residence == "whole" else "0"]
    running = [
        subprocess.Popen(
            [*command, str(i), late[i]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for i in range(2)
    ]
    for process in running:
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err[-3000:]
        np.testing.assert_allclose(json.loads(out.splitlines()[-1]), on_one_device[1], rtol=1e-5)


def collectives(function: Callable, *arguments: object) -> list[tuple[str, str]]:
    """Shapes and kinds of all exchanges between devices in the compiled program."""
    text = function.lower(*arguments).compile().as_text()
    return re.findall(r"= (.*) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)[a-z-]*\(", text)


@pytest.mark.parametrize(("norm", "norms"), [("block", 7), ("none", 0)])
def test_devices_talk_once_a_norm_and_pass_and_once_for_the_gradients(cohort, norm, norms, optax_promotion):
    """7 norms, of 5 blocks and 2 gates. The batch-wide Dice loss takes one exchange with three sums."""
    mesh = mesh_of(8)
    model = build_model("attention_unet", features=4, depth=2, norm=norm, formulation="lax")  # as on GPUs
    optimizer = build_optimizer("adamw", lambda step: 1e-3, b2=0.99, weight_decay=1e-4, clip_norm=1.0)
    batch = make_batch_builder(
        description=cohort.description,
        mesh=mesh,
        seed=0,
        geometry={"rotation": 15.0, "scale": 0.1, "shift": 0.05, "shear": 5.0, "flip": 0.5},
        intensity={"contrast": 0.1, "gamma": 0.2, "noise": 0.1},
        replaced_channels=0.2,
    )
    loss = partial(dice_loss, smooth=0.1, batch_wide=True)
    update = make_update(model, optimizer, loss, mesh=mesh, ema_decay=0.9)
    state = create_state(model, optimizer, image_shape=cohort.slices.shape, seed=0, ema=True, mesh=mesh)
    drawn = (state.step, DeviceFeed(cohort, lambda step: np.zeros(16, np.int32), mesh)(0))
    assert not collectives(jax.jit(batch), *drawn)
    found = collectives(update, state, jax.eval_shape(batch, *drawn))
    assert {kind for _, kind in found} == {"all-reduce"}
    assert len(found) == 2 * norms + 2
    shapes = [shape for of, _ in found for shape in re.findall(r"f32\[(.*?)\]", of)]
    numbers = sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    of_norms = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))  # a mean and a variance a channel
    of_loss = 3  # intersection, predicted and true pixels
    assert parameters + of_loss <= numbers <= parameters + of_loss + 2 * of_norms


def test_a_batch_that_the_devices_do_not_divide():
    with pytest.raises(InputError, match=r"train\.batch_size=12 .* 8 devices; try --config\.train\.batch_size=8"):
        sharding.check_divides(mesh_of(8), "train.batch_size", 12)
    sharding.check_divides(mesh_of(4), "train.batch_size", 12)
