"""Measures what a run costs before and after its steps: `python -m benchmarks.startup`.

It measures the import, the time to the launch and to the end of the first update (with and without compiled programs
from earlier), and the scoring of a patient. Each has separate processes, at the scale of `configs/unet_dice.py:cpu`, on
synthetic scans. Writes `startup.json`.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORK = ("import", "launch", "first step", "score a patient")


def main() -> None:
    """Measures everything; with `--work` measures one thing in this process and prints its seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--work", choices=WORK, help="measure only this, in this process")
    parser.add_argument("--data", help="folder of the prepared scans, for --work")
    arguments = parser.parse_args()
    if arguments.work:
        print(_measure(arguments.work, arguments.data))
        return
    with tempfile.TemporaryDirectory() as data:
        _seconds("first step", data, cache=f"{data}/prepares")  # also prepares the scans
        seconds = {
            "import": [_seconds("import", data, cache=data) for _ in range(arguments.repetitions)],
            "first step, nothing kept": [
                _seconds("first step", data, cache=f"{data}/cold{i}") for i in range(arguments.repetitions)
            ],
            "first step, programs kept": [
                _seconds("first step", data, cache=f"{data}/cold0") for _ in range(arguments.repetitions)
            ],
            "launch, programs kept": [
                _seconds("launch", data, cache=f"{data}/cold0") for _ in range(arguments.repetitions)
            ],
            "score a patient": [
                _seconds("score a patient", data, cache=f"{data}/cold0") for _ in range(arguments.repetitions)
            ],
        }
    print("| work | median, s | minimum | maximum |\n| --- | --- | --- | --- |")
    for name, values in seconds.items():
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    Path(__file__).with_name("startup.json").write_text(json.dumps(seconds, indent=1) + "\n")


def _seconds(work: str, data: str, *, cache: str) -> float:
    command = [sys.executable, "-m", "benchmarks.startup", f"--work={work}", f"--data={data}"]
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(completed.stdout.splitlines()[-1])


def _measure(work: str, data: str) -> float:
    started = time.perf_counter()
    import jax

    importlib.import_module("brainseg_jax.main")  # everything that the command loads
    from brainseg_jax.compilation import keep_compiled
    from brainseg_jax.config import default_config
    from brainseg_jax.training.experiment import build_experiment

    if work == "import":
        return time.perf_counter() - started
    config = default_config("cpu")
    config.data.source, config.data.dir = "phantom:20:0", data
    keep_compiled(config.compilation_cache)
    experiment = build_experiment(config)
    state = experiment.initial_state
    if work != "score a patient":
        updated = experiment.train_step(state, experiment.feed(0))
        launched = time.perf_counter() - started
        jax.block_until_ready(updated)
        return launched if work == "launch" else time.perf_counter() - started
    evaluation = experiment.evaluation
    for case in evaluation.split.test[:2]:  # the first one compiles
        started = time.perf_counter()
        evaluation.assessor.quick(evaluation.with_variables(state.variables), (case,), evaluation.posts)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
