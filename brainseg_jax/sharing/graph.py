"""A graph of ONNX nodes under construction, and the parts of our networks in it."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 18, 9  # those of 2023: older runtimes read the file too


class Graph:
    """Nodes and constants, each named by its number."""

    def __init__(self, outer: "Graph | None" = None) -> None:
        """An empty graph, or the empty body of a loop in the graph `outer`.

        A body holds the constants that it uses, as onnxruntime prepares the weights of a convolution only there.
        """
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._kept: dict[int, tuple[str, np.ndarray]] = {}
        self._numbers: Iterator[int] = outer._numbers if outer else itertools.count()

    def constant(self, array: np.ndarray) -> str:
        """The name of a constant; the same array, used again, is kept once."""
        if id(array) not in self._kept:
            name = f"constant_{next(self._numbers)}"
            self.constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
            self._kept[id(array)] = (name, array)  # with the array, so that its id stays its own
        return self._kept[id(array)][0]

    def add(self, kind: str, *inputs: str | np.ndarray, name: str | None = None, **attributes: Any) -> str:
        """Adds a node of one output; inputs are names or arrays. Returns the name of its output."""
        names = [given if isinstance(given, str) else self.constant(given) for given in inputs]
        name = name or f"{kind}_{next(self._numbers)}"
        self.nodes.append(helper.make_node(kind, names, [name], name=f"node_{name}", **attributes))
        return name

    def scan(
        self, body: "Graph", state: Sequence[tuple[str, str, np.ndarray]], item: str, items: str, outputs: Sequence[str]
    ) -> list[str]:
        """Adds a loop over the first axis of `items`; the body may use all names of this graph.

        Args:
          body: a graph made with this one as its `outer`.
          state: of each array that goes from turn to turn: its names at the beginning and at the end of the body, and
            its first value.
          item: what the body calls the item of a turn.
          items: an int64 or float32 array of this graph.
          outputs: names in the body of what is kept of each turn.

        Returns:
          the names of the last state, and of the outputs stacked along a new first axis.
        """
        info = helper.make_empty_tensor_value_info
        inputs, results = [name for name, _, _ in state], [name for _, name, _ in state]
        graph = helper.make_graph(
            body.nodes,
            "body",
            [info(name) for name in (*inputs, item)],
            [info(name) for name in (*results, *outputs)],
            initializer=body.constants,
        )
        number = next(self._numbers)
        names = [f"Scan_{number}_{index}" for index in range(len(results) + len(outputs))]
        given = [self.constant(value) for _, _, value in state]
        node = helper.make_node(
            "Scan", [*given, items], names, name=f"node_Scan_{number}", body=graph, num_scan_inputs=1
        )
        self.nodes.append(node)
        return names

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The whole, checked by onnx."""
        graph = helper.make_graph(self.nodes, "brainseg_jax", inputs, outputs, initializer=self.constants)
        model = helper.make_model(
            graph,
            producer_name="brainseg_jax",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        onnx.checker.check_model(model, full_check=True)
        return model


class NetworkNodes:
    """A network of `models` as ONNX nodes on [B, C, H, W]; one made of its variables serves several inputs."""

    def __init__(self, graph: Graph, model: Any, variables: dict) -> None:
        """Takes the network.

        Args:
          graph: to add to.
          model: `UNet` or `AttentionUNet`.
          variables: of the model.
        """
        self.graph, self.model = graph, model
        self.params = variables["params"]
        self.statistics = variables.get("batch_stats", {})
        self._arrays: dict[tuple, np.ndarray] = {}

    def logits(self, x: str) -> str:
        """[B, C, H, W] to [B, K, H, W], see `UNet.__call__`."""
        skips = []
        for level in range(self.model.depth):
            skips.append(self._block(x, f"encoder_{level}"))
            x = self.graph.add("MaxPool", skips[-1], kernel_shape=[2, 2], strides=[2, 2])
        x = self._block(x, "bottleneck")
        for level in reversed(range(self.model.depth)):
            skip = skips[level]
            if f"gate_{level}" in self.params:
                skip = self._gate(skip, x, f"gate_{level}")
            up = self._up(x, f"up_{level}")
            x = self._block(self.graph.add("Concat", up, skip, axis=1), f"decoder_{level}")
        return self._conv(x, ("head",))

    def _block(self, x: str, name: str) -> str:
        for i in (0, 1):
            x = self._conv(x, (name, f"Conv_{i}"))
            key = {"conv": f"BatchNorm_{i}", "block": "BatchNorm_0" if i else None, "none": None}[self.model.norm]
            x = self._norm(x, (name, key)) if key else x
            x = self.graph.add("Relu", x)
        return x

    def _gate(self, skip: str, gating: str, name: str) -> str:
        add = self.graph.add
        sum_ = add("Add", self._conv(skip, (name, "skip"), stride=2), self._conv(gating, (name, "gating")))
        attention = add("Sigmoid", self._conv(add("Relu", sum_), (name, "attention_logit")))
        scales = self._array((2,), lambda: np.array([1.0, 1.0, 2.0, 2.0], np.float32))
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        if self.model.gate_upsampling == "bilinear":
            how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        gated = add("Mul", add("Resize", attention, "", scales, **how), skip)
        return gated if self.model.norm == "none" else self._norm(gated, (name, "BatchNorm_0"))

    def _conv(self, x: str, path: tuple[str, ...], *, stride: int = 1) -> str:
        kernel = self._array((*path, "kernel"), lambda: _at(self.params, path)["kernel"].transpose(3, 2, 0, 1))
        bias = [self._array((*path, "bias"), lambda: _at(self.params, path)["bias"])] if self._has_bias(path) else []
        edge = kernel.shape[-1] // 2
        return self.graph.add("Conv", x, kernel, *bias, pads=[edge] * 4, strides=[stride, stride])

    def _up(self, x: str, name: str) -> str:
        # ONNX does not flip the kernel in space, flax does.
        kernel = self._array(
            (name, "kernel"), lambda: np.flip(self.params[name]["kernel"], (0, 1)).transpose(2, 3, 0, 1)
        )
        bias = self._array((name, "bias"), lambda: self.params[name]["bias"])
        return self.graph.add("ConvTranspose", x, kernel, bias, kernel_shape=[2, 2], strides=[2, 2])

    def _norm(self, x: str, path: tuple[str, ...]) -> str:
        own, kept = _at(self.params, path), _at(self.statistics, path)
        arrays = [
            self._array((*path, key), lambda tree=tree, key=key: tree[key])
            for tree, key in ((own, "scale"), (own, "bias"), (kept, "mean"), (kept, "var"))
        ]
        return self.graph.add("BatchNormalization", x, *arrays, epsilon=1e-3)

    def _has_bias(self, path: tuple[str, ...]) -> bool:
        return "bias" in _at(self.params, path)

    def _array(self, key: tuple, make: Any) -> np.ndarray:
        """The same array each time the network is used, so that the file holds it once."""
        if key not in self._arrays:
            self._arrays[key] = np.asarray(make(), np.float32)
        return self._arrays[key]


def _at(tree: dict, path: tuple[str, ...]) -> dict:
    for key in path:
        tree = tree[key]
    return {key: np.asarray(leaf) for key, leaf in tree.items()}
