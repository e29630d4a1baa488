"""Checkpoints of a run: the latest two and the best one. Orbax writes them; checksums detect damage."""

import dataclasses
import json
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as policies

from brainseg_jax.errors import InputError, StorageError
from brainseg_jax.runs.processes import on_first_process
from brainseg_jax.training.loop_state import LoopState
from brainseg_jax.training.state import TrainState

DAMAGED = "damaged_checkpoints"  # the folder for unreadable steps, beside `checkpoints`


class Checkpoints:
    """The folder `checkpoints/<step>/` of a run. It always keeps the latest two steps and the best one.

    If the newest step is damaged, training can resume from the one before. Each step has the arrays (`state`) and a
    `record`: the loop state, and dtype, shape and CRC-32 of each array. The record has a CRC-32 too.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        """Opens `folder` and creates it if it is missing. Ignores a step that a killed run wrote only in part.

        With `read_only` it changes nothing, so it does not disturb a run that is training there.
        """
        self.folder = folder.absolute()
        self._ranks: dict[int, tuple[float, int]] = {}  # (score, -epoch) of each step saved or read here
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), _Best(self._ranks)]),
                    read_only=read_only,
                ),
            )

    def best_step(self) -> int:
        """The step of the highest score among those saved or read so far; of equal scores, the earliest."""
        return max(self._ranks, key=self._ranks.__getitem__)

    def steps(self) -> list[int]:
        """All steps in the folder, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, loop: LoopState, *, score: float | None) -> None:
        """Starts writing in the background. The caller may donate the arrays right after.

        Args:
          state: training state.
          loop: loop state.
          score: mean validation Dice; with `train.keep=last`, the epoch; None in the middle of an epoch.

        Raises:
          StorageError: this write, or the one before, failed.
        """
        step = int(state.step)
        record = {"loop": dataclasses.asdict(loop), "score": score, "arrays": _describe(state)}
        self._ranks[step] = _rank(record)
        record["crc32"] = _crc_of_json(record)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        with self._writing():
            if not self._manager.save(step, args=items):  # False if the folder already has a later step
                raise ValueError(f"Orbax refused to save step {step}; the folder has the steps {self.steps()}")

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, LoopState]:
        """Reads a step and compares it with its checksums.

        Args:
          step: one of `steps`.
          like: state of the same shapes. The result gets its shardings; the number of devices may differ from that of
            the save.

        Returns:
          The training state and the loop state, as saved.

        Raises:
          StorageError: a file of the step is missing, unreadable or different from what was written.
          InputError: the step is intact, but its network or optimizer has other arrays than `like`.
        """
        record = self._read_record(step)
        _check_same_arrays(self.folder / str(step), record["arrays"], _describe(like, checksums=False))
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        with self._reading(step):
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))).state
        restored = _describe(state)
        changed = [path for path, entry in record["arrays"].items() if restored[path] != entry]
        if changed:
            raise StorageError(
                f"{self.folder / str(step)} is damaged: {', '.join(changed[:3])}{', ...' if changed[3:] else ''} "
                "differ from their checksums"
            )
        self._ranks[step] = _rank(record)
        return state, LoopState.from_json(record["loop"])

    def restore_best(self, like: TrainState) -> TrainState:
        """Reads the step of the highest score with `restore`. Moves nothing.

        Raises:
          StorageError: this step, or the record of any step, is damaged. Then it is unknown which step is the best.
          InputError: see `restore`.
        """
        for step in self.steps():
            self._ranks[step] = _rank(self._read_record(step))
        return self.restore(self.best_step(), like)[0]

    def recover(self, like: TrainState, *, keep: str = "best") -> tuple[TrainState, LoopState] | None:
        """Checks every step and returns the newest intact one; None in a new run.

        Logs damaged steps and moves them to `damaged_checkpoints`, but only if at least one step is intact.

        Args:
          like: see `restore`.
          keep: "best" if the scores of `save` are validation Dice, "last" if they are epochs. With "best", if the best
            step is lost, the loop state gets the best remaining one.

        Raises:
          StorageError: all steps are damaged. Nothing is moved.
          InputError: see `restore`.
        """
        newest = None
        damaged: dict[int, StorageError] = {}
        for step in reversed(self.steps()):
            try:
                restored = self.restore(step, like)
                newest = newest or restored
            except StorageError as error:
                damaged[step] = error
        if newest is None and damaged:
            raise StorageError(
                "all checkpoints of this run are damaged; nothing was changed:\n"
                + "\n".join(f"  {fault}" for fault in damaged.values())
                + "\nRestore a copy of one, or give a new --workdir to train from the beginning"
            )
        on_first_process("set damaged checkpoints aside", lambda: self._set_aside(damaged), quiet=True)
        if damaged:
            self._manager.reload()
        if newest is None:
            return None
        state, loop = newest
        if keep == "best" and loop.best_epoch:  # otherwise no epoch has a score yet
            loop = self._replace_lost_best(loop)
        return state, loop

    def _replace_lost_best(self, loop: LoopState) -> LoopState:
        dice, minus_epoch = self._ranks[self.best_step()]
        if dice >= loop.best_dice:
            return loop
        lost = f"the checkpoint of the best epoch, {loop.best_epoch} (validation Dice {loop.best_dice:.4f}), is lost"
        if dice == -math.inf:  # the remaining steps have no score, or NaN
            logging.warning(
                "%s, and no other epoch with a score remains; results will use the best epoch from now on", lost
            )
            return dataclasses.replace(loop, best_dice=LoopState().best_dice, best_epoch=loop.epoch)
        logging.warning(
            "%s; the best remaining one is epoch %d (%.4f), and results will use the best from now on",
            *(lost, -minus_epoch, dice),
        )
        return dataclasses.replace(loop, best_dice=dice, best_epoch=-minus_epoch)

    def check(self) -> None:
        """Raises StorageError if a write in the background has failed. Does not wait."""
        with self._writing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits for pending writes. Raises StorageError if one failed."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits for pending writes and closes the folder."""
        with self._writing():
            self._manager.close()

    def _read_record(self, step: int) -> dict:
        with self._reading(step):
            record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
            if record.pop("crc32") != _crc_of_json(record):
                raise ValueError("the record differs from its checksum")
        return record

    def _set_aside(self, damaged: dict[int, StorageError]) -> None:
        folder = self.folder.parent / DAMAGED
        for step, error in damaged.items():
            folder.mkdir(exist_ok=True)
            target = folder / f"{step}.{len(list(folder.glob(f'{step}.*')))}"
            (self.folder / str(step)).rename(target)
            logging.warning("%s. Moved it to %s", error, target)

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # damaged files raise many types in Orbax, tensorstore and json
            raise StorageError(
                f"{self.folder / str(step)} is damaged ({type(error).__name__}: {_first_line(error)})"
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # from tensorstore, the file system or Orbax's thread
            raise StorageError(
                f"a checkpoint cannot be written in {self.folder}: {_first_line(error)}. Earlier steps are intact. "
                "Make room or make the folder writable; then the same command resumes from the latest step"
            ) from error


def saved_steps(folder: Path) -> list[int]:
    """The steps in a folder of checkpoints, ascending. Ignores incomplete ones; the folder may be missing."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


@dataclasses.dataclass
class _Best(policies.PreservationPolicy):
    """Preserves the step of the highest rank."""

    ranks: dict[int, tuple[float, int]]

    def should_preserve(self, checkpoints: list, *, context: object) -> list[bool]:
        del context
        best = max((c.step for c in checkpoints if c.step in self.ranks), key=self.ranks.__getitem__, default=None)
        return [c.step == best for c in checkpoints]


def _rank(record: dict) -> tuple[float, int]:
    score = record["score"] if "score" in record else record["dice"]  # "dice" in older runs
    return (-math.inf if score is None or math.isnan(score) else score, -record["loop"]["epoch"])


def _describe(state: TrainState, *, checksums: bool = True) -> dict[str, list]:
    """Maps the path of each array of the state to dtype, shape and, with `checksums`, the CRC-32 of its bytes."""

    def entry(array: jax.Array) -> list:
        # numpy's type hints do not declare that an array is a buffer.
        crc = [zlib.crc32(np.ascontiguousarray(array))] if checksums else []  # type: ignore[arg-type]
        return [str(array.dtype), list(array.shape), *crc]

    return {jax.tree_util.keystr(path): entry(array) for path, array in jax.tree_util.tree_leaves_with_path(state)}


def _check_same_arrays(folder: Path, saved: dict[str, list], expected: dict[str, list]) -> None:
    lines = []
    for path in sorted(saved.keys() | expected.keys()):
        before, now = (" ".join(map(str, tree[path][:2])) if path in tree else "none" for tree in (saved, expected))
        if before != now:
            lines.append(f"  {path}: {before} in the checkpoint, {now} now")
    if lines:
        rest = [f"  and {len(lines) - 10} more"] if lines[10:] else []
        raise InputError(
            f"{folder} has another network or optimizer than this code builds; use the code that wrote it, or "
            "give a new --workdir:\n" + "\n".join(lines[:10] + rest)
        )


def _crc_of_json(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
