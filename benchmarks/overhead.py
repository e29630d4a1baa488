"""Measures what a run spends besides its updates at the `:cpu` scale: augmentation, input, log and checkpoints.

    python -m benchmarks.overhead

The program times blocks of thirty steps of `configs/unet_dice.py:cpu` on synthetic scans, in turns:

- bare: no augmentation, one batch of slices;
- with augmentation;
- as in the loop: it also draws slices, reads reports, moves the progress bar and checks pending writes;
- the same with slices from disk;
- the same with a checkpoint at the start, which is written in the background during the steps.

An epoch has one checkpoint.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax

from brainseg_jax.config import default_config
from brainseg_jax.runs.checkpoint import Checkpoints
from brainseg_jax.runs.metrics_log import MetricsLog
from brainseg_jax.training.experiment import Experiment, build_experiment
from brainseg_jax.training.loop_state import LoopState

REPORT_EVERY = 10  # steps between reports: `train.log_every`
STEPS = 3 * REPORT_EVERY  # per block; the block before has prefetched the slices of two of them
FROM_DISK = "input from disk, log and bar"


def main() -> None:
    """Prints the medians and shares and writes `overhead.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=4)
    repetitions = parser.parse_args().repetitions
    with tempfile.TemporaryDirectory() as folder:
        bare = _experiment(Path(folder), "memory", augmented=False)
        whole, on_disk = (_experiment(Path(folder), residence) for residence in ("memory", "disk"))
        checkpoints = Checkpoints(Path(folder) / "checkpoints")
        with MetricsLog(
            Path(folder), epochs=1, steps_per_epoch=whole.steps_per_epoch, resumed_epoch=0, enabled=True
        ) as metrics_log:
            blocks = {
                "bare": _Block(bare),
                "augmentation": _Block(whole),
                "input, log and bar": _Block(whole, _loop_work(whole, checkpoints, metrics_log)),
                FROM_DISK: _Block(on_disk, _loop_work(on_disk, checkpoints, metrics_log)),
                "checkpoint": _Block(whole, _loop_work(whole, checkpoints, metrics_log), checkpoints),
            }
            seconds: dict[str, list[float]] = {name: [] for name in blocks}
            for block in blocks.values():  # compiles
                block.seconds()
            for repetition in range(repetitions):
                turn = repetition % len(
                    blocks
                )  # the order rotates, so that no block is always first or after the checkpoint
                for name in [*blocks][turn:] + [*blocks][:turn]:
                    seconds[name].append(blocks[name].seconds())
        checkpoints.close()
        on_disk.feed.close()
    _report({name: statistics.median(values) for name, values in seconds.items()}, whole.steps_per_epoch)


class _Block:
    """Updates of a separate state."""

    def __init__(self, experiment: Experiment, around: Callable | None = None, checkpoints: Checkpoints | None = None):
        self._experiment, self._around, self._checkpoints = experiment, around, checkpoints
        self._state = jax.tree.map(jax.numpy.copy, experiment.initial_state)  # the step donates it
        self._slices = experiment.feed(0)

    def seconds(self) -> float:
        started = time.perf_counter()
        if self._checkpoints:
            self._checkpoints.save(self._state, LoopState(), score=0.0)
        reports = []
        for step in range(int(self._state.step), int(self._state.step) + STEPS):
            slices = self._slices
            if self._around:
                slices = self._experiment.feed(step)
            self._state, report = self._experiment.train_step(self._state, slices)
            reports.append(report)
            if self._around and len(reports) == REPORT_EVERY:
                self._around(reports, step)
                reports = []
        jax.block_until_ready(self._state)
        elapsed = time.perf_counter() - started
        if self._checkpoints:
            self._checkpoints.wait()
        return elapsed


def _experiment(folder: Path, residence: str, *, augmented: bool = True) -> Experiment:
    config = default_config("cpu")
    config.data.source, config.data.dir, config.data.residence = "phantom:20:0", str(folder), residence
    if not augmented:
        config.augment.update(dict.fromkeys(config.augment, 0.0))
    return build_experiment(config)


def _loop_work(experiment: Experiment, checkpoints: Checkpoints, metrics_log: MetricsLog) -> Callable:
    def report_steps(reports: list, step: int) -> None:
        losses = [float(report.loss) for report in jax.device_get(reports)]
        checkpoints.check()
        metrics_log.advance(
            step=step + 1, epoch=1, loss=losses[-1], images_per_second=experiment.sampler.batch_size / losses[-1]
        )

    return report_steps


def _report(medians: dict[str, float], steps_per_epoch: int) -> None:
    epoch = medians["input, log and bar"] / STEPS * steps_per_epoch
    spent = {
        "augmentation": (medians["augmentation"] - medians["bare"]) / STEPS * steps_per_epoch,
        "input, log and bar": (medians["input, log and bar"] - medians["augmentation"]) / STEPS * steps_per_epoch,
        FROM_DISK: (medians[FROM_DISK] - medians["augmentation"]) / STEPS * steps_per_epoch,
        "checkpoint": medians["checkpoint"] - medians["input, log and bar"],
    }
    print(f"medians of {STEPS} steps: " + ", ".join(f"{name} {value:.3f} s" for name, value in medians.items()))
    for name, value in spent.items():
        print(f"{name}: {value:.2f} s, {value / epoch:.1%} of an epoch of {epoch:.1f} s")
    total = sum(value for name, value in spent.items() if name != FROM_DISK) / (epoch + spent["checkpoint"])
    print(f"together, from memory: {total:.1%}")
    content = {f"seconds_of_{STEPS}_steps": medians, "share_of_an_epoch": {n: v / epoch for n, v in spent.items()}}
    Path(__file__).with_name("overhead.json").write_text(json.dumps({**content, "together": total}, indent=1) + "\n")


if __name__ == "__main__":
    main()
