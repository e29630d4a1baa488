"""Volumes through trained networks: the one road for validation, test, `evaluate` and `predict`."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from brainseg_jax import ops, sharding
from brainseg_jax.data.canvas import ALL_VIEWS, VIEWS, Canvas, with_neighbors
from brainseg_jax.data.normalization import Normalization, fit, normalize, repeated
from brainseg_jax.inference.forward import Forward, forward
from brainseg_jax.scans.description import Description
from brainseg_jax.scans.volume import Volume


@dataclass(frozen=True, eq=False)
class Network:
    """A network with all that must be known to show it a volume.

    Attributes:
      model: maps [B, side, side, channels], normalized, to logits [B, side, side, K].
      variables: of the model.
      description: channels and targets.
      image_size: height and width of the images it was trained on, in pixels.
      pixel_spacing: see `Canvas.around`.
      view: see `Canvas.of_views`; the probabilities of several views are averaged.
      normalization: a name in `normalization.METHODS`; constants are fitted to each whole volume.
      mirror: whether probabilities are averaged with those of left-right mirror images.
      context: neighboring slices on either side that are further channels of its images.
    """

    model: nn.Module
    variables: dict
    description: Description
    image_size: int
    pixel_spacing: float
    view: str
    normalization: str
    mirror: bool
    context: int = 0

    @property
    def views(self) -> int:
        """How many views of a volume it sees."""
        return len(VIEWS) if self.view == ALL_VIEWS else 1

    def canvases(self, volume: Volume) -> tuple[Canvas, ...]:
        """How slices of the volume become images of this network, in each view."""
        return Canvas.of_views(
            self.view,
            volume.voxels.shape[:3],
            spacing=volume.spacing,
            image_size=self.image_size,
            pixel_spacing=self.pixel_spacing,
            multiple=2**self.model.depth,
        )

    def prepare(self, volume: Volume) -> "list[tuple[Inputs, Canvas]]":
        """What the network is given of a volume in each view, and how its maps come back."""
        constants = fit(volume.voxels, self.normalization)
        canvases = self.canvases(volume)
        return [(self.inputs(canvas.to_network(volume.voxels), constants), canvas) for canvas in canvases]

    def inputs(self, images: np.ndarray, constants: Normalization) -> "Inputs":
        """What the network is given of the slices of a volume, [n, side, side, C] uint8, and their constants [C]."""
        return Inputs(with_neighbors(images, self.context), repeated(constants, self.context))


class Inputs(NamedTuple):
    """What a network is given of one volume in one view."""

    images: np.ndarray  # [n, side, side, channels] uint8, with neighboring slices as further channels
    normalization: Normalization  # each [channels]


class Output(NamedTuple):
    """What a network makes of one volume in one view, on the network's grid.

    Attributes:
      members: probabilities whose mean is the prediction, [M, n, side, side, K] float32: of the slices as they are, and
        of their mirror images, mirrored back.
      attention: [n, side, side, 1] in [0, 1] of the finest attention gate; None for a network without gates.
    """

    members: np.ndarray
    attention: np.ndarray | None

    @property
    def probability(self) -> np.ndarray:
        """The mean of the members, [n, side, side, K] float32."""
        return sum(self.members[1:], start=self.members[0]) / np.float32(len(self.members))


# Called after each batch with its outputs on the devices, the volume and slice of each image as indices [B], and which
# images are no padding, [B] bool.
OnBatch = Callable[[Forward, np.ndarray, np.ndarray, np.ndarray], None]


@dataclass(eq=False)
class _Waiting:
    """A volume whose outputs are not complete yet."""

    index: int
    inputs: Inputs
    members: np.ndarray | None = None
    attention: np.ndarray | None = None
    left: int = 0

    def take(self, members: np.ndarray, attention: np.ndarray | None) -> None:
        """Copies outputs of the next few slices, [M, b, side, side, K] and [b, side, side, 1]."""
        count = len(self.inputs.images)
        start = count - self.left
        self.left -= members.shape[1]
        if self.members is None:  # made at once: parts that are joined at the end lie in memory twice
            self.members = np.empty((len(members), count, *members.shape[2:]), np.float32)
            self.attention = None if attention is None else np.empty((count, *attention.shape[1:]), np.float32)
        self.members[:, start : count - self.left] = members
        if self.attention is not None:
            self.attention[start : count - self.left] = attention

    def output(self) -> Output:
        assert self.members is not None  # complete: `take` was called
        return Output(self.members, self.attention)


class Runner:
    """Runs networks on the devices, slices of several volumes in one batch.

    Attributes:
      mesh: each batch is divided over it.
      batch_size: images a batch, a multiple of the number of devices.
      seconds: spent in the networks so far.
      before_batch: is called before each batch; may raise, to end the work between two.
    """

    def __init__(self, mesh: Mesh, batch_size: int) -> None:
        """Compiles nothing yet; `batch_size` is rounded up to a multiple of the number of devices."""
        self.mesh = mesh
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self.seconds = 0.0
        self.before_batch: Callable[[], None] = lambda: None
        # The network is an argument that is part of the key: networks of one shape are compiled once.
        self._step = jax.jit(
            _normalized_forward,
            static_argnames=("model", "mirror"),
            out_shardings=sharding.replicated(mesh),
            compiler_options=ops.compiler_options(),
        )

    def run(
        self,
        network: Network,
        volumes: Iterable[Inputs],
        *,
        on_batch: OnBatch | None = None,
        on_slices: Callable[[int], None] = lambda count: None,
    ) -> Iterator[Output]:
        """Predicts volumes, one after the other.

        Batches hold slices of volume after volume; the last one, and the last one before images of another size, is
        padded by repeating its last slice. With many processes each must call it with the same arguments.

        Args:
          network: to run.
          volumes: its inputs.
          on_batch: see `OnBatch`.
          on_slices: called after each batch with the number of its slices.

        Yields:
          the output of each volume, in order, as soon as it is complete.
        """
        waiting: deque[_Waiting] = deque()
        batch: list[tuple[_Waiting, int, int]] = []  # volume, first slice and the one after the last
        filled = 0
        for index, inputs in enumerate(volumes):
            if batch and batch[0][0].inputs.images.shape[1:] != inputs.images.shape[1:]:
                self._run_batch(network, batch, on_batch, on_slices)
                batch, filled = [], 0
            volume = _Waiting(index, inputs, left=len(inputs.images))
            waiting.append(volume)
            start = 0
            while start < len(inputs.images):
                stop = min(len(inputs.images), start + self.batch_size - filled)
                batch.append((volume, start, stop))
                filled += stop - start
                start = stop
                if filled == self.batch_size:
                    self._run_batch(network, batch, on_batch, on_slices)
                    batch, filled = [], 0
            while waiting and not waiting[0].left:
                yield waiting.popleft().output()
        if batch:
            self._run_batch(network, batch, on_batch, on_slices)
        while waiting:
            yield waiting.popleft().output()

    def _run_batch(
        self,
        network: Network,
        batch: list[tuple[_Waiting, int, int]],
        on_batch: OnBatch | None,
        on_slices: Callable[[int], None],
    ) -> None:
        self.before_batch()
        counts = [stop - start for _, start, stop in batch]
        padding = self.batch_size - sum(counts)

        def padded(array: np.ndarray) -> np.ndarray:
            return np.concatenate([array, np.repeat(array[-1:], padding, axis=0)]) if padding else array

        images = padded(np.concatenate([volume.inputs.images[start:stop] for volume, start, stop in batch]))
        constants = [
            padded(np.repeat(np.stack(values), counts, axis=0))
            for values in zip(*(volume.inputs.normalization for volume, _, _ in batch), strict=True)
        ]
        divided = sharding.over_batch(self.mesh)
        started = time.perf_counter()
        on_devices, *normalization = (sharding.put(array, divided) for array in (images, *constants))
        outputs = self._step(
            network.variables, on_devices, Normalization(*normalization), model=network.model, mirror=network.mirror
        )
        members = np.stack([np.asarray(member) for member in outputs.members])
        attention = None if outputs.attention is None else np.asarray(outputs.attention)
        self.seconds += time.perf_counter() - started
        if on_batch:
            owners = padded(np.repeat([volume.index for volume, _, _ in batch], counts))
            slices = padded(np.concatenate([np.arange(start, stop) for _, start, stop in batch]))
            on_batch(outputs, owners, slices, np.arange(self.batch_size) < sum(counts))
        begin = 0
        for (volume, _, _), count in zip(batch, counts, strict=True):
            part = slice(begin, begin + count)
            volume.take(members[:, part], None if attention is None else attention[part])
            begin += count
        on_slices(sum(counts))


def _normalized_forward(
    variables: dict, images: jax.Array, constants: Normalization, *, model: nn.Module, mirror: bool
) -> Forward:
    """`forward` of images [B, side, side, C] uint8, with constants each [B, C]."""
    return forward(model, variables, jax.vmap(normalize)(images, constants), mirror=mirror)
