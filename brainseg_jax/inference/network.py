"""Runs trained networks on volumes; validation, test, `evaluate` and `predict` all use this module."""

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
    """A network with everything that is needed to run it on a volume.

    Attributes:
      model: maps normalized [B, side, side, channels] to logits [B, side, side, K].
      variables: variables of the model.
      description: channels and targets.
      image_size: height and width of the training images, in pixels.
      pixel_spacing: see `Canvas.around`.
      view: see `Canvas.of_views`; the probabilities of several views are averaged.
      normalization: a name in `normalization.METHODS`; constants are fitted to each whole volume.
      mirror: whether to average the probabilities with those of left-right mirror images.
      context: number of neighboring slices on either side that are added as channels.
      deterministic: see `ops.compiler_options`.
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
    deterministic: bool = False

    @property
    def views(self) -> int:
        """Number of views of a volume."""
        return len(VIEWS) if self.view == ALL_VIEWS else 1

    def canvases(self, volume: Volume) -> tuple[Canvas, ...]:
        """Returns the canvas that maps slices of the volume to images of this network, for each view."""
        return Canvas.of_views(
            self.view,
            volume.voxels.shape[:3],
            spacing=volume.spacing,
            image_size=self.image_size,
            pixel_spacing=self.pixel_spacing,
            multiple=2**self.model.depth,
        )

    def prepare(self, volume: Volume) -> "list[tuple[Inputs, Canvas]]":
        """Returns the input of the network and the canvas of a volume, for each view."""
        constants = fit(volume.voxels, self.normalization)
        canvases = self.canvases(volume)
        return [(self.inputs(canvas.to_network(volume.voxels), constants), canvas) for canvas in canvases]

    def inputs(self, images: np.ndarray, constants: Normalization) -> "Inputs":
        """Returns the input for slices [n, side, side, C] uint8 of a volume and their constants [C]."""
        return Inputs(with_neighbors(images, self.context), repeated(constants, self.context))


class Inputs(NamedTuple):
    """The input of a network for one volume in one view."""

    images: np.ndarray  # [n, side, side, channels] uint8, with neighboring slices as further channels
    normalization: Normalization  # each [channels]


class Output(NamedTuple):
    """The output of a network for one volume in one view, on the grid of the network.

    Attributes:
      members: [M, n, side, side, K] float32, probabilities; their mean is the prediction. The first is for the slices,
        the second for their mirror images, mirrored back.
      attention: [n, side, side, 1] in [0, 1] of the finest attention gate; None for a network without gates.
    """

    members: np.ndarray
    attention: np.ndarray | None

    @property
    def probability(self) -> np.ndarray:
        """Mean of the members, [n, side, side, K] float32."""
        return sum(self.members[1:], start=self.members[0]) / np.float32(len(self.members))


# Called after each batch with its outputs on the devices, the index of volume and slice of each image [B], and whether
# each image is not padding, [B] bool.
OnBatch = Callable[[Forward, np.ndarray, np.ndarray, np.ndarray], None]


@dataclass(eq=False)
class _Pending:
    """A volume with incomplete output."""

    index: int
    inputs: Inputs
    members: np.ndarray | None = None
    attention: np.ndarray | None = None
    remaining: int = 0

    def store(self, members: np.ndarray, attention: np.ndarray | None) -> None:
        """Copies outputs of the next slices, [M, b, side, side, K] and [b, side, side, 1]."""
        count = len(self.inputs.images)
        start = count - self.remaining
        self.remaining -= members.shape[1]
        if self.members is None:  # one allocation: concatenation at the end needs twice the memory
            self.members = np.empty((len(members), count, *members.shape[2:]), np.float32)
            self.attention = None if attention is None else np.empty((count, *attention.shape[1:]), np.float32)
        self.members[:, start : count - self.remaining] = members
        if self.attention is not None:
            self.attention[start : count - self.remaining] = attention

    def output(self) -> Output:
        assert self.members is not None  # complete: `store` was called
        return Output(self.members, self.attention)


class Runner:
    """Runs networks on the devices, with slices of several volumes in one batch.

    Attributes:
      mesh: batches are divided over it.
      batch_size: images per batch, a multiple of the number of devices.
      seconds: total time in the networks.
      before_batch: called before each batch; it may raise, to stop between two batches.
    """

    def __init__(self, mesh: Mesh, batch_size: int) -> None:
        """Compiles nothing yet; `batch_size` is rounded up to a multiple of the number of devices."""
        self.mesh = mesh
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self.seconds = 0.0
        self.before_batch: Callable[[], None] = lambda: None
        # The network is a static argument, so networks of the same architecture are compiled once.
        self._steps = {
            deterministic: jax.jit(
                _normalized_forward,
                static_argnames=("model", "mirror"),
                out_shardings=sharding.replicated(mesh),
                compiler_options=ops.compiler_options(deterministic=deterministic),
            )
            for deterministic in (False, True)
        }

    def run(
        self,
        network: Network,
        volumes: Iterable[Inputs],
        *,
        on_batch: OnBatch | None = None,
        on_slices: Callable[[int], None] = lambda count: None,
    ) -> Iterator[Output]:
        """Predicts volumes one after the other.

        A batch holds slices of consecutive volumes. A batch is padded with copies of its last slice if it is the last
        one, or the last one before images of another size. With several processes, each must call it with the same
        arguments.

        Args:
          network: network to run.
          volumes: inputs of the network.
          on_batch: see `OnBatch`.
          on_slices: called after each batch with its number of slices.

        Yields:
          the output of each volume, in order, as soon as it is complete.
        """
        pending: deque[_Pending] = deque()
        batch: list[tuple[_Pending, int, int]] = []  # volume, first slice, and end (exclusive)
        filled = 0
        for index, inputs in enumerate(volumes):
            if batch and batch[0][0].inputs.images.shape[1:] != inputs.images.shape[1:]:
                self._run_batch(network, batch, on_batch, on_slices)
                batch, filled = [], 0
            volume = _Pending(index, inputs, remaining=len(inputs.images))
            pending.append(volume)
            start = 0
            while start < len(inputs.images):
                stop = min(len(inputs.images), start + self.batch_size - filled)
                batch.append((volume, start, stop))
                filled += stop - start
                start = stop
                if filled == self.batch_size:
                    self._run_batch(network, batch, on_batch, on_slices)
                    batch, filled = [], 0
            while pending and not pending[0].remaining:
                yield pending.popleft().output()
        if batch:
            self._run_batch(network, batch, on_batch, on_slices)
        while pending:
            yield pending.popleft().output()

    def _run_batch(
        self,
        network: Network,
        batch: list[tuple[_Pending, int, int]],
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
        outputs = self._steps[network.deterministic](
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
            block = slice(begin, begin + count)
            volume.store(members[:, block], None if attention is None else attention[block])
            begin += count
        on_slices(sum(counts))


def _normalized_forward(
    variables: dict, images: jax.Array, constants: Normalization, *, model: nn.Module, mirror: bool
) -> Forward:
    """Applies `forward` to images [B, side, side, C] uint8, with constants [B, C] each."""
    return forward(model, variables, jax.vmap(normalize)(images, constants), mirror=mirror)
