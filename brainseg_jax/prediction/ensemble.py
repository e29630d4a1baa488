"""One or several trained networks that predict a scan together."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from brainseg_jax import ops, sharding
from brainseg_jax.data.normalization import Normalization, fit, normalize
from brainseg_jax.evaluation.postprocess import PostProcess
from brainseg_jax.evaluation.scores import padded_batches
from brainseg_jax.prediction.canvas import Canvas
from brainseg_jax.scans.scan import Scan
from brainseg_jax.training.forward import forward
from brainseg_jax.training.trained import Trained

BATCH_SIZE = 16  # slices at a time: one shape for every scan, and little padding at the end of each


class Inputs(NamedTuple):
    """What one run is given of a scan."""

    images: np.ndarray  # [S, side, side, 3] uint8
    normalization: Normalization  # each [3], fitted to the whole scan


@dataclass(frozen=True, eq=False)
class Maps:
    """What is predicted of a scan, on its own grid.

    Attributes:
      probability: of tumor, [S, H, W] float32, the mean over all members: runs, and mirror images where they are asked.
      uncertainty: standard deviation over the members, [S, H, W] float32; 0 everywhere of a single one.
    """

    probability: np.ndarray
    uncertainty: np.ndarray


class Ensemble:
    """Trained networks, on the devices.

    Attributes:
      members: predictions that are averaged.
      postprocess: what makes masks of probabilities: that of the first run.
      seconds: spent in the networks so far.
    """

    def __init__(self, runs: list[Trained], *, mirror: bool | None) -> None:
        """Takes the runs.

        Args:
          runs: one or more; each is given slices of its own size and normalization.
          mirror: whether mirror images are predicted too; None: by each run as it was scored.
        """
        self._runs = runs
        self._mirror = [run.mirror if mirror is None else mirror for run in runs]
        self._mesh = sharding.data_mesh()
        self._batch_size = -(-BATCH_SIZE // self._mesh.size) * self._mesh.size
        # The network is an argument that is part of the key: runs of one shape are compiled once.
        self.step = jax.jit(
            _members,
            static_argnames=("model", "mirror"),
            out_shardings=sharding.replicated(self._mesh),
            compiler_options=ops.compiler_options(),
        )
        self.members = sum(1 + mirrored for mirrored in self._mirror)
        self.postprocess: PostProcess = runs[0].postprocess
        self.seconds = 0.0
        if different := [run.folder.name for run in runs if run.postprocess != self.postprocess]:
            logging.warning(
                "masks are made as run %s makes them (%s); %s chose otherwise",
                runs[0].folder.name,
                ", ".join(f"{name} {value}" for name, value in self.postprocess._asdict().items()),
                ", ".join(different),
            )

    def compile(self) -> None:
        """Compiles the networks for the one shape of all scans."""
        for run, mirror in zip(self._runs, self._mirror, strict=True):
            side = run.image_size
            blank = np.zeros((1, side, side, 3), np.uint8)
            self._predict_run(run, mirror, Inputs(blank, fit(blank, run.normalization)), lambda: None)
        self.seconds = 0.0

    def prepare(self, scan: Scan) -> list[Inputs]:
        """What each run is given of a scan."""
        canvas = Canvas.around(scan.voxels.shape[1:3], scan.spacing)
        images = {side: canvas.to_network(scan.voxels, side) for side in {run.image_size for run in self._runs}}
        constants = {name: fit(scan.voxels, name) for name in {run.normalization for run in self._runs}}
        return [Inputs(images[run.image_size], constants[run.normalization]) for run in self._runs]

    def predict(self, inputs: list[Inputs], on_slice: Callable[[], None]) -> list[np.ndarray]:
        """Runs the networks.

        Args:
          inputs: of `prepare`.
          on_slice: called after each slice of the scan, when the last run has predicted it.

        Returns:
          probabilities of each member, [S, side, side] float32 of that member's run.
        """
        members = []
        for place, (run, mirror, given) in enumerate(zip(self._runs, self._mirror, inputs, strict=True), start=1):
            members += self._predict_run(run, mirror, given, on_slice if place == len(inputs) else lambda: None)
        return members

    def _predict_run(
        self, run: Trained, mirror: bool, inputs: Inputs, on_slice: Callable[[], None]
    ) -> list[np.ndarray]:
        everywhere, divided = sharding.replicated(self._mesh), sharding.over_batch(self._mesh)
        constants = jax.tree.map(partial(sharding.put, sharding=everywhere), inputs.normalization)
        batches = []
        for indices, valid in padded_batches(np.arange(len(inputs.images)), self._batch_size):
            start = time.perf_counter()
            images = sharding.put(inputs.images[indices], divided)
            predicted = self.step(run.variables, images, constants, model=run.model, mirror=mirror)
            batches.append(np.asarray(predicted)[:, valid])
            self.seconds += time.perf_counter() - start
            for _ in range(int(valid.sum())):
                on_slice()
        return list(np.concatenate(batches, axis=1))


def combine(members: list[np.ndarray], canvas: Canvas) -> Maps:
    """Brings the members of an ensemble onto the grid of the scan, and takes their mean and standard deviation.

    One member at a time (Welford 1962, Technometrics 4), as a scan of many members would not fit into memory.
    """
    mean, squares = 0.0, 0.0
    for count, member in enumerate(members, start=1):
        probability = canvas.from_network(member)
        change = probability - mean
        mean = mean + change / np.float32(count)
        squares = squares + change * (probability - mean)
    return Maps(mean, np.sqrt(squares / np.float32(len(members))))


def _members(variables: dict, images: jax.Array, constants: Normalization, *, model, mirror: bool) -> jax.Array:
    """Probabilities of each member, [M, B, S, S]; images [B, S, S, 3] uint8 of one scan, constants each [3]."""
    normalized = jax.vmap(normalize, in_axes=(0, None))(images, constants)
    return jax.numpy.stack(forward(model, variables, normalized, mirror=mirror).members)[..., 0]
