"""Builds a graph of ONNX nodes, and the networks of this package as such nodes."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 18, 9  # versions of 2023, so that older runtimes can read the file


class Graph:
    """Nodes and constants, with numbered names."""

    def __init__(self, outer: "Graph | None" = None) -> None:
        """Creates an empty graph, or the empty body of a loop in the graph `outer`.

        The body stores its own constants, since onnxruntime prepares convolution weights only in the graph that uses
        them.
        """
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._kept: dict[int, tuple[str, np.ndarray | np.generic]] = {}
        self._numbers: Iterator[int] = outer._numbers if outer else itertools.count()

    def constant(self, array: np.ndarray | np.generic) -> str:
        """The name of a constant. An array that is used again is stored only once."""
        if id(array) not in self._kept:
            name = f"constant_{next(self._numbers)}"
            self.constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
            self._kept[id(array)] = (name, array)  # keeps the array alive, so that no other array gets its id
        return self._kept[id(array)][0]

    def add(self, kind: str, *inputs: str | np.ndarray | np.generic, name: str | None = None, **attributes: Any) -> str:
        """Adds a node with one output; inputs are names or arrays. Returns the name of the output."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        name = name or f"{kind}_{next(self._numbers)}"
        self.nodes.append(helper.make_node(kind, names, [name], name=f"node_{name}", **attributes))
        return name

    def scan(
        self, body: "Graph", state: Sequence[tuple[str, str, np.ndarray]], item: str, items: str, outputs: Sequence[str]
    ) -> list[str]:
        """Adds a loop over the first axis of `items`. The body may use all names of this graph.

        Args:
          body: a graph with this one as its `outer`.
          state: for each loop variable: its names at the start and end of the body, and its initial value.
          item: name of the current item in the body.
          items: an int64 or float32 array of this graph.
          outputs: names in the body of the values to stack.

        Returns:
          Names of the final state, then of the outputs, stacked along a new first axis.
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
        initial = [self.constant(value) for _, _, value in state]
        node = helper.make_node(
            "Scan", [*initial, items], names, name=f"node_Scan_{number}", body=graph, num_scan_inputs=1
        )
        self.nodes.append(node)
        return names

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The complete model, checked by onnx."""
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
    """A network of `models` as ONNX nodes on [B, C, H, W]. One object can be applied to several inputs."""

    def __init__(self, graph: Graph, model: Any, variables: dict) -> None:
        """Stores the network.

        Args:
          graph: gets the nodes.
          model: `UNet` or `AttentionUNet`.
          variables: variables of the model.
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
        resize_options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        if self.model.gate_upsampling == "bilinear":
            resize_options = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        gated = add("Mul", add("Resize", attention, "", scales, **resize_options), skip)
        return gated if self.model.norm == "none" else self._norm(gated, (name, "BatchNorm_0"))

    def _conv(self, x: str, path: tuple[str, ...], *, stride: int = 1) -> str:
        kernel = self._array((*path, "kernel"), lambda: _arrays_at(self.params, path)["kernel"].transpose(3, 2, 0, 1))
        bias = (
            [self._array((*path, "bias"), lambda: _arrays_at(self.params, path)["bias"])]
            if self._has_bias(path)
            else []
        )
        edge = kernel.shape[-1] // 2
        return self.graph.add("Conv", x, kernel, *bias, pads=[edge] * 4, strides=[stride, stride])

    def _up(self, x: str, name: str) -> str:
        # Flax flips the kernel spatially; ONNX does not.
        kernel = self._array(
            (name, "kernel"), lambda: np.flip(self.params[name]["kernel"], (0, 1)).transpose(2, 3, 0, 1)
        )
        bias = self._array((name, "bias"), lambda: self.params[name]["bias"])
        return self.graph.add("ConvTranspose", x, kernel, bias, kernel_shape=[2, 2], strides=[2, 2])

    def _norm(self, x: str, path: tuple[str, ...]) -> str:
        params, statistics = _arrays_at(self.params, path), _arrays_at(self.statistics, path)
        arrays = [
            self._array((*path, key), lambda tree=tree, key=key: tree[key])
            for tree, key in ((params, "scale"), (params, "bias"), (statistics, "mean"), (statistics, "var"))
        ]
        return self.graph.add("BatchNormalization", x, *arrays, epsilon=1e-3)

    def _has_bias(self, path: tuple[str, ...]) -> bool:
        return "bias" in _arrays_at(self.params, path)

    def _array(self, key: tuple, make: Any) -> np.ndarray:
        """The same array object at each use of the network, so that the file stores it once."""
        if key not in self._arrays:
            self._arrays[key] = np.asarray(make(), np.float32)
        return self._arrays[key]


def _arrays_at(tree: dict, path: tuple[str, ...]) -> dict:
    for key in path:
        tree = tree[key]
    return {key: np.asarray(leaf) for key, leaf in tree.items()}
