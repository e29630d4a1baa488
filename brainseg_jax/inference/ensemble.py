"""One or several networks that predict a volume together."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from brainseg_jax import sharding
from brainseg_jax.data.canvas import Canvas
from brainseg_jax.data.normalization import fit
from brainseg_jax.inference.network import Inputs, Network, Runner
from brainseg_jax.inference.postprocess import PostProcess, make_masks
from brainseg_jax.scans.description import Description
from brainseg_jax.scans.volume import Volume

# Slices per batch. A fixed size avoids recompilation. A CPU is as fast with few, and then little of the last batch is
# padding; a GPU needs more.
BATCH_SIZE, CPU_BATCH_SIZE = 16, 4


class Member(NamedTuple):
    """One prediction of a volume, on a network's grid."""

    maps: np.ndarray  # [n, side, side, K] float32
    canvas: Canvas


@dataclasses.dataclass(frozen=True, eq=False)
class Maps:
    """The prediction of a volume, on its native grid.

    Attributes:
      probability: [S, H, W, K] float32, the mean over all members: networks, views and mirror images.
      uncertainty: [S, H, W, K] float32, the standard deviation over the members; 0 for a single member. None if it was
        not requested.
    """

    probability: np.ndarray
    uncertainty: np.ndarray | None


class Ensemble:
    """Networks with the same channels and targets; predicts volumes on all devices.

    Attributes:
      description: description of all networks.
      num_predictions: number of predictions that are averaged.
      posts: post-processing of each target.
    """

    def __init__(self, networks: Sequence[Network], posts: Sequence[PostProcess], *, mirror: bool | None) -> None:
        """Compiles nothing yet.

        Args:
          networks: one or more, with the same description; each has its own image size and normalization.
          posts: post-processing of the ensemble, one per target.
          mirror: whether to predict mirror images as well; None: the setting with which each network was scored.
        """
        self.description: Description = networks[0].description
        self.posts = tuple(posts)
        mirrored = [network.mirror if mirror is None else mirror for network in networks]
        self._networks = [
            dataclasses.replace(network, mirror=enabled) for network, enabled in zip(networks, mirrored, strict=True)
        ]
        on_cpu = jax.default_backend() == "cpu"
        self._runner = Runner(sharding.data_mesh(), CPU_BATCH_SIZE if on_cpu else BATCH_SIZE)
        self.num_predictions = sum(network.views * (1 + network.mirror) for network in self._networks)

    @property
    def seconds(self) -> float:
        """Total time in the networks."""
        return self._runner.seconds

    def compile(self) -> None:
        """Runs each network once on a blank slice, so that JAX compiles it, and resets the timer."""
        for network in self._networks:
            side, channels = network.image_size, len(network.description.channels)
            blank = np.zeros((1, side, side, channels), np.uint8)
            list(self._runner.run(network, [network.inputs(blank, fit(blank, network.normalization))]))
        self._runner.seconds = 0.0

    def prepare(self, volume: Volume) -> list[list[tuple[Inputs, Canvas]]]:
        """Returns the inputs of each network for a volume, in each of its views."""
        return [network.prepare(volume) for network in self._networks]

    def predict(
        self, prepared: Sequence[Sequence[tuple[Inputs, Canvas]]], on_slices: Callable[[int], None] = lambda count: None
    ) -> list[Member]:
        """Runs the networks.

        Args:
          prepared: result of `prepare`.
          on_slices: called after each batch of the last network with the number of predicted slices.
        """
        members = []
        for number, (network, views) in enumerate(zip(self._networks, prepared, strict=True), start=1):
            inputs = [images for images, _ in views]
            if number == len(prepared):
                outputs = self._runner.run(network, inputs, on_slices=on_slices)
            else:
                outputs = self._runner.run(network, inputs)
            for output, (_, canvas) in zip(outputs, views, strict=True):
                members += [Member(maps, canvas) for maps in output.members]
        return members

    def masks(self, probability: np.ndarray, canvas: Canvas) -> np.ndarray:
        """Returns the masks of a volume, see `make_masks`; `canvas` scales `min_voxels`."""
        return make_masks(probability, self.posts, self.description, canvas)


def combine(members: Sequence[Member], *, uncertainty: bool = True) -> Maps:
    """Resamples the members of an ensemble to the grid of the volume, and returns their mean and standard deviation.

    It resamples one member at a time (Welford 1962, Technometrics 4), because all resampled members of a large volume
    would not fit into memory.
    """
    (maps, canvas), *others = members
    mean = canvas.from_network(maps)
    squared_sum = np.zeros(mean.shape, np.float32) if uncertainty else None
    for count, member in enumerate(others, start=2):
        for block, probability in _on_grid(member):
            delta = probability - mean[block]
            mean[block] += delta / np.float32(count)
            if squared_sum is not None:
                squared_sum[block] += delta * (probability - mean[block])
    if squared_sum is None:
        return Maps(mean, None)
    variance = np.divide(squared_sum, np.float32(len(members)), out=squared_sum)
    return Maps(mean, np.sqrt(variance, out=variance))


def _on_grid(member: Member) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields the index range of a few slices at a time, and their probabilities on the grid of the volume."""
    maps, canvas = member
    if canvas.axis:  # slices along another axis cross all slices of the volume
        maps = canvas.from_network(maps)
    for start in range(0, len(maps), BATCH_SIZE):
        block = slice(start, start + BATCH_SIZE)
        yield block, maps[block] if canvas.axis else canvas.from_network(maps[block])
