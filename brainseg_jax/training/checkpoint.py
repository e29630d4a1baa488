"""Checkpoints of a run: the latest, to go on from, and the best, to be scored. Orbax does the writing."""

import dataclasses
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from brainseg_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class LoopState:
    """What the loop itself remembers between epochs.

    Attributes:
      epoch: epochs finished.
      best_dice: highest mean 3-D Dice on the validation patients; -1 before the first evaluation.
      best_epoch: when that was.
      plateau_wait: epochs since the last better one or the last lowering of the learning rate.
    """

    epoch: int = 0
    best_dice: float = -1.0
    best_epoch: int = 0
    plateau_wait: int = 0


class Checkpoints:
    """The folder `checkpoints/<step>/` of a run: always the latest step and the one of the best validation Dice."""

    def __init__(self, folder: Path):
        """Opens `folder`, which is made where it is missing; a step half-written by a killed run is ignored."""
        self.folder = folder.absolute()
        # max_to_keep with best_fn would delete the latest step, and a resumed run would rewind.
        keep = policies.AnyPreservationPolicy([policies.LatestN(1), policies.BestN(get_metric_fn=_rank, n=1)])
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(preservation_policy=keep, best_fn=_rank, best_mode="max"),
        )

    def latest_step(self) -> int | None:
        """The step to go on from; None in a new run."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the highest validation Dice, the earliest one of a tie; None in a new run."""
        return self._manager.best_step()

    def save(self, state: TrainState, loop: LoopState, *, dice: float) -> None:
        """Starts writing, in the background; the arrays may be donated right after."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), loop=ocp.args.JsonSave(dataclasses.asdict(loop)))
        self._manager.save(int(state.step), args=items, metrics={"dice": dice, "epoch": loop.epoch})

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, LoopState]:
        """Reads a step back.

        Args:
          step: of `latest_step` or `best_step`.
          like: a state of the same shapes, laid on the devices as the result should be; of any number of devices.

        Returns:
          both, as they were saved.
        """
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), loop=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored.state, LoopState(**restored.loop)

    def wait(self) -> None:
        """Waits for writes under way and raises what went wrong in them."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for writes under way and lets go of the folder."""
        self._manager.close()


def _rank(metrics: dict[str, float]) -> tuple[float, int]:
    return metrics["dice"], -metrics["epoch"]
