"""Global-batch semantics: the same losses on any number of devices and processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from twenty_steps import twenty_losses

from brainseg_jax import sharding
from brainseg_jax.data.cohort import load_cohort
from brainseg_jax.errors import InputError


def mesh_of(devices):
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


@pytest.fixture(scope="module")
def on_one_device(dataset_folder, optax_promotion):
    cohort = load_cohort(dataset_folder, image_size=32, normalization="volume_zscore")
    losses = twenty_losses(cohort, mesh_of(1))
    assert losses[-1] < losses[0]  # it does learn, so that equal losses mean something
    return cohort, losses


@pytest.mark.parametrize("devices", [4, 8])
def test_devices(on_one_device, devices):
    cohort, expected = on_one_device
    np.testing.assert_allclose(twenty_losses(cohort, mesh_of(devices)), expected, rtol=1e-5)


def test_two_processes(on_one_device, dataset_folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).with_name("twenty_steps.py")
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, script, dataset_folder, f"127.0.0.1:{port}", "2"]
    running = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for i in range(2)
    ]
    for process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        np.testing.assert_allclose(json.loads(out.splitlines()[-1]), on_one_device[1], rtol=1e-5)


def test_a_batch_that_the_devices_do_not_divide():
    with pytest.raises(InputError, match=r"train\.batch_size=12 .* 8 devices; try --config\.train\.batch_size=8"):
        sharding.check_divides(mesh_of(8), "train.batch_size", 12)
    sharding.check_divides(mesh_of(4), "train.batch_size", 12)
