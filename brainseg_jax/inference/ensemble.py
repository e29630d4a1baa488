"""One or several networks that predict a volume together."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
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
      uncertainty: standard deviation over the members, [S, H, W, K] float32, 0 everywhere for a single one; None where
        nobody asks for it.
    """

    probability: np.ndarray
    uncertainty: np.ndarray | None


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
            inputs = [one for one, _ in views]
            if number == len(prepared):
                outputs = self._runner.run(network, inputs, on_slices=on_slices)
            else:
                outputs = self._runner.run(network, inputs)
            for output, (_, canvas) in zip(outputs, views, strict=True):
                members += [Member(maps, canvas) for maps in output.members]
        return members

    def masks(self, probability: np.ndarray, canvas: Canvas) -> np.ndarray:
        """Masks of a volume, see `make_masks`; `canvas` is that of the first network."""
        return make_masks(probability, self.posts, self.description, canvas)


def combine(members: Sequence[Member], *, uncertainty: bool = True) -> Maps:
    """Brings the members of an ensemble onto the grid of the volume, and takes their mean and standard deviation.

    One member at a time (Welford 1962, Technometrics 4), and a few slices at a time, as a volume of many members would
    not fit into memory.
    """
    (maps, canvas), *others = members
    mean = canvas.from_network(maps)
    spread = np.zeros(mean.shape, np.float32) if uncertainty else None
    for count, member in enumerate(others, start=2):
        for block, probability in _on_grid(member):
            change = probability - mean[block]
            mean[block] += change / np.float32(count)
            if spread is not None:
                spread[block] += change * (probability - mean[block])
    if spread is not None and others:
        np.sqrt(np.divide(spread, np.float32(len(members)), out=spread), out=spread)
    return Maps(mean, spread)


def _on_grid(member: Member) -> Iterator[tuple[slice, np.ndarray]]:
    """The probabilities of a few slices after another on the grid of the volume, and which slices these are."""
    maps, canvas = member
    if canvas.axis:  # its slices cross all slices of the volume
        maps = canvas.from_network(maps)
    for start in range(0, len(maps), BATCH_SIZE):
        block = slice(start, start + BATCH_SIZE)
        yield block, maps[block] if canvas.axis else canvas.from_network(maps[block])
