"""Checkpoints of a run: the latest two and the best. Orbax writes them; checksums prove them whole."""

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
from brainseg_jax.training.loop_state import LoopState
from brainseg_jax.training.state import TrainState

DAMAGED = "damaged_checkpoints"  # where a step that cannot be read is put, beside `checkpoints`


class Checkpoints:
    """The folder `checkpoints/<step>/` of a run: always the latest two steps and the best one.

    Two of the latest, so that there is one to go back to where the newest is damaged. Each holds the arrays (`state`)
    and a `record`: the loop's memory, and the dtype, shape and CRC-32 of each array and of the record itself.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        """Opens `folder`, which is made where it is missing; a step half-written by a killed run is ignored.

        `read_only` changes nothing in it, so that a run that goes on there is not disturbed.
        """
        self.folder = folder.absolute()
        self._ranks: dict[int, tuple[float, int]] = {}  # of the steps saved or read here: (score, -epoch)
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), _Best(self._ranks)]),
                    read_only=read_only,
                ),
            )

    def best_step(self) -> int:
        """The step of the highest score, the earliest one of a tie, of those saved or read so far."""
        return max(self._ranks, key=self._ranks.__getitem__)

    def steps(self) -> list[int]:
        """The steps that are kept, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, loop: LoopState, *, score: float | None) -> None:
        """Starts writing, in the background; the arrays may be donated right after.

        Args:
          state: of the training.
          loop: the loop's memory.
          score: mean validation Dice; the epoch where the last is kept; None in the middle of an epoch.

        Raises:
          StorageError: this write, or the one before, failed.
        """
        step = int(state.step)
        record = {"loop": dataclasses.asdict(loop), "score": score, "arrays": _describe(state)}
        self._ranks[step] = _rank(record)
        record["crc32"] = _crc_of_json(record)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        with self._writing():
            if not self._manager.save(step, args=items):  # so it answers where a later step lies there already
                raise ValueError(f"Orbax refused step {step} beside the steps {self.steps()}")

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, LoopState]:
        """Reads a step back and compares it with its checksums.

        Args:
          step: of `steps`.
          like: a state of the same shapes, laid on the devices as the result should be; of any number of devices.

        Returns:
          both, as they were saved.

        Raises:
          StorageError: something of the step is missing, unreadable or not what was written.
          InputError: the step is whole, but of a network or optimizer of other arrays than `like`.
        """
        record = self._read_record(step)
        _check_same_arrays(self.folder / str(step), record["arrays"], _describe(like, checksums=False))
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        with self._reading(step):
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))).state
        found = _describe(state)
        changed = [path for path, entry in record["arrays"].items() if found[path] != entry]
        if changed:
            raise StorageError(
                f"{self.folder / str(step)} is damaged: {', '.join(changed[:3])}{', ...' if changed[3:] else ''} "
                "differ from their checksums"
            )
        self._ranks[step] = _rank(record)
        return state, LoopState.from_json(record["loop"])

    def restore_best(self, like: TrainState) -> TrainState:
        """Reads the step of the highest score, as `restore` does; a damaged step is an error, not moved."""
        for step in self.steps():
            self._ranks[step] = _rank(self._read_record(step))
        return self.restore(self.best_step(), like)[0]

    def recover(self, like: TrainState, *, keep: str = "best") -> tuple[TrainState, LoopState] | None:
        """Checks every step that is kept and returns the newest whole one; None in a new run.

        Damaged steps are named in the log and moved to `damaged_checkpoints`, but only where a whole one is left.

        Args:
          like: as for `restore`.
          keep: what the scores of `save` are: best, of the validation Dice, or last, of the epoch. A loss of the
            best one matters only where it is kept.

        Raises:
          StorageError: there are steps, and all are damaged; nothing is moved.
          InputError: see `restore`.
        """
        newest, damaged = None, {}
        for step in reversed(self.steps()):
            try:
                restored = self.restore(step, like)
                newest = newest or restored
            except StorageError as error:
                damaged[step] = error
        if newest is None and damaged:
            raise StorageError(
                "no checkpoint of this run is whole, and nothing was changed:\n"
                + "\n".join(f"  {fault}" for fault in damaged.values())
                + "\nPut back a copy of one, or give a new --workdir to train from the beginning"
            )
        for step, fault in damaged.items():
            self._set_aside(step, fault)
        if newest is None:
            return None
        state, loop = newest
        if keep == "best" and loop.best_epoch:  # else no epoch is scored yet, and there is none to lose
            loop = self._without_lost_best(loop)
        return state, loop

    def _without_lost_best(self, loop: LoopState) -> LoopState:
        dice, minus_epoch = self._ranks[self.best_step()]
        if dice >= loop.best_dice:
            return loop
        lost = f"the checkpoint of the best epoch, {loop.best_epoch} (validation Dice {loop.best_dice:.4f}), is lost"
        if dice == -math.inf:  # what is left was saved in the middle of an epoch, or scored no number
            logging.warning(
                "%s and none of another scored epoch is left; results will be of the best from here on", lost
            )
            return dataclasses.replace(loop, best_dice=LoopState().best_dice, best_epoch=loop.epoch)
        logging.warning(
            "%s; the best that is left is epoch %d (%.4f), and results will be of the best from here on",
            *(lost, -minus_epoch, dice),
        )
        return dataclasses.replace(loop, best_dice=dice, best_epoch=-minus_epoch)

    def check(self) -> None:
        """Raises StorageError where a write in the background has failed; costs nothing."""
        with self._writing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits for writes under way; raises StorageError where one failed."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits for writes under way and lets go of the folder."""
        with self._writing():
            self._manager.close()

    def _read_record(self, step: int) -> dict:
        with self._reading(step):
            record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
            if record.pop("crc32") != _crc_of_json(record):
                raise ValueError("the record differs from its checksum")
        return record

    def _set_aside(self, step: int, error: StorageError) -> None:
        folder = self.folder.parent / DAMAGED
        taken = len(list(folder.glob(f"{step}.*")))
        target = folder / f"{step}.{taken}"
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(target)
        self._manager.reload()
        logging.warning("%s. It was moved to %s, and an earlier step is used", error, target)

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax, tensorstore and json raise a dozen kinds on damaged files
            raise StorageError(
                f"{self.folder / str(step)} is damaged ({type(error).__name__}: {_first_line(error)})"
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of tensorstore, the file system or Orbax's own thread
            raise StorageError(
                f"a checkpoint cannot be written in {self.folder}: {_first_line(error)}. Steps finished before stay "
                "whole. Make room or writable, then the same command goes on from the latest"
            ) from error


def saved_steps(folder: Path) -> list[int]:
    """The steps that lie in a folder of checkpoints, which may be missing; one half-written is none."""
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
    score = record["score"] if "score" in record else record["dice"]  # its name in older runs
    return (-math.inf if score is None or math.isnan(score) else score, -record["loop"]["epoch"])


def _describe(state: TrainState, *, checksums: bool = True) -> dict[str, list]:
    """Path of each array in the state: dtype, shape and, if wanted, CRC-32 of its bytes."""

    def entry(array: jax.Array) -> list:
        # numpy's types do not show that an array is a buffer.
        crc = [zlib.crc32(np.ascontiguousarray(array))] if checksums else []  # type: ignore[arg-type]
        return [str(array.dtype), list(array.shape), *crc]

    return {jax.tree_util.keystr(path): entry(array) for path, array in jax.tree_util.tree_leaves_with_path(state)}


def _check_same_arrays(folder: Path, saved: dict[str, list], wanted: dict[str, list]) -> None:
    lines = []
    for path in sorted(saved.keys() | wanted.keys()):
        before, now = (" ".join(map(str, tree[path][:2])) if path in tree else "none" for tree in (saved, wanted))
        if before != now:
            lines.append(f"  {path}: {before} in the checkpoint, {now} now")
    if lines:
        more = [f"  and {len(lines) - 10} more"] if lines[10:] else []
        raise InputError(
            f"{folder} is of another network or optimizer than this code makes; use the code that wrote it, or give a "
            "new --workdir:\n" + "\n".join(lines[:10] + more)
        )


def _crc_of_json(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
