"""Measures how cost grows with image size, batch, width, patients and devices: `python -m benchmarks.growth`.

Writes `growth.json` and `growth.png`. Prints one row per point, with the exponent since the point before (1: linear).
The devices are fake and share the machine's cores. So they show the cost of dividing a batch, not the gain.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.contestants import Work
from benchmarks.worker import Worker

STEPS = {  # axis: its values, and the work at a value
    "pixels a side": ((64, 128, 256, 512), lambda n: Work("unet", 8, n, 2)),
    "images a batch": ((1, 2, 4, 8, 16, 32), lambda n: Work("unet", 16, 64, n)),
    "features": ((8, 16, 32, 64), lambda n: Work("unet", n, 128, 2)),
}
PATIENTS = (10, 20, 40, 80, 110)
DEVICES = (1, 2, 4, 8)


def main() -> None:
    """Measures all axes; with `--devices` measures one number of devices in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--devices", type=int, help="measure only this process, with this many devices; prints seconds")
    arguments = parser.parse_args()
    if arguments.devices:
        print(_step_on_devices(arguments.repetitions))
        return
    print("| axis | at | ours, ms | exponent | torch, ms | exponent |\n| --- | --- | --- | --- | --- | --- |")
    lines = {}
    for axis, (values, work) in STEPS.items():
        lines[axis] = _rows(axis, [(n, _train_step(work(n), arguments.repetitions)) for n in values])
    lines["patients, prepared"], lines["patients, loaded"] = (
        _rows(axis, points)
        for axis, points in zip(("patients, prepared", "patients, loaded"), _patients(), strict=True)
    )
    lines["fake devices"] = _rows("fake devices", [(n, _on_devices(n, arguments.repetitions)) for n in DEVICES])
    folder = Path(__file__).parent
    (folder / "growth.json").write_text(json.dumps(lines, indent=1) + "\n")
    draw(lines, folder / "growth.png")


def exponent(before: tuple[float, float] | None, x: float, y: float) -> float | None:
    """Returns b of y ~ x ** b between two points; None for the first."""
    return None if before is None else math.log(y / before[1]) / math.log(x / before[0])


def _rows(axis: str, points: list[tuple[int, dict[str, float]]]) -> list[dict]:
    rows, before = [], {}
    for value, times in points:
        row = {"at": value}
        for library, ms in times.items():
            row |= {f"{library}_ms": ms, f"{library}_exponent": exponent(before.get(library), value, ms)}
            before[library] = (value, ms)
        rows.append(row)
        figures = [row.get(f"{library}_{quantity}") for library in ("ours", "torch") for quantity in ("ms", "exponent")]
        cells = ["" if f is None else f"{f:.0f}" if i % 2 == 0 else f"{f:.2f}" for i, f in enumerate(figures)]
        print(f"| {axis} | {value} | {' | '.join(cells)} |", flush=True)
    return rows


def _train_step(work: Work, repetitions: int) -> dict[str, float]:
    with (
        tempfile.TemporaryDirectory() as shared,
        Worker("ours", work, Path(shared)) as ours,
        Worker("torch", work, Path(shared)) as torch,
    ):
        times = [(ours.ms(), torch.ms()) for _ in range(repetitions)]
    return {name: statistics.median(c) for name, c in zip(("ours", "torch"), zip(*times, strict=True), strict=True)}


def _patients() -> tuple[list[tuple[int, dict]], list[tuple[int, dict]]]:
    """Returns milliseconds to generate and prepare synthetic patients, and to load them at 128 pixels."""
    from brainseg_jax.data.lgg import prepare
    from brainseg_jax.data.load_cohort import load_cohort

    prepared, loaded = [], []
    for patients in PATIENTS:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            dataset = prepare(f"phantom:{patients}:0", folder, progress=False)
            middle = time.perf_counter()
            load_cohort(dataset, image_size=128, normalization="volume_median")
            prepared.append((patients, {"ours": 1e3 * (middle - started)}))
            loaded.append((patients, {"ours": 1e3 * (time.perf_counter() - middle)}))
    return prepared, loaded


def _on_devices(devices: int, repetitions: int) -> dict[str, float]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "benchmarks.growth", f"--devices={devices}", f"--repetitions={repetitions}"]
    completed = subprocess.run(
        command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, check=True
    )
    return {"ours": 1e3 * float(completed.stdout.splitlines()[-1])}


def _step_on_devices(repetitions: int) -> float:
    """Returns median seconds of a training step (16 images, 128 pixels, 16 features) divided over the devices."""
    import jax

    from brainseg_jax.config import default_config
    from brainseg_jax.training.experiment import build_experiment

    config = default_config("cpu")
    with tempfile.TemporaryDirectory() as folder:
        config.data.source, config.data.dir = "phantom:8:0", folder
        experiment = build_experiment(config)
    state, seconds = experiment.initial_state, []
    for step in range(repetitions + 2):
        started = time.perf_counter()
        state, _ = experiment.train_step(state, experiment.feed(step))
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def draw(lines: dict[str, list[dict]], path: Path) -> None:
    """Draws one log-log plot per axis, with a dashed line for linear growth."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for plot, (axis, rows) in zip(axes.flat, lines.items(), strict=True):
        values = [row["at"] for row in rows]
        for library, marker in (("ours", "o"), ("torch", "s")):
            if f"{library}_ms" in rows[0]:
                plot.loglog(values, [row[f"{library}_ms"] for row in rows], marker=marker, label=library)
        plot.loglog(values, [rows[0]["ours_ms"] * n / values[0] for n in values], "--", color="gray", label="linear")
        plot.set(title=axis, ylabel="ms")
        plot.set_xticks(values, [str(n) for n in values])
        plot.minorticks_off()
        plot.legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
