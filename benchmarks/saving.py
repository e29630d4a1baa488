"""What a checkpoint costs the loop at the `:cpu` scale, checksums included, beside steps without one.

    python -m benchmarks.saving

Blocks of training steps of `configs/unet_dice.py:cpu` on made-up scans, turn by turn with and without a save in front,
which goes on in the background during the steps. The share is that of an epoch, which has one save.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax

from brainseg_jax.config import default_config
from brainseg_jax.training.checkpoint import Checkpoints
from brainseg_jax.training.experiment import build_experiment
from brainseg_jax.training.loop_state import LoopState


def main() -> None:
    """Prints the medians and the share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="of a block")
    arguments = parser.parse_args()
    config = default_config("cpu")
    config.data.source = "phantom:20:0"
    with tempfile.TemporaryDirectory() as folder:
        config.data.dir = folder
        experiment = build_experiment(config)
        checkpoints, state = Checkpoints(Path(folder) / "checkpoints"), experiment.initial_state
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for repetition in range(-1, arguments.repetitions):  # the first compiles
            for saves in (True, False):
                started = time.perf_counter()
                if saves:
                    checkpoints.save(state, LoopState(), dice=0.0)
                for step in range(int(state.step), int(state.step) + arguments.steps):
                    indices = experiment.put_batch(experiment.sampler(step))
                    state, _ = experiment.train_step(state, experiment.on_devices, indices)
                jax.block_until_ready(state)
                if repetition >= 0:
                    seconds[saves].append(time.perf_counter() - started)
                checkpoints.wait()
        checkpoints.close()
    with_save, without = (statistics.median(seconds[saves]) for saves in (True, False))
    epoch = without / arguments.steps * experiment.steps_per_epoch
    print(f"{arguments.steps} steps, medians: {with_save:.3f} s with a save, {without:.3f} s without")
    print(f"with: {sorted(round(s, 3) for s in seconds[True])}; without: {sorted(round(s, 3) for s in seconds[False])}")
    print(
        f"one save costs {with_save - without:.3f} s, {(with_save - without) / epoch:.2%} of an epoch of {epoch:.1f} s"
    )


if __name__ == "__main__":
    main()
