"""Measures how time and memory grow with the patients, up to BraTS's 1 251: `python -m benchmarks.growth_patients`.

Each point is a separate process. Its peak is the kernel's maximum resident memory of that process. Some times include a
start (of the command, the network, the compiler). Their time per patient falls as the number of patients grows.

    python -m benchmarks.growth_patients                    # growth_patients.json and .png; 15 minutes, 5 GB of disk
    python -m benchmarks.growth_patients --patients=4,16 --files=2,4 --slices=12 --side=64 --output=/tmp/growth
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PATIENTS = (10, 40, 200, 1251)  # of synthetic records
FILES = (4, 10, 40, 100)  # patients in NIfTI files
MAX_PREDICTED = 40  # maximum for validation and prediction
THIS_MODULE = "benchmarks.growth_patients"
REPETITIONS = 5  # of a training step
STEP = "training step"  # a time per step; the others are for all patients
RECORDS = ("write records", "first start", "later start", STEP)  # the order matters
COMPILED = (STEP, "validate")
OF_FILES = {"prepare": "prepare files", "predict": "predict files", "evaluate": "score files"}


def main() -> None:
    """Measures all points; with `--work` does the work of one point in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=_numbers, default=PATIENTS, help="of synthetic records, as in 10,40,200")
    parser.add_argument("--files", type=_numbers, default=FILES, help="patients in files, as in 4,10,40")
    parser.add_argument("--slices", type=int, default=155, help="of a patient")
    parser.add_argument("--side", type=int, default=128, help="pixels, a multiple of 16")
    parser.add_argument("--folder", type=Path, help="for the records; default: the temporary folder")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(""), help="without .json and .png")
    parser.add_argument("--work", choices=WORK, help="do only this work, in this process; prints seconds")
    arguments = parser.parse_args()
    if arguments.work:
        print(WORK[arguments.work](arguments.folder, arguments.patients[0], arguments.slices, arguments.side))
        return
    lines: dict[str, list[dict]] = {}
    print("| work | patients | seconds | seconds per patient | peak, MB |\n| --- | --- | --- | --- | --- |")
    for work, point in _points(arguments):
        lines.setdefault(work, []).append(point)
        print(f"| {work} | {' | '.join(f'{value:.4g}' for value in point.values())} |", flush=True)
    arguments.output.with_suffix(".json").write_text(json.dumps(lines, indent=1) + "\n")
    draw(lines, arguments.output.with_suffix(".png"))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(number) for number in text.split(",")))


def _points(arguments: argparse.Namespace) -> Iterator[tuple[str, dict]]:
    """Yields the name of a work and one point of it; removes the point's files afterwards."""
    size = (f"--slices={arguments.slices}", f"--side={arguments.side}")

    def run_here(work: str, folder: str | Path, patients: int) -> dict:
        flags = (f"--work={work}", f"--folder={folder}", f"--patients={patients}")
        return measure(patients, THIS_MODULE, *flags, *size)

    for patients in arguments.patients:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            for work in (*RECORDS, *(("validate",) if patients <= MAX_PREDICTED else ())):
                if patients == arguments.patients[0] and work in COMPILED:
                    run_here(work, folder, patients)  # warm up: points exclude the compiler's time and memory
                yield work, run_here(work, folder, patients)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run_here("write files", folder, arguments.files[-1])
        run = Path(folder) / "run"
        for patients in arguments.files:
            scans = Path(folder) / f"{patients}"
            run_here("link files", scans, patients)
            commands = {
                "prepare": (f"--source={scans}", f"--data_dir={scans}_data"),
                "predict": (f"--run={run}", f"--input={scans}/imagesTr", f"--output={scans}_masks"),
                "evaluate": (
                    *(f"--predictions={scans}/predicted", f"--truth={scans}/labelsTr"),
                    f"--output={scans}_scores",
                ),
            }
            for command, flags in commands.items():
                module = f"brainseg_jax.{'data.' * (command == 'prepare')}{command}"
                if command != "predict" or patients <= MAX_PREDICTED:
                    yield OF_FILES[command], measure(patients, module, *flags)
                if command == "prepare" and not run.exists():
                    run_here("train on files", folder, patients)


def measure(patients: int, module: str, *flags: str) -> dict:
    """Runs a command to its end.

    Args:
      patients: of the point.
      module: of the command. If it is this module, the seconds are those that it prints.
      flags: of the command.

    Returns:
      at (the patients), seconds, seconds_a_patient, peak_mb.

    Raises:
      RuntimeError: the command failed.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen([sys.executable, "-m", module, *flags], stdout=stdout, stderr=stderr)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode:
            raise RuntimeError(f"python -m {module} {' '.join(flags)}: {stderr.read()[-3000:]}")
        if module == THIS_MODULE:
            seconds = float(stdout.read().split()[-1])
    per_patient = seconds if f"--work={STEP}" in flags else seconds / patients
    return {"at": patients, "seconds": seconds, "seconds_a_patient": per_patient, "peak_mb": usage.ru_maxrss / 1024}


def _timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


# Each work maps (folder, patients, slices, side) to seconds.


def _write_records(folder: Path, patients: int, slices: int, side: int) -> float:
    from benchmarks.synthetic_records import write_records

    return _timed(lambda: write_records(folder, patients=patients, slices=slices, side=side))


def _build(folder: Path, side: int):
    """Returns the experiment on the records in a folder, at the scale of `:cpu`."""
    from brainseg_jax.compilation import keep_compiled
    from brainseg_jax.config import default_config
    from brainseg_jax.data.prepared import list_prepared
    from brainseg_jax.training.experiment import build_experiment

    config = default_config("cpu")
    (config.data.source,) = map(str, list_prepared(folder))
    config.data.dir, config.data.residence, config.data.image_size = str(folder), "disk", side
    config.split.val = config.split.test = 0.2
    keep_compiled(config.compilation_cache)
    return build_experiment(config)


def _start(folder: Path, patients: int, slices: int, side: int) -> float:
    return _timed(lambda: _build(folder, side))


def _step(folder: Path, patients: int, slices: int, side: int) -> float:
    """Returns median seconds of a step with slices from disk."""
    import jax

    experiment = _build(folder, side)
    state, seconds = experiment.initial_state, []
    for step in range(REPETITIONS + 2):
        started = time.perf_counter()
        state, _ = experiment.train_step(state, experiment.feed(step))
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - started)
    experiment.feed.close()
    return statistics.median(seconds[2:])


def _validate(folder: Path, patients: int, slices: int, side: int) -> float:
    experiment = _build(folder, side)
    evaluation = experiment.evaluation
    network = evaluation.with_variables(experiment.initial_state.variables)
    cases = experiment.cohort.cases
    evaluation.assessor.quick(network, cases[:1], evaluation.posts)  # compiles
    seconds = _timed(lambda: evaluation.assessor.quick(network, cases, evaluation.posts))
    experiment.feed.close()
    return seconds


def _write_files(folder: Path, patients: int, slices: int, side: int) -> float:
    """Writes scans in the layout of nnU-Net, reference masks and other masks as NIfTI."""
    import nibabel as nib
    import numpy as np

    from benchmarks.synthetic_records import SyntheticPatients
    from brainseg_jax.scans.grid import Grid

    cohort = SyntheticPatients(patients=patients, slices=slices, side=side, channels=1)
    for name in _FOLDERS:
        (folder / "all" / name).mkdir(parents=True)
    for case in cohort.cases:
        volume = cohort.volume(case)
        thickness, rows, columns = volume.spacing
        grid = Grid(np.diag([columns, rows, thickness, 1.0]), (side, side, slices))
        arrays = (volume.voxels[..., 0].astype(np.int16) * 4, volume.labels, np.roll(volume.labels, 1, axis=1))
        for name, suffix, array in zip(_FOLDERS, ("_0000", "", ""), arrays, strict=True):
            image = nib.Nifti1Image(np.ascontiguousarray(grid.from_slices(array)), grid.affine)
            nib.save(image, folder / "all" / name / f"{case.name}{suffix}.nii.gz")
    return 0.0


def _link_files(folder: Path, patients: int, slices: int, side: int) -> float:
    """Links the first patients of `_write_files` into a separate folder."""
    from brainseg_jax.data.phantom_cohort import REGIONS

    for name in _FOLDERS:
        (folder / name).mkdir(parents=True)
        for path in sorted((folder.parent / "all" / name).iterdir())[:patients]:
            os.link(path, folder / name / path.name)
    content = {
        "channel_names": {"0": "t2f"},
        "labels": {"background": 0, **REGIONS},
        "regions_class_order": [2, 1, 3],
        "numTraining": patients,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return 0.0


def _train_on_files(folder: Path, patients: int, slices: int, side: int) -> float:
    """Writes a run folder for `predict`: a network after two steps."""
    from brainseg_jax.compilation import keep_compiled
    from brainseg_jax.config import default_config
    from brainseg_jax.training.loop import train

    config = default_config("cpu")
    config.data.source, config.data.dir = str(folder / f"{patients}"), str(folder / f"{patients}_data")
    config.data.image_size, config.train.epochs, config.train.steps_per_epoch = side, 1, 2
    config.split.val = config.split.test = 0.25
    keep_compiled(config.compilation_cache)
    return _timed(lambda: train(config, folder / "run"))


_FOLDERS = ("imagesTr", "labelsTr", "predicted")
WORK = {
    "write records": _write_records,
    "first start": _start,
    "later start": _start,
    STEP: _step,
    "validate": _validate,
    "write files": _write_files,
    "link files": _link_files,
    "train on files": _train_on_files,
}


def draw(lines: dict[str, list[dict]], path: Path) -> None:
    """Draws two plots against the patients: seconds per patient, log-log; and peak memory from 0."""
    import matplotlib.pyplot as plt

    figure, (times, memory) = plt.subplots(1, 2, figsize=(14, 5), layout="constrained")
    for work, points in lines.items():
        patients = [point["at"] for point in points]
        style = {"linestyle": "--" if work == STEP else "-", "marker": "o", "markersize": 4}
        label = f"{work} (s per step)" if work == STEP else work
        times.plot(patients, [point["seconds_a_patient"] for point in points], label=label, **style)
        memory.plot(patients, [point["peak_mb"] for point in points], label=work, **style)
    ticks = sorted({point["at"] for points in lines.values() for point in points})
    for axes, title, unit in (
        (times, "time per patient, including the start", "s"),
        (memory, "peak memory of the process", "MB"),
    ):
        axes.set(title=title, ylabel=unit, xlabel="patients", xscale="log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    times.set_yscale("log")
    memory.set_ylim(bottom=0)
    figure.legend(*times.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
