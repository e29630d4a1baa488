"""Writes the segmenter of `whole` as one ONNX file, with the same steps as ONNX nodes."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper

from brainseg_jax.inference.network import Network
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.scans.description import Description
from brainseg_jax.sharing.graph import Graph, NetworkNodes
from brainseg_jax.sharing.whole import BLOCK, HALF, resize_weights


def to_onnx(network: Network, posts: Sequence[PostProcess], size: int) -> bytes:
    """The content of the file; see `whole.make_segmenter` for the arguments.

    The input is `scan`; the outputs are `probability`, and `mask` for one target or `labels` for several.
    """
    graph, description = Graph(), network.description
    constants = _fit(graph, network.normalization, len(description.channels))
    grid: list[str | int | None] = ["slices", size, size]
    shape = grid if len(posts) == 1 else [*grid, len(posts)]
    map_name = "mask" if len(posts) == 1 else "labels"
    zero, one, block = (np.array(value, np.int64) for value in (0, 1, BLOCK))
    count = graph.add("Gather", graph.add("Shape", "scan"), zero)
    last = graph.add("Sub", count, one)
    body = Graph(graph)
    # The last block repeats the last slice; the repetitions are cut off after the loop.
    indices = body.add("Min", body.add("Add", "start", np.arange(BLOCK)), last)
    block_outputs = _segment_slices(body, indices, last, constants, network, posts, size)
    stacked = graph.scan(body, [], "start", graph.add("Range", zero, count, block), block_outputs)
    for blocks, name, block_shape in zip(stacked, ("probability", map_name), (shape[1:], grid[1:]), strict=True):
        padded = graph.add("Reshape", blocks, np.array([-1, *block_shape], np.int64))
        ends = np.array([0], np.int64), graph.add("Unsqueeze", count, np.array([0], np.int64))
        graph.add("Slice", padded, *ends, name=name)
    model = graph.model(
        [helper.make_tensor_value_info("scan", TensorProto.FLOAT, [*grid, len(description.channels)])],
        [
            helper.make_tensor_value_info("probability", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info(map_name, TensorProto.UINT8, grid),
        ],
    )
    return model.SerializeToString()


def _segment_slices(
    graph: Graph,
    indices: str,
    last: str,
    constants: Sequence[str | np.ndarray],
    network: Network,
    posts: Sequence[PostProcess],
    size: int,
) -> tuple[str, str]:
    """Probability, and mask or label map, of the slices `indices` [BLOCK]. `last`: index of the last slice."""
    add, description = graph.add, network.description
    channels, zero = len(description.channels), np.array(0, np.int64)
    neighbors = []
    for offset in range(-network.context, network.context + 1):  # see `canvas.with_neighbors`
        neighbor = add("Min", add("Max", add("Add", indices, np.array(offset, np.int64)), zero), last)
        neighbors.append(_images(graph, add("Gather", "scan", neighbor, axis=0), constants, network, channels, size))
    x = add("Concat", *neighbors, axis=1) if network.context else neighbors[0]
    probability = _probability(graph, network, x)
    up = resize_weights(network.image_size, size)
    if up is not None:
        probability = add("MatMul", up, add("MatMul", probability, np.ascontiguousarray(up.T)))
    if len(posts) == 1:
        probability = add("Squeeze", probability, np.array([1], np.int64))
        over = add("GreaterOrEqual", probability, _scalar(posts[0].threshold))
        return probability, add("Cast", over, to=TensorProto.UINT8)
    probability = add("Transpose", probability, perm=[0, 2, 3, 1])
    return probability, _labels(graph, probability, posts, description)


def _levels(graph: Graph, slices: str) -> str:
    """Rounds to the integer levels of 8-bit pixels."""
    return graph.add("Clip", graph.add("Floor", graph.add("Add", slices, _scalar(0.5))), _scalar(0.0), _scalar(255.0))


def _images(
    graph: Graph, slices: str, constants: Sequence[str | np.ndarray], network: Network, channels: int, size: int
) -> str:
    """Converts slices [B, H, W, C] to images of the network, [B, C, side, side]."""
    add = graph.add
    x = add("Transpose", _levels(graph, slices), perm=[0, 3, 1, 2])
    down = resize_weights(size, network.image_size)
    if down is not None:
        x = add("Floor", add("Add", add("MatMul", x, np.ascontiguousarray(down.T)), HALF))
        x = add("Floor", add("Add", add("MatMul", down, x), HALF))
    lower, upper, mean, inverse_std = (
        add("Reshape", value, np.array([1, channels, 1, 1], np.int64)) for value in constants
    )
    return add("Mul", add("Sub", add("Min", add("Max", x, lower), upper), mean), inverse_std)


def _labels(graph: Graph, probability: str, posts: Sequence[PostProcess], description: Description) -> str:
    """See `whole._label_map`; probability [S, H, W, K]."""
    add = graph.add
    thresholds = np.array([post.threshold for post in posts], np.float32)
    reached = add("GreaterOrEqual", probability, thresholds)
    if description.exclusive:
        highest = add("ArgMax", add("Where", reached, probability, _scalar(-1.0)), axis=3, keepdims=1)
        reached = add("And", reached, add("Equal", np.arange(len(posts)), highest))
    masks = [add("Gather", reached, np.array(index, np.int64), axis=3) for index in range(len(posts))]
    for inner, outer in description.nested:
        masks[inner] = add("And", masks[inner], masks[outer])
    labels: str | np.ndarray = np.array(0, np.int64)
    for mask, value in zip(masks, description.painted, strict=True):
        labels = add("Where", mask, np.array(value, np.int64), labels)
    return add("Cast", labels, to=TensorProto.UINT8)


def _probability(graph: Graph, network: Network, x: str) -> str:
    add, nodes = graph.add, NetworkNodes(graph, network.model, network.variables)
    probability = add("Sigmoid", nodes.logits(x))
    if not network.mirror:
        return probability
    mirrored = _mirrored(graph, add("Sigmoid", nodes.logits(_mirrored(graph, x))))
    return add("Mul", add("Add", probability, mirrored), _scalar(0.5))


def _mirrored(graph: Graph, x: str) -> str:
    start, end, axis, step = (np.array([n], np.int64) for n in (-1, np.iinfo(np.int64).min, 3, -1))
    return graph.add("Slice", x, start, end, axis, step)


def _fit(graph: Graph, method: str, channels: int) -> tuple[str | np.ndarray, ...]:
    """See `whole._fit`. Returns lower, upper, mean and inverse standard deviation, each [C]."""
    add = graph.add
    zeros = np.zeros(channels, np.float32)
    if method == "rescale":
        return zeros, zeros + 255, zeros, zeros + np.float32(1 / 255)
    counts = _histogram(graph, channels)
    upper = _percentile(graph, counts, 99)
    levels = np.arange(256, dtype=np.float32)[None]
    column, one, zero = np.array([1], np.int64), _scalar(1.0), _scalar(0.0)
    if method == "volume_median":
        head = add("Greater", levels * 5, add("Unsqueeze", upper, column))
        median = _percentile(graph, add("Where", head, counts, np.int64(0)), 50)
        nonzero = add("Greater", upper, zero)
        inverse = add("Where", nonzero, add("Div", one, add("Max", median, one)), zero)
        return zeros, upper, add("Where", nonzero, median, zero), inverse
    lower = _percentile(graph, counts, 10)
    number = add("ReduceSum", counts, column, keepdims=1)
    shares = add("Div", *(add("Cast", x, to=TensorProto.FLOAT) for x in (counts, number)))
    low, high = (add("Unsqueeze", x, column) for x in (lower, upper))
    clipped = add("Min", add("Max", levels, low), high)
    mean = add("ReduceSum", add("Mul", shares, clipped), column, keepdims=1)
    deviation = add("Sub", clipped, mean)
    variance = add("ReduceSum", add("Mul", shares, add("Mul", deviation, deviation)), column, keepdims=0)
    varies = add("Greater", upper, lower)
    inverse = add("Div", one, add("Sqrt", add("Where", varies, variance, one)))
    return lower, upper, mean, add("Where", varies, inverse, zero)


def _histogram(graph: Graph, channels: int) -> str:
    """Counts of the 256 levels in each channel of the scan, [C, 256] int64, summed slice by slice."""
    body = Graph(graph)
    add = body.add
    slice_ = add("Transpose", _levels(body, "slice"), perm=[2, 0, 1])
    pixels = add("Cast", add("Reshape", slice_, np.array([channels, -1], np.int64)), to=TensorProto.INT64)
    ones = add("Expand", np.array([[1]], np.int64), add("Shape", pixels))
    counts = add("ScatterElements", "counts", pixels, ones, axis=1, reduction="add")
    state = [("counts", counts, np.zeros((channels, 256), np.int64))]
    return graph.scan(body, state, "slice", "scan", [])[0]


def _percentile(graph: Graph, counts: str, percent: int) -> str:
    """See `whole._percentile`; [C] float32. With 64-bit integers no product overflows."""
    add = graph.add
    cumulative = add("CumSum", counts, np.array(1, np.int64))
    last = add("Gather", cumulative, np.array(255, np.int64), axis=1)
    hundred = np.array(100, np.int64)
    rank = add("Mul", add("Sub", last, np.array(1, np.int64)), np.array(percent, np.int64))
    below, rest = add("Div", rank, hundred), add("Mod", rank, hundred)
    above = add("Add", below, add("Min", rest, np.array(1, np.int64)))
    low, high = (_value_at(graph, cumulative, position) for position in (below, above))
    share = add("Div", add("Cast", rest, to=TensorProto.FLOAT), _scalar(100.0))
    return add("Add", low, add("Mul", add("Sub", high, low), share))


def _value_at(graph: Graph, cumulative: str, rank: str) -> str:
    column = np.array([1], np.int64)
    passed = graph.add("LessOrEqual", cumulative, graph.add("Unsqueeze", rank, column))
    return graph.add("ReduceSum", graph.add("Cast", passed, to=TensorProto.FLOAT), column, keepdims=0)


def _scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)
