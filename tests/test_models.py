"""The networks against a second implementation in numpy and scipy; parameter counts against sums by hand."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from scipy import ndimage, signal

from brainseg_jax import ops
from brainseg_jax.errors import InputError
from brainseg_jax.models import blocks, build_model, unet
from brainseg_jax.models.attention_unet import AttentionGate


def random_variables(module, seed, *inputs):
    """Random variables of the module: initial biases of 0 and statistics of 0 and 1 would hide mistakes."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, train=False))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if "kernel" in name:
            return rng.normal(size=leaf.shape).astype(np.float32) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32) * (1 if "var" in name or "scale" in name else 0.3)

    variables = jax.tree_util.tree_map_with_path(draw, dict(shapes))
    return {name: variables[name] for name in ("params", "batch_stats") if name in variables}


class Reference:
    """The same mathematics for one image [H, W, C], with scipy's correlation and zoom, in float64."""

    def __init__(self, variables, norm):
        self.params, self.norm = variables["params"], norm
        self.stats = variables.get("batch_stats", {})

    def conv(self, x, params):
        kernel = np.asarray(params["kernel"], np.float64)
        x = np.pad(x.astype(np.float64), [(k // 2, k // 2) for k in kernel.shape[:2]] + [(0, 0)])
        out = [
            signal.correlate(x, kernel[..., f], mode="valid", method="direct")[..., 0] for f in range(kernel.shape[-1])
        ]
        return np.stack(out, axis=-1) + params.get("bias", 0)

    def batch_norm(self, x, params, stats):
        scaled = (x - stats["mean"]) / np.sqrt(np.asarray(stats["var"], np.float64) + 1e-3)
        return scaled * params["scale"] + params["bias"]

    def block(self, x, name):
        params, stats = self.params[name], self.stats.get(name, {})
        for i in (0, 1):
            x = self.conv(x, params[f"Conv_{i}"])
            key = {"conv": f"BatchNorm_{i}", "block": "BatchNorm_0" if i else "", "none": ""}[self.norm]
            if key:
                x = self.batch_norm(x, params[key], stats[key])
            x = np.maximum(x, 0)
        return x

    def up(self, x, params):
        height, width, _ = x.shape
        kernel = np.asarray(params["kernel"], np.float64)
        out = np.zeros((2 * height, 2 * width, kernel.shape[-1]))
        for a in (0, 1):
            for b in (0, 1):
                out[a::2, b::2] = x @ kernel[1 - a, 1 - b]
        return out + params["bias"]

    def gate(self, skip, gating, params, stats, upsampling):
        attention = np.maximum(self.conv(skip[::2, ::2], params["skip"]) + self.conv(gating, params["gating"]), 0)
        attention = 1 / (1 + np.exp(-self.conv(attention, params["attention_logit"])))
        order = {"nearest": 0, "bilinear": 1}[upsampling]
        attention = ndimage.zoom(attention, (2, 2, 1), order=order, grid_mode=True, mode="nearest")
        gated = attention * skip
        return attention, gated if self.norm == "none" else self.batch_norm(
            gated, params["BatchNorm_0"], stats["BatchNorm_0"]
        )

    def network(self, x, depth, upsampling=None):
        skips = []
        for level in range(depth):
            skips.append(self.block(x, f"encoder_{level}"))
            height, width, channels = skips[-1].shape
            x = skips[-1].reshape(height // 2, 2, width // 2, 2, channels).max(axis=(1, 3))
        x = self.block(x, "bottleneck")
        for level in reversed(range(depth)):
            skip = skips[level]
            if upsampling:
                name = f"gate_{level}"
                _, skip = self.gate(skip, x, self.params[name], self.stats.get(name), upsampling)
            x = self.block(np.concatenate([self.up(x, self.params[f"up_{level}"]), skip], -1), f"decoder_{level}")
        return self.conv(x, self.params["head"])


def compiled_and_reference(name, norm, upsampling, depth=3):
    model = build_model(name, features=3, depth=depth, norm=norm, gate_upsampling=upsampling or "nearest")
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    variables = random_variables(model, 1, images)
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    reference = Reference(variables, norm)
    return logits, np.stack([reference.network(x.astype(np.float64), depth, upsampling) for x in images])


@pytest.mark.parametrize("norm", ["block", "conv", "none"])
@pytest.mark.parametrize(
    ("name", "upsampling"), [("unet", None), ("attention_unet", "nearest"), ("attention_unet", "bilinear")]
)
def test_forward_pass(name, norm, upsampling):
    logits, expected = compiled_and_reference(name, norm, upsampling)
    assert logits.shape == (2, 16, 24, 1)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("norm", ["block", "none"])
def test_attention_gate(upsampling, norm):
    rng = np.random.default_rng(2)
    skip, gating = (rng.normal(size=s).astype(np.float32) for s in ((1, 12, 8, 5), (1, 6, 4, 10)))
    gate = AttentionGate(upsampling, norm)
    variables = random_variables(gate, 3, skip, gating)
    gated, kept = gate.apply(variables, skip, gating, train=False, mutable="intermediates")
    attention, expected = Reference(variables, norm).gate(
        skip[0], gating[0], variables["params"], variables.get("batch_stats"), upsampling
    )
    np.testing.assert_allclose(kept["intermediates"]["attention"][0][0], attention, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gated[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "fields", "count"),
    [
        ("unet", {}, 31_037_633),
        ("attention_unet", {}, 32_086_917),
        ("unet", {"features": 32, "norm": "conv"}, 7_763_041),
    ],
)
def test_parameter_counts(name, fields, count):
    model = build_model(name, **fields)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


def test_training_mode_uses_and_keeps_the_statistics_of_the_batch():
    model = build_model("unet", features=2, depth=1, norm="block", norm_momentum=0.9)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    variables = random_variables(model, 0, images)
    _, updated = model.apply(variables, images, train=True, mutable="batch_stats")
    first = variables["params"]["encoder_0"]
    reference = Reference(variables, "block")
    hidden = [reference.conv(np.maximum(reference.conv(x, first["Conv_0"]), 0), first["Conv_1"]) for x in images]
    old = variables["batch_stats"]["encoder_0"]["BatchNorm_0"]
    new = updated["batch_stats"]["encoder_0"]["BatchNorm_0"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * np.mean(hidden, axis=(0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * np.var(hidden, axis=(0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize(("name", "upsampling"), [("unet", "nearest"), ("attention_unet", "bilinear")])
def test_formulations_share_parameters_and_logits(name, upsampling):
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    plain, fast = (
        build_model(name, features=3, depth=2, gate_upsampling=upsampling, formulation=f) for f in ("lax", "cpu")
    )
    first, second = (jax.jit(partial(m.init, train=False))(jax.random.key(0), images) for m in (plain, fast))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    variables = random_variables(plain, 1, images)
    logits, others = (jax.jit(partial(m.apply, train=False))(variables, images) for m in (plain, fast))
    assert np.abs(logits).max() > 0.1
    np.testing.assert_allclose(others, logits, rtol=1e-5, atol=1e-5)


def gradients(model, variables, images):
    """Gradients of a weighted sum of the logits by each parameter, and the new statistics."""
    weights = np.random.default_rng(2).normal(size=(*images.shape[:3], 1))

    def weighted(params):
        given = {**variables, "params": params}
        logits, updated = model.apply(given, images, train=True, mutable=["batch_stats"])
        return jnp.sum(logits * weights), updated

    return jax.jit(jax.grad(weighted, has_aux=True), compiler_options=ops.compiler_options())(variables["params"])


@pytest.mark.parametrize("norm", ["block", "conv", "none"])
@pytest.mark.parametrize(("name", "upsampling"), [("unet", "nearest"), ("attention_unet", "bilinear")])
def test_formulations_share_gradients_and_statistics(name, upsampling, norm):
    """Recomputation and the gradient order change when values are computed, not the values."""
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    plain, fast = (
        build_model(name, features=3, depth=2, norm=norm, gate_upsampling=upsampling, formulation=f)
        for f in ("lax", "cpu")
    )
    variables = random_variables(plain, 1, images)
    first, second = (gradients(m, variables, images) for m in (plain, fast))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(first))
    assert largest > 1
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * largest), second, first)


def without_order(monkeypatch):
    monkeypatch.setattr(blocks, "_parameters_first", lambda *arrays: arrays)


def without_doing_again(monkeypatch):
    monkeypatch.setattr(unet.nn, "remat", lambda network, **_: network)


def without_a_schedule_for_memory(monkeypatch):
    options = {**ops.compiler_options(), "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_DEFAULT"}
    monkeypatch.setattr(ops, "compiler_options", lambda: options)


@pytest.mark.slow
@pytest.mark.parametrize("without", [without_order, without_doing_again, without_a_schedule_for_memory])
def test_each_measure_saves_memory_in_training(without, monkeypatch):
    images = jnp.zeros((4, 64, 64, 3))
    model = build_model("attention_unet", features=8, depth=3, formulation="cpu")
    variables = random_variables(model, 0, images)

    def mib():
        def scalar(params):
            given = {**variables, "params": params}
            return model.apply(given, images, train=True, mutable=["batch_stats"])[0].mean()

        compiled = jax.jit(jax.grad(scalar), compiler_options=ops.compiler_options()).lower(variables["params"])
        return compiled.compile().memory_analysis().temp_size_in_bytes / 2**20

    with_it = mib()
    without(monkeypatch)
    assert with_it < 0.95 * mib()


def test_bfloat16_keeps_float32_parameters_and_logits(optax_promotion):
    images = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    exact, rounded = (build_model("attention_unet", features=4, depth=2, dtype=d) for d in ("float32", "bfloat16"))
    variables = jax.jit(partial(exact.init, train=False))(jax.random.key(0), images)
    expected, logits = (jax.jit(partial(m.apply, train=False))(variables, images) for m in (exact, rounded))
    created = jax.eval_shape(partial(rounded.init, train=False), jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(created)} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32
    difference = np.abs(logits - expected)
    assert 0 < difference.max() < 0.1  # it did compute in bfloat16, and near enough


def products(jaxpr):
    """The precision of each convolution and matrix product, also in inner programs."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("formulation", ["lax", "cpu"])
@pytest.mark.parametrize("precision", ["default", "highest"])
def test_every_product_forward_and_backward_has_the_precision_of_the_model(precision, formulation, monkeypatch):
    monkeypatch.setattr(ops, "_MIN_CHANNELS", 1)  # the formulation of many channels too
    images = jnp.ones((1, 16, 16, 3))
    model = build_model(
        "attention_unet", features=2, depth=2, gate_upsampling="bilinear", precision=precision, formulation=formulation
    )
    variables = random_variables(model, 0, images)

    def loss(params):
        return model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])[0].mean()

    with jax.default_matmul_precision("highest" if precision == "default" else "default"):  # the setting of the caller
        found = list(products(jax.make_jaxpr(jax.grad(loss))(variables["params"]).jaxpr))
    wanted = {"default": jax.lax.Precision.DEFAULT, "highest": jax.lax.Precision.HIGHEST}[precision]
    # jax resizes by a matrix exactly at any setting.
    assert len(found) > 40 and {p for pair in found for p in pair} <= {wanted, jax.lax.Precision.HIGHEST}
    assert found.count((wanted, wanted)) > 40


@pytest.mark.parametrize("shape", [(1, 24, 20, 3), (1, 20, 24, 3)])
def test_size_that_the_depth_does_not_divide(shape):
    model = build_model("unet", features=2, depth=3)
    with pytest.raises(InputError, match=rf"{shape[1]}x{shape[2]}.*depth 3.*multiples of 8"):
        model.init(jax.random.key(0), jnp.zeros(shape), train=False)


def test_arrays_of_other_shapes():
    with pytest.raises(InputError, match=r"\[B, H, W, C\], not of shape \(16, 16, 3\)"):
        build_model("unet", features=2, depth=2).init(jax.random.key(0), jnp.zeros((16, 16, 3)), train=False)
    gate, skip = AttentionGate(), jnp.zeros((2, 16, 12, 4))
    for shape in ((2, 16, 12, 8), (1, 8, 6, 8), (2, 8, 5, 8)):
        with pytest.raises(InputError, match=rf"\(2, 16, 12, 4\), but its shape is {re.escape(str(shape))}"):
            gate.init(jax.random.key(0), skip, jnp.zeros(shape), train=False)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("u-net", {}, "u-net.*unet, attention_unet"),
        ("unet", {"dtype": "float16"}, "float16.*bfloat16"),
        ("unet", {"norm": "layer"}, "layer.*block, conv or none"),
        ("attention_unet", {"gate_upsampling": "cubic"}, "cubic.*bilinear"),
        ("unet", {"formulation": "fast"}, "fast.*auto, lax or cpu"),
        ("unet", {"precision": "high"}, "high.*default or highest"),
    ],
)
def test_unknown_choices(name, fields, words):
    with pytest.raises(InputError, match=words):
        build_model(name, **fields)
