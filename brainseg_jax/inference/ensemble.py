"""One or several networks that predict a volume together."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from brainseg_jax import sharding
from brainseg_jax.data.canvas import Canvas
from brainseg_jax.data.normalization import fit
from brainseg_jax.inference.network import Inputs, Network, Runner
from brainseg_jax.inference.postprocess import PostProcess, make_masks
from brainseg_jax.scans.description import Description
from brainseg_jax.scans.volume import Volume

BATCH_SIZE = 16  # slices at a time: one shape for every scan, and little padding at the end of each


class Member(NamedTuple):
    """One prediction of a volume, on a network's grid."""

    maps: np.ndarray  # [n, side, side, K] float32
    canvas: Canvas


@dataclasses.dataclass(frozen=True, eq=False)
class Maps:
    """What is predicted of a volume, on its own grid.

    Attributes:
      probability: of each target, [S, H, W, K] float32, the mean over all members: networks, and mirror images where
        they are asked for.
      uncertainty: standard deviation over the members, [S, H, W, K] float32; 0 everywhere for a single one.
    """

    probability: np.ndarray
    uncertainty: np.ndarray


class Ensemble:
    """Networks of the same channels and targets, on the devices.

    Attributes:
      description: of all of them.
      members: number of predictions that are averaged.
      posts: what makes masks of probabilities, one for each target.
    """

    def __init__(self, networks: Sequence[Network], posts: Sequence[PostProcess], *, mirror: bool | None) -> None:
        """Compiles nothing yet.

        Args:
          networks: one or more, of one description; each is shown slices of its own size and normalization.
          posts: of the ensemble, one for each target.
          mirror: whether mirror images are predicted too; None: by each network as it was scored.
        """
        self.description: Description = networks[0].description
        self.posts = tuple(posts)
        mirrored = [network.mirror if mirror is None else mirror for network in networks]
        self._networks = [
            dataclasses.replace(network, mirror=on) for network, on in zip(networks, mirrored, strict=True)
        ]
        self._runner = Runner(sharding.data_mesh(), BATCH_SIZE)
        self.members = sum(network.views * (1 + network.mirror) for network in self._networks)

    @property
    def seconds(self) -> float:
        """Spent in the networks so far."""
        return self._runner.seconds

    def compile(self) -> None:
        """Compiles the networks for the size of image that they were trained on."""
        for network in self._networks:
            side, channels = network.image_size, len(network.description.channels)
            blank = np.zeros((1, side, side, channels), np.uint8)
            list(self._runner.run(network, [network.inputs(blank, fit(blank, network.normalization))]))
        self._runner.seconds = 0.0

    def prepare(self, volume: Volume) -> list[list[tuple[Inputs, Canvas]]]:
        """What each network is shown of a volume in each of its views."""
        return [network.prepare(volume) for network in self._networks]

    def predict(
        self, prepared: Sequence[Sequence[tuple[Inputs, Canvas]]], on_slices: Callable[[int], None] = lambda count: None
    ) -> list[Member]:
        """Runs the networks.

        Args:
          prepared: of `prepare`.
          on_slices: called with the number of slices that the last network has predicted, batch by batch.
        """
        members = []
        for number, (network, views) in enumerate(zip(self._networks, prepared, strict=True), start=1):
            heard = {"on_slices": on_slices} if number == len(prepared) else {}
            outputs = self._runner.run(network, [inputs for inputs, _ in views], **heard)
            for output, (_, canvas) in zip(outputs, views, strict=True):
                members += [Member(maps, canvas) for maps in output.members]
        return members

    def masks(self, probability: np.ndarray, canvas: Canvas) -> np.ndarray:
        """Masks of a volume, see `make_masks`; `canvas` is that of the first network."""
        return make_masks(probability, self.posts, self.description, canvas)


def combine(members: Sequence[Member]) -> Maps:
    """Brings the members of an ensemble onto the grid of the volume, and takes their mean and standard deviation.

    One member at a time (Welford 1962, Technometrics 4), as a volume of many members would not fit into memory.
    """
    mean, squares = 0.0, 0.0
    for count, (maps, canvas) in enumerate(members, start=1):
        probability = canvas.from_network(maps)
        change = probability - mean
        mean = mean + change / np.float32(count)
        squares = squares + change * (probability - mean)
    return Maps(mean, np.sqrt(squares / np.float32(len(members))))
