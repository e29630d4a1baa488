"""The faster formulations against plain lax and flax: values, gradients, odd sizes, dtypes, transformations."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainseg_jax import ops, sharding


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def test_convolutions_and_their_gradients_keep_clear_of_the_library_of_one_thread():
    """A convolution of that library is in a separate computation; XLA's convolutions are in the main one."""
    net = nn.Conv(32, (3, 3))
    x = jnp.ones((16, 64, 64, 32))
    params = net.init(jax.random.key(0), x)

    def gradient(params, x):
        return jax.grad(lambda *args: jnp.sum(net.apply(*args) ** 2), (0, 1))(params, x)

    def given_away(options):
        text = jax.jit(gradient, compiler_options=options).lower(params, x).compile().as_text()
        *others, main = text.split("\nENTRY ")
        return sum(part.count("convolution(") for part in others), main.count("convolution("), "ynn_fusion" in main

    assert given_away(None)[0] > 0  # else the option is no longer needed
    assert given_away(ops.compiler_options()) == (0, 3, True)  # the sum of the bias's gradient stays with the library


def flax_conv_transpose(x, kernel):
    layer = nn.ConvTranspose(kernel.shape[-1], (2, 2), (2, 2), use_bias=False, dtype=x.dtype)
    return layer.apply({"params": {"kernel": kernel}}, x)


def flax_conv(x, kernel):
    layer = nn.Conv(kernel.shape[-1], (3, 3), use_bias=False, dtype=x.dtype)
    return layer.apply({"params": {"kernel": kernel}}, x)


def flax_strided_conv(x, kernel):
    layer = nn.Conv(kernel.shape[-1], (1, 1), strides=(2, 2), use_bias=False, dtype=x.dtype)
    return layer.apply({"params": {"kernel": kernel}}, x)


def flax_max_pool(x):
    return nn.max_pool(nn.relu(x), (2, 2), (2, 2))


def resized(x, method):
    return jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), method)


# Name: (our formulation, the reference, the side of its kernel if it has one).
OPERATORS = {
    "conv3x3": (ops.conv3x3, flax_conv, 3),
    "conv_transpose2x2": (ops.conv_transpose2x2, flax_conv_transpose, 2),
    "conv1x1_stride2": (ops.conv1x1_stride2, flax_strided_conv, 1),
    "max_pool2x2 after ReLU": (lambda x, f: ops.max_pool2x2(nn.relu(x), f), flax_max_pool, 0),
    "upsample2x nearest": (lambda x, f: ops.upsample2x(x, "nearest", f), partial(resized, method="nearest"), 0),
    "upsample2x bilinear": (lambda x, f: ops.upsample2x(x, "bilinear", f), partial(resized, method="bilinear"), 0),
}
FEW = [(1, 2, 2, 1), (2, 6, 10, 3), (1, 1, 1, 1), (3, 5, 7, 4)]
MORE = [(1, 14, 6, 16), (8, 2, 4, 5), (1, 4, 2, 1), (2, 12, 6, 7), (1, 16, 10, 16), (3, 8, 5, 4)]


def untied(batch, height, width, channels):
    """Windows of four different values. Rounded values are often tied, and then gradients may differ."""
    windows = np.tile(np.float32([-3, -1, 2, 5]), (batch * height * width * channels // 4, 1))
    windows = np.random.default_rng(0).permuted(windows, axis=1)
    windows = windows.reshape(batch, height // 2, width // 2, channels, 2, 2)
    return jnp.asarray(windows.transpose(0, 1, 4, 2, 5, 3).reshape(batch, height, width, channels))


def compared(name, shape, dtype, formulation):
    """Largest differences of value and gradients from flax and jax, relative to their maximum."""
    ours, theirs, side = OPERATORS[name]
    args = [normal(0, *shape, dtype=dtype)]
    if "pool" in name and dtype == jnp.bfloat16:
        args = [untied(*shape).astype(dtype)]
    if side:
        args.append(normal(1, side, side, shape[-1], 6, dtype=dtype))
    cotangent = normal(2, *jax.eval_shape(theirs, *args).shape)

    def value_and_gradients(operator, *args):
        def weighted(*args):
            y = operator(*args)
            return jnp.sum(y.astype(jnp.float32) * cotangent), y

        (_, y), gradients = jax.value_and_grad(weighted, tuple(range(len(args))), has_aux=True)(*args)
        return y, *gradients

    got = jax.jit(partial(value_and_gradients, lambda *a: ours(*a, formulation)))(*args)
    # A rounded result must be close to the exact one.
    wanted = jax.jit(partial(value_and_gradients, theirs))(*(a.astype(jnp.float32) for a in args))
    return [relative(a, b) for a, b in zip(got, wanted, strict=True)]


def relative(got, wanted):
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape
    return np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-6)


@pytest.fixture
def fast_convolutions(monkeypatch):
    """Uses the convolutions of few products also for few channels."""
    monkeypatch.setattr(ops, "_MIN_CHANNELS", 1)


@pytest.mark.usefixtures("fast_convolutions")
@pytest.mark.parametrize("shapes", [FEW, pytest.param(MORE, marks=pytest.mark.slow)], ids=["few", "more"])
@pytest.mark.parametrize("name", OPERATORS)
def test_values_and_gradients_are_those_of_flax_and_jax(name, shapes, optax_promotion):
    """`pytest -s` prints the table."""
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)):
        for shape in shapes:
            if "max_pool" in name and (shape[1] % 2 or shape[2] % 2):
                continue  # a pool halves only even sizes
            for formulation in ("cpu", "lax"):
                differences = compared(name, shape, dtype, formulation)
                figures = ", ".join(f"{d:.1e}" for d in differences)
                print(f"| {name} | {shape} | {jnp.dtype(dtype).name} | {formulation} | {figures} |")
                assert max(differences) <= tolerance, (shape, dtype, formulation)


@pytest.mark.usefixtures("fast_convolutions")
@pytest.mark.parametrize("formulation", ["cpu", "lax"])
@pytest.mark.parametrize("name", OPERATORS)
def test_under_transformations(name, formulation):
    """vmap, scan and a batch over eight devices give the result of one call."""
    ours, _, side = OPERATORS[name]
    x = normal(0, 3, 8, 4, 6, 5)
    kernel = [normal(1, side, side, 5, 2)] if side else []

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(ours(x, *kernel, formulation) ** 2))(x)

    one_by_one = jnp.stack([gradient(part) for part in x])
    _, scanned = jax.lax.scan(lambda carry, part: (carry, gradient(part)), None, x)
    divided = jax.device_put(x[0], sharding.over_batch(sharding.data_mesh()))
    assert len(divided.sharding.device_set) == 8
    for got, wanted in (
        (jax.vmap(gradient)(x), one_by_one),
        (scanned, one_by_one),
        (jax.jit(gradient)(divided), one_by_one[0]),
    ):
        assert relative(got, wanted) <= 1e-5


def test_the_formulation_is_that_of_the_backend_or_the_one_asked_for(monkeypatch):
    x = jnp.ones((1, 2, 2, 1))

    def is_window(*formulation):
        return "reduce_window" in str(jax.make_jaxpr(lambda x: ops.max_pool2x2(x, *formulation))(x))

    assert [is_window(), is_window("auto"), is_window("cpu"), is_window("lax")] == [False, False, False, True]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.clear_caches()
    assert [is_window(), is_window("auto"), is_window("cpu"), is_window("lax")] == [True, True, False, True]
    with pytest.raises(ValueError, match="fast"):
        ops.max_pool2x2(x, "fast")
    with pytest.raises(ValueError, match="bicubic"):
        ops.upsample2x(x, "bicubic")


@pytest.mark.parametrize(
    ("shape", "features", "dtype", "products"),
    [
        ((1, 8, 3, 32), 40, "float32", [(8 // 4, 3)] * 6),
        ((1, 8, 3, 31), 40, "float32", [(8, 3)]),
        ((1, 8, 3, 40), 31, "float32", [(8, 3)]),
        ((1, 6, 3, 32), 32, "float32", [(6, 3)]),
        ((1, 8, 3, 32), 32, "bfloat16", [(8, 3)]),
    ],
)
def test_convolutions_of_many_channels_take_half_the_products(shape, features, dtype, products):
    kernel = jnp.zeros((3, 3, shape[-1], features), dtype)

    def sizes(formulation):
        jaxpr = jax.make_jaxpr(lambda x: ops.conv3x3(x, kernel, formulation))(jnp.zeros(shape, dtype))
        found = re.findall(r"\[1,(\d+),(\d+),\d+\] = conv_general_dilated", str(jaxpr))
        return [(int(height), int(width)) for height, width in found]

    assert sizes("cpu") == sizes("auto") == products
    assert sizes("lax") == [shape[1:3]]


@pytest.mark.parametrize(
    ("backend", "deterministic", "option"),
    [("gpu", True, {"xla_gpu_deterministic_ops": True}), ("gpu", False, None), ("tpu", True, None)],
)
def test_the_switch_for_deterministic_kernels_is_of_gpus_alone(monkeypatch, backend, deterministic, option):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert ops.compiler_options(deterministic=deterministic) == option
    assert ops.compiler_options(deterministic=deterministic, network=False) == option


def test_this_xla_knows_the_switch():
    """All backends share one list of options, so a CPU refuses the names that a GPU refuses."""
    assert jax.jit(lambda: 1, compiler_options={"xla_gpu_deterministic_ops": True})() == 1
    with pytest.raises(jax.errors.JaxRuntimeError):
        jax.jit(lambda: 1, compiler_options={"xla_gpu_deterministic_operators": True})()


def test_what_holds_no_network_is_compiled_by_a_cpu_as_it_does_by_itself():
    assert ops.compiler_options() and ops.compiler_options(network=False) is None


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    """Options change with XLA's versions: a program must compile without them."""
    known = ops.compiler_options()
    wrong = {"xla_cpu_of_another_version": True, "xla_cpu_scheduler_type": "OF_ANOTHER_VERSION"}
    monkeypatch.setattr(ops, "_CPU_OPTIONS", {**known, **wrong})
    expected = {name: value for name, value in known.items() if name not in wrong}
    assert ops.compiler_options() == expected
    assert "xla_cpu_experimental_ynn_fusion_type" in expected  # what speed rests on is known to every version
    jax.jit(lambda: 0, compiler_options=expected)()


def test_what_runs_once_is_compiled_in_a_hurry():
    assert ops.compiler_options(runs_once=True) == {"xla_backend_optimization_level": 0}
