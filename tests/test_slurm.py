"""The scripts in slurm/, run by bash in the environment of SLURM, with two processes."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import xla_flags
from test_run import TINY, rows_of, tiny_config

from brainseg_jax.training.loop import train

ROOT = Path(__file__).parents[1]
SCRIPTS = [*(ROOT / "slurm").glob("*.slurm"), ROOT / "experiments" / "ablation.slurm"]


def run_script(name, *flags, cwd, **environment):
    variables = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **environment}
    command = ["bash", ROOT / "slurm" / name, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=variables)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_their_options_come_first(script):
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    lines = script.read_text().splitlines()
    last = max(index for index, line in enumerate(lines) if line.startswith("#SBATCH --"))
    assert all(line.startswith("#") for line in lines[:last])  # sbatch stops reading at the first command


def test_what_a_script_needs_is_asked_for(tmp_path):
    done = run_script("train.slurm", cwd=tmp_path, CONFIG="configs/unet_dice.py")
    assert done.returncode == 1 and "WORKDIR: name a folder that all nodes share" in done.stderr
    done = run_script("shards.slurm", cwd=tmp_path)
    assert done.returncode == 1 and "predict or evaluate" in done.stderr


def save_masks(folder, shift):
    for index in range(3):
        mask = np.zeros((12, 12, 5), np.uint8)
        mask[3 + shift : 8 + shift, 4:9, 1 : 3 + index % 2] = 1
        folder.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(mask, np.diag([2, 2, 3, 1.0])), folder / f"case_{index}.nii.gz")


@pytest.fixture(params=["evaluate", "predict"])
def command(request, tmp_path):
    """A command with shards, without its output flag, and the files that it writes."""
    if request.param == "evaluate":
        save_masks(tmp_path / "predicted", 1)
        save_masks(tmp_path / "truth", 0)
        flags = [f"--predictions={tmp_path / 'predicted'}", f"--truth={tmp_path / 'truth'}"]
        return ["evaluate", *flags], ["scores.json", "per_patient.csv"]
    run, _ = request.getfixturevalue("trained_run")
    source = request.getfixturevalue("phantom_folder")
    cases = sorted(folder for folder in source.iterdir() if folder.is_dir())[:2]
    for folder in cases:
        shutil.copytree(folder, tmp_path / "scans" / folder.name)
    return ["predict", f"--run={run}", f"--input={tmp_path / 'scans'}"], ["predictions.csv", "areas.csv"]


@pytest.mark.slow
def test_shards_of_an_array_are_merged_to_the_results_of_one_process(command, tmp_path):
    (name, *flags), files = command
    together, alone = (f"--output={tmp_path / place}" for place in ("together", "alone"))
    for index in range(2):
        array = {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_TASK_COUNT": "2"}
        done = run_script("shards.slurm", name, *flags, together, cwd=tmp_path, **array)
        assert done.returncode == 0, done.stderr
    for given in (("--merge", together), (*flags, alone)):
        done = run_script("shards.slurm", name, *given, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    left = [sorted(path.name for path in (tmp_path / place).rglob("*")) for place in ("together", "alone")]
    assert left[0] == left[1] and set(files) <= set(left[0])
    for file in files:
        assert (tmp_path / "together" / file).read_text() == (tmp_path / "alone" / file).read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_one_training_in_two_tasks(dataset_folder, phantom_folder, tmp_path):
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin" / "srun"
    srun.write_text(f'#!/bin/bash\nexec "{sys.executable}" "{Path(__file__).with_name("fake_srun.py")}" "$@"\n')
    srun.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [f"--config.{section}.{key}={value}" for section, keys in TINY.items() for key, value in keys.items()]
    done = run_script(
        "train.slurm",
        "--config.data.source=phantom:8:0",
        f"--config.data.dir={dataset_folder.parents[2]}",
        *flags,
        cwd=tmp_path,
        CONFIG=f"{ROOT / 'configs' / 'unet_dice.py'}:quick",
        WORKDIR=str(tmp_path / "together"),
        PATH=f"{srun.parent}:{os.environ['PATH']}",
        XLA_FLAGS=xla_flags(1),
        SLURM_JOB_ID="4711",
        SLURM_NTASKS="2",
        SLURM_JOB_NUM_NODES="2",
        JAX_COORDINATOR_PORT=str(port),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(re.findall("epoch 2/2", done.stdout)) == 1  # of the first process
    assert "2 device(s)" in done.stdout + done.stderr and "process 1 of 2: write the results" in done.stderr
    config = tiny_config(dataset_folder)
    train(config, tmp_path / "alone")
    losses = [[row["train_loss"] for row in rows_of(tmp_path / name)] for name in ("together", "alone")]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("together", "alone")]
    assert results[0]["test"]["dice_mean"] == pytest.approx(results[1]["test"]["dice_mean"], abs=1e-3)


def test_a_process_that_no_scheduler_started(tmp_path):
    without = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "OMPI"))}
    command = [sys.executable, "-m", "brainseg_jax.main", f"--config={ROOT / 'configs' / 'unet_dice.py'}:quick"]
    command += [f"--workdir={tmp_path / 'run'}", "--scheduled"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=without)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "error: --scheduled: no scheduler that JAX supports started this process" in done.stderr
    done = subprocess.run([*command, "--process=0"], capture_output=True, text=True, check=False, env=without)
    assert "--scheduled with --coordinator, --processes or --process: give either --scheduled or these" in done.stderr
