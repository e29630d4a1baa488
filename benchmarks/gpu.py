"""Checks and times one GPU in about 8 minutes: `make gpu`, or `python -m benchmarks.gpu`.

Each part prints its rows as they are done and adds them to a JSON file. A part that fails reports why, and the next
one starts. A part whose time is over leaves out the rest and reports it; the time is checked after each row.
`--tiny` runs every part on a CPU.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.on_paper import bound_seconds
from brainseg_jax import ops, sharding
from brainseg_jax.compilation import keep_compiled, use_plain_numbers
from brainseg_jax.data.phantom import write_phantom
from brainseg_jax.files import PRETRAINED, write_whole
from brainseg_jax.inference.ensemble import Ensemble, combine
from brainseg_jax.losses import dice_loss
from brainseg_jax.models import build_model
from brainseg_jax.runs.trained import load_trained
from brainseg_jax.scans.find import find_scans
from brainseg_jax.scans.scan import Refused
from brainseg_jax.training.objective import build_loss
from brainseg_jax.training.optimizer import build_optimizer, build_schedule
from brainseg_jax.training.state import shapes_of_state
from brainseg_jax.training.step import Batch, make_update

PRECISIONS = {  # fields of a network
    "float32": {"precision": "highest"},
    "TF32": {"precision": "default"},
    "bfloat16": {"precision": "default", "dtype": "bfloat16"},
}
NETWORKS = ("unet", "attention_unet")
CONFIGS = ("attn_dice", "unet_dice", "unet_wce")
STEPS = 20  # whose losses are compared
FACTOR = 5.0  # a device may be so many times farther from float64 than a CPU at the same precision
FLOOR = 1e-6  # errors below are rounding
ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of the work.

    Attributes:
      features, depth, pixels, batch: sizes of the timed step.
      small: features, depth, pixels and batch of the networks that `agreement` compares.
      repetitions: number of timed blocks, and of steps per block.
      run: config keys of the small run that is resumed and exported.
      training: config keys of the three trainings.
      patients: number of synthetic patients of the three trainings.
      scans: number of synthetic scans whose masks are compared.
    """

    features: int
    depth: int
    pixels: int
    batch: int
    small: tuple[int, int, int, int]
    repetitions: tuple[int, int]
    run: dict
    training: dict
    patients: int
    scans: int


_SHORT = {"train.epochs": 1, "train.steps_per_epoch": 4, "train.log_every": 1}
PAPER = Scale(
    features=64,
    depth=4,
    pixels=256,
    batch=32,
    small=(8, 3, 64, 8),
    repetitions=(3, 5),
    run={"train.epochs": 1, "train.steps_per_epoch": 40},
    training={"train.epochs": 10_000, "train.steps_per_epoch": 50, "train.early_stop_patience": 0},
    patients=20,
    scans=4,
)
_TINY_NETWORK = {"model.features": 2, "model.depth": 2, "data.image_size": 32, "train.batch_size": 8}
TINY = Scale(
    features=2,
    depth=2,
    pixels=32,
    batch=8,
    small=(2, 1, 16, 8),
    repetitions=(1, 1),
    run=_SHORT | _TINY_NETWORK,
    training=_SHORT | _TINY_NETWORK | {"eval.batch_size": 8},
    patients=9,
    scans=1,
)


@dataclasses.dataclass
class Bench:
    """State that the parts share.

    Attributes:
      scale: sizes.
      folder: for runs and data, removed at the end.
      source: real data for the trainings and masks; None: synthetic data.
      networks: names of the measured networks.
      configs: names of the configs to train.
      until: `time.monotonic()` at which the running part is over.
      torch: images/s of PyTorch by network, precision and batch size.
      memory: bytes of arguments and temporary buffers of a step, by network and precision, at the batch of the scale.
    """

    scale: Scale
    folder: Path
    source: str | None = None
    networks: tuple[str, ...] = NETWORKS
    configs: tuple[str, ...] = CONFIGS
    until: float = float("inf")
    torch: dict[tuple[str, str, int], float] = dataclasses.field(default_factory=dict)
    memory: dict[tuple[str, str], tuple[int, int]] = dataclasses.field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds of the running part."""
        return self.until - time.monotonic()


Row = dict[str, object]  # "line" is what is printed
Part = Callable[[Bench], Iterator[Row]]


def versions(_: Bench) -> Iterator[Row]:
    """Versions and card."""
    device = jax.devices()[0]
    found = {name: importlib.import_module(name).__version__ for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    found |= {"python": platform.python_version(), "backend": jax.default_backend(), "card": device.device_kind}
    found["platform"] = " ".join(str(device.client.platform_version).split())
    found["GiB"] = round(_bytes_of_card() / 2**30, 1)
    yield {**found, "line": ", ".join(f"{name} {value}" for name, value in found.items())}


def torch(bench: Bench) -> Iterator[Row]:
    """The step in PyTorch, in a process of its own, before this one takes memory of the card."""
    scale = bench.scale
    sizes = map(str, (scale.features, scale.depth, scale.pixels, scale.batch, *scale.repetitions))
    command = [sys.executable, "-m", "benchmarks.gpu_torch", ",".join(bench.networks), *sizes]
    # A pipe for stderr would block the process when it is full.
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        timer = _kill_after(process, bench.left)
        try:
            for text in process.stdout:
                row = json.loads(text)
                if "ms" in row:
                    key = row["network"], row["precision"], row["batch"]
                    bench.torch[key] = max(bench.torch.get(key, 0.0), row["images_per_second"])
                yield row
            if process.wait() < 0:
                yield {"skipped": True, "line": "the time is over: the rest is left out"}
            elif process.returncode:
                errors.seek(0)
                lines = errors.read().strip().splitlines()
                raise RuntimeError(lines[-1] if lines else f"exit status {process.returncode}")
        finally:
            timer.cancel()
            process.kill()


def _kill_after(process: subprocess.Popen, seconds: float) -> threading.Timer:
    timer = threading.Timer(min(max(seconds, 0.0), 3600.0), process.kill)
    timer.start()
    return timer


def operators(bench: Bench) -> Iterator[Row]:
    """Value and gradients of each operator against float64 on the CPU."""
    del bench
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 16, 8, 40))
    work = {
        "conv3x3": (ops.conv3x3, (3, 3, 40, 36)),
        "conv_transpose2x2": (ops.conv_transpose2x2, (2, 2, 40, 36)),
        "conv1x1_stride2": (ops.conv1x1_stride2, (1, 1, 40, 36)),
        "max_pool2x2": (ops.max_pool2x2, None),
        "upsample2x nearest": (lambda x, f: ops.upsample2x(x, "nearest", f), None),
        "upsample2x bilinear": (lambda x, f: ops.upsample2x(x, "bilinear", f), None),
    }
    for name, (operator, shape) in work.items():
        arrays = [x, *([rng.normal(size=shape)] if shape else [])]

        def gradients(*arrays: jax.Array, operator: Callable, formulation: str) -> tuple:
            y, back = jax.vjp(lambda *arrays: operator(*arrays, formulation), *arrays)
            cotangent = np.random.default_rng(1).normal(size=y.shape)  # the same in each call
            return y, *back(jnp.asarray(cotangent, y.dtype))

        exact = _on_cpu_in_float64(partial(gradients, operator=operator, formulation="lax"), arrays)
        errors = {}
        for precision in ("float32", "TF32"):
            with jax.default_matmul_precision(PRECISIONS[precision]["precision"]):
                run = jax.jit(partial(gradients, operator=operator, formulation="auto"))
                found = run(*(jnp.asarray(array, jnp.float32) for array in arrays))
            errors[precision] = max(map(_relative, found, exact))
        fine = errors["float32"] <= 1e-5 and errors["TF32"] <= 5e-3
        line = f"{name}: error {errors['float32']:.1e} in float32, {errors['TF32']:.1e} in TF32"
        yield {"operator": name, "errors": errors, "ok": fine, "line": line}


def agreement(bench: Bench) -> Iterator[Row]:
    """Logits, gradient and the losses of 20 steps against float64, beside those of the CPU at the same precision."""
    features, depth, pixels, batch = bench.scale.small
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, pixels, pixels, 3))
    masks = (rng.random((batch, pixels, pixels, 1)) > 0.8).astype(np.float64)
    cpu = jax.devices("cpu")[0]
    for network in bench.networks:
        build = partial(build_model, network, features=features, depth=depth)
        with jax.default_device(cpu):
            init = jax.jit(partial(build(formulation="lax").init, train=False))
            variables = jax.tree.map(np.asarray, init(jax.random.key(0), jnp.zeros((1, pixels, pixels, 3))))
        with jax.enable_x64(True), jax.default_device(cpu):
            exact = _twenty_steps(
                build(formulation="lax").clone(dtype=jnp.float64), variables, images, masks, np.float64
            )
        for precision, fields in PRECISIONS.items():
            with jax.default_device(cpu), _rounded_to_tf32(precision == "TF32"):
                model = build(formulation="lax", **fields)
                on_cpu = _twenty_steps(model, variables, images, masks, np.float32)
            found = _twenty_steps(build(**fields), variables, images, masks, np.float32)
            row: Row = {"network": network, "precision": precision, "ok": True}
            words = []
            for what, ours, theirs, wanted in zip(("logits", "gradient", "losses"), found, on_cpu, exact, strict=True):
                error, limit = _relative(ours, wanted), FACTOR * max(FLOOR, _relative(theirs, wanted))
                row |= {what: error, f"{what}_limit": limit, "ok": row["ok"] and error <= limit}
                words.append(f"{what} {error:.1e} (limit {limit:.1e})")
            yield {**row, "line": f"{network}, {precision}: error of {', '.join(words)}"}


def _twenty_steps(model, variables: dict, images: np.ndarray, masks: np.ndarray, dtype: type) -> tuple:
    """Logits and gradient of the first step, and the losses of all."""
    optimizer = optax.adam(1e-3)

    def step(params: dict, statistics: dict, opt_state: tuple, images: jax.Array, masks: jax.Array) -> tuple:
        def loss(params: dict) -> tuple:
            given = {"params": params, "batch_stats": statistics}
            logits, updated = model.apply(given, images, train=True, mutable=["batch_stats"])
            return dice_loss(logits, masks, smooth=0.1, batch_wide=True).mean(), (logits, updated["batch_stats"])

        (value, (logits, statistics)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), statistics, opt_state), (value, logits, gradient)

    variables = jax.tree.map(lambda array: jnp.asarray(array, dtype), variables)
    images, masks = jnp.asarray(images, dtype), jnp.asarray(masks, dtype)
    state = variables["params"], variables["batch_stats"], optimizer.init(variables["params"])
    compiled = jax.jit(step)
    losses = []
    for _ in range(STEPS):
        state, (value, *others) = compiled(*state, images, masks)
        if not losses:
            logits, gradient = (np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)]) for tree in others)
        losses.append(float(value))
    return logits, gradient, np.array(losses)


def _rounded_to_tf32(on: bool):
    """Context in which newly traced convolutions round their factors to TF32, forward and backward.

    The products are summed in float32 and not rounded, as on a GPU.
    """
    if not on:
        return contextlib.nullcontext()

    def tf32(x: jax.Array) -> jax.Array:
        return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10)

    @jax.custom_vjp
    def round_forward(x: jax.Array) -> jax.Array:
        return tf32(x)

    round_forward.defvjp(lambda x: (tf32(x), None), lambda _, gradient: (gradient,))

    @jax.custom_vjp
    def round_cotangent(y: jax.Array) -> jax.Array:
        return y

    round_cotangent.defvjp(lambda y: (y, None), lambda _, cotangent: (tf32(cotangent),))

    def rounded(operator: Callable) -> Callable:
        return lambda x, kernel, *rest, **named: round_cotangent(
            operator(round_forward(x), round_forward(kernel), *rest, **named)
        )

    names = ("conv_general_dilated", "conv_transpose")
    return mock.patch.multiple(lax, **{name: rounded(getattr(lax, name)) for name in names})


def _on_cpu_in_float64(function: Callable, arrays: list[np.ndarray]) -> list[np.ndarray]:
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        return [np.asarray(a) for a in jax.jit(function)(*(jnp.asarray(array, jnp.float64) for array in arrays))]


def _relative(found: np.ndarray, exact: np.ndarray) -> float:
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def _config(name: str, scale: str | None, bench: Bench, changes: dict):
    config = importlib.import_module(f"configs.{name}").get_config(scale)
    config.data.dir = str(bench.folder / "data")
    config.update_from_flattened_dict(changes)
    return config


def resume(bench: Bench) -> Iterator[Row]:
    """Eight steps, and four, a checkpoint and four: the same bits with `deterministic`."""
    from brainseg_jax.runs.checkpoint import Checkpoints
    from brainseg_jax.training.experiment import build_experiment
    from brainseg_jax.training.loop_state import LoopState

    changes = {"data.source": "phantom:9:0", "deterministic": True}
    experiment = build_experiment(_config("attn_dice", "quick", bench, changes | bench.scale.run))

    def advance(state, first: int, last: int):
        for step in range(first, last):
            # Waits for each step: on eight fake devices of a CPU, XLA aborted when copies ran beside queued steps.
            state = jax.block_until_ready(experiment.train_step(state, experiment.feed(step))[0])
        return state

    fresh = partial(jax.tree.map, jnp.copy, experiment.initial_state)  # a step takes the memory of what it is given
    whole = advance(fresh(), 0, 8)
    checkpoints = Checkpoints(bench.folder / "checkpoints")
    checkpoints.save(advance(fresh(), 0, 4), LoopState(), score=None)
    checkpoints.wait()
    state, _ = checkpoints.recover(like=fresh())
    checkpoints.close()
    resumed = advance(state, 4, 8)
    experiment.feed.close()
    pairs = zip(*map(jax.tree.leaves, (whole, resumed)), strict=True)
    different = sum(np.asarray(a).tobytes() != np.asarray(b).tobytes() for a, b in pairs)
    line = f"8 steps against 4 + 4 from a checkpoint: {different} of {len(jax.tree.leaves(whole))} arrays differ"
    yield {"different_arrays": different, "ok": different == 0, "line": line}


def commands(bench: Bench) -> Iterator[Row]:
    """A small run, then export in each format, predict and evaluate."""
    from brainseg_jax.prediction.job import predict
    from brainseg_jax.prediction.results import Wanted
    from brainseg_jax.runs.comparison import begin_runs
    from brainseg_jax.sharing.share import FORMATS, share
    from brainseg_jax.sharing.store import store
    from brainseg_jax.training.loop import train

    run = bench.folder / "small_run"
    results = train(_config("attn_dice", "quick", bench, {"data.source": "phantom:9:0"} | bench.scale.run), run)
    dice = results["test"]["dice_mean"]
    yield {"command": "main", "dice": dice, "line": f"main: Dice {dice:.3f} after {results['step']} steps"}
    for name in FORMATS:
        if name == "onnx" and not importlib.util.find_spec("onnxruntime"):
            yield {"command": "export onnx", "skipped": True, "line": "export onnx: onnxruntime is not installed"}
            continue
        shared = share(run, bench.folder / "shared", file_format=name, size=None, overwrite=True)
        line = f"export {name}: probabilities differ by {shared.difference:.1e} (limit 1e-4)"
        yield {"command": f"export {name}", "difference": shared.difference, "line": line}
    stored = store(run, bench.folder / "stored", dtype="float32", overwrite=True)
    line = f"export safetensors: probabilities differ by {stored.difference:.1e}, {stored.voxels} voxels of the mask"
    row = {"command": "export safetensors", "difference": stored.difference, "ok": stored.voxels == 0}
    yield {**row, "line": line}
    scans = write_phantom(bench.folder / "one", patients=1, seed=5)
    predict([run], scans, bench.folder / "masks", wanted=Wanted(), mirror=None, overwrite=True)
    masks = len(list((bench.folder / "masks").rglob("*_pred.tif")))
    yield {"command": "predict", "masks": masks, "ok": masks > 0, "line": f"predict: masks of {masks} slices"}
    (scoring,) = begin_runs([run], part="test", tolerance=2.0).scorings
    again = float(np.mean([row["dice"] for case in scoring.score(scoring.cases) for row in case.rows]))
    line = f"evaluate: Dice {again:.6f}, in the training {dice:.6f}"
    yield {"command": "evaluate", "dice": again, "ok": abs(again - dice) <= 1e-3, "line": line}


def masks(bench: Bench) -> Iterator[Row]:
    """The masks of the network in the package with TF32 against those with float32."""
    trained = load_trained(PRETRAINED)
    imitated = jax.default_backend() == "cpu"
    source = (
        Path(bench.source)
        if bench.source
        else write_phantom(bench.folder / "scans", patients=bench.scale.scans, seed=9)
    )
    totals = np.zeros(3, int)
    ensembles = {}
    for scan in find_scans(source):
        if isinstance(scan, Refused):
            continue
        volume, maps = scan.read(), {}
        for precision in ("float32", "TF32"):
            # The key of a kept program contains the precision, so an imitated program is never used for float32.
            model = trained.network.model.clone(formulation="lax", **PRECISIONS[precision])
            network = dataclasses.replace(trained.network, model=model)
            ensemble = ensembles.setdefault(precision, Ensemble([network], trained.posts, mirror=None))
            prepared = ensemble.prepare(volume)
            with _rounded_to_tf32(imitated and precision == "TF32"):
                probability = combine(ensemble.predict(prepared), uncertainty=False).probability
            maps[precision] = probability, ensemble.masks(probability, prepared[0][0][1])
        (p, mask), (q, other) = maps["float32"], maps["TF32"]
        counts = np.array([(mask != other).sum(), mask.astype(bool).sum(), mask.size])
        totals += counts
        difference = float(np.abs(p - q).max())
        line = f"{scan.name}: {counts[0]} of {counts[1]} tumor voxels differ, probabilities by {difference:.1e}"
        row = {"scan": scan.name, "voxels": int(counts[0]), "tumor": int(counts[1]), "difference": difference}
        yield {**row, "line": line}
    words = " (TF32 imitated on a CPU)" if imitated else ""
    line = f"together: {totals[0]} voxels differ; the masks hold {totals[1]} of {totals[2]}{words}"
    yield {"voxels": int(totals[0]), "tumor": int(totals[1]), "imitated": imitated, "line": line}


def steps(bench: Bench) -> Iterator[Row]:
    """Time, memory and share of the roofline of a training step, at the batch of the paper."""
    for network in bench.networks:
        for precision in PRECISIONS:
            yield _time_step(network, precision, bench.scale.batch, bench)


def largest(bench: Bench) -> Iterator[Row]:
    """The same at the largest batch that fits, found from the memory that XLA plans for one of the paper's size."""
    batch = bench.scale.batch
    for network in bench.networks:
        for precision in PRECISIONS:
            if (network, precision) not in bench.memory:
                bench.memory[network, precision] = _memory(_compile_step(network, precision, batch, bench)[0])
            fixed, a_batch = bench.memory[network, precision]
            free = 0.9 * _bytes_of_card() or 2 * a_batch + fixed  # a CPU: twice the batch
            fits = max(batch, int((free - fixed) / (a_batch / batch)) // batch * batch)
            try:
                yield _time_step(network, precision, fits, bench)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                yield {"network": network, "precision": precision, "batch": fits, "line": f"batch {fits} does not fit"}
                yield _time_step(network, precision, max(batch, fits * 3 // 4 // batch * batch), bench)


def _bytes_of_card() -> int:
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0)


def _compile_step(network: str, precision: str, batch: int, bench: Bench) -> tuple:
    """The update of `configs/{unet,attn}_dice.py`, compiled, and what it takes."""
    scale, mesh = bench.scale, sharding.data_mesh()
    config = importlib.import_module(f"configs.{'unet' if network == 'unet' else 'attn'}_dice").get_config()
    model = build_model(
        **config.model.to_dict() | {"features": scale.features, "depth": scale.depth} | PRECISIONS[precision]
    )
    opt = config.optimizer
    schedule = build_schedule(opt.schedule, learning_rate=opt.learning_rate, total_steps=1, warmup_steps=0)
    optimizer = build_optimizer(opt.name, schedule, b2=opt.b2, weight_decay=opt.weight_decay, clip_norm=opt.clip_norm)
    update = make_update(model, optimizer, build_loss(**config.loss, target_fractions=[0.01]), mesh=mesh, ema_decay=0.0)
    shape = (scale.pixels, scale.pixels)
    shapes = shapes_of_state(model, optimizer, image_shape=(*shape, 3), ema=False, mesh=mesh)
    divided = sharding.over_batch(mesh)
    images, targets = (
        jax.ShapeDtypeStruct((batch, *shape, channels), jnp.float32, sharding=divided) for channels in (3, 1)
    )
    return update.lower(shapes, Batch(images, targets)).compile(), shapes, Batch(images, targets)


def _memory(compiled: object) -> tuple[int, int]:
    """Bytes of the arguments (state and batch), and of the temporary buffers, as XLA plans them."""
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes


def _time_step(network: str, precision: str, batch: int, bench: Bench) -> Row:
    compiled, *shapes = _compile_step(network, precision, batch, bench)
    rng = np.random.default_rng(0)

    def fill(shape: jax.ShapeDtypeStruct) -> jax.Array:  # small values; scalars, such as scales, are near 1
        array = np.asarray(0.05 * rng.random(shape.shape, np.float32) + (0.9 if shape.ndim == 0 else 0.0))
        return jax.device_put(array.astype(shape.dtype), shape.sharding)

    state, given = jax.tree.map(fill, shapes)
    blocks, steps = bench.scale.repetitions
    state, _ = jax.block_until_ready(compiled(state, given))
    seconds = []
    for _ in range(blocks):
        started = time.perf_counter()
        for _ in range(steps):
            state, report = compiled(state, given)
        jax.block_until_ready((state, report))
        seconds.append((time.perf_counter() - started) / steps)
    if batch == bench.scale.batch:
        bench.memory[network, precision] = _memory(compiled)
    took, gib = statistics.median(seconds), sum(_memory(compiled)) / 2**30
    bound = bound_seconds(network, precision, batch, jax.devices()[0].device_kind)
    row: Row = {"network": network, "precision": precision, "batch": batch, "ms": 1e3 * took, "gib": gib}
    row |= {"images_per_second": batch / took, "of_roofline": bound and bound / took}
    line = f"{network}, {precision}, batch {batch}: {1e3 * took:.1f} ms, {batch / took:.0f} images/s, {gib:.1f} GiB"
    line += f", {bound / took:.0%} of the roofline" if bound else ", no roofline is known of this card"
    if theirs := bench.torch.get((network, precision, batch)):
        row["of_torch"] = batch / took / theirs
        line += f", {row['of_torch']:.2f} of PyTorch's images/s"
    return {**row, "line": line}


def training(bench: Bench) -> Iterator[Row]:
    """The three trainings, one after the other, on synthetic scans or `--source`."""
    from brainseg_jax.training.loop import train

    source = bench.source or f"phantom:{bench.scale.patients}:0"
    changes = {"data.source": source, "split.val": 0.2, "split.test": 0.2} | bench.scale.training
    for number, name in enumerate(bench.configs):
        if bench.left < float("inf"):
            changes["train.max_minutes"] = max(bench.left, 1.0) / (len(bench.configs) - number) / 60
        started = time.monotonic()
        results = train(_config(name, None, bench, changes), bench.folder / "runs" / name)
        dice, seconds = results["test"]["dice_mean"], time.monotonic() - started
        row = {"config": name, "source": source, "steps": results["step"], "dice": dice, "seconds": seconds}
        yield {**row, "line": f"{name}: Dice {dice:.3f} at step {results['step']}, {seconds:.0f} s, {source}"}


PARTS: dict[str, tuple[float, Part]] = {  # seconds; what a part leaves over, the ones after it have
    "versions": (10, versions),
    "torch": (80, torch),
    "operators": (20, operators),
    "agreement": (50, agreement),
    "resume": (25, resume),
    "commands": (40, commands),
    "masks": (15, masks),
    "steps": (100, steps),
    "training": (75, training),
    "largest": (60, largest),
}


def run(parts: dict[str, tuple[float, Part]], bench: Bench, *, seconds: float, output: Path | None) -> list[Row]:
    """Runs the parts one after the other; what fails, or has no time left, is a row too.

    Args:
      parts: seconds and function, by name.
      bench: what they share.
      seconds: of all parts together; each has its share of them, and what the ones before left over.
      output: a JSON file that is written anew with each row; None for none.
    """
    rows: list[Row] = []

    def add(part: str, row: Row) -> None:
        wrong = "failed" in row or row.get("ok") is False
        print(f"{'NOT OK ' if wrong else ''}{part}: {row['line']}", flush=True)
        rows.append({"part": part, **row})
        if output:
            write_whole(output, lambda path: path.write_text(json.dumps({"rows": rows}, indent=1) + "\n"))

    planned = time.monotonic()
    total = sum(budget for budget, _ in parts.values())
    for name, (budget, part) in parts.items():
        planned += budget * seconds / total
        bench.until = planned
        if bench.left <= 0:
            add(name, {"skipped": True, "line": "no time is left: the part is left out"})
            continue
        try:
            for row in part(bench):
                add(name, row)
                if bench.left <= 0:
                    add(name, {"skipped": True, "line": "the time is over: rows that would follow are left out"})
                    break
        except (Exception, SystemExit) as error:  # a part must not stop the others
            first = (str(error).strip().splitlines() or [""])[0]
            add(name, {"failed": type(error).__name__, "line": f"failed: {type(error).__name__}: {first}"})
    return rows


def main() -> None:
    """Runs what is asked for; exit status 1 where a part failed or a check was not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small networks and few steps: the whole on a CPU")
    parser.add_argument("--minutes", type=float, help="of all parts together, by default 7.5; more trains longer")
    parser.add_argument("--source", help="real data for the trainings and masks, as --config.data.source takes them")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with a comma between")
    parser.add_argument("--output", type=Path, help="by default benchmarks/gpu.json, and with --tiny no file")
    arguments = parser.parse_args()
    if unknown := set(arguments.only.split(",")) - set(PARTS):
        parser.error(f"--only={arguments.only}: no part {', '.join(sorted(unknown))}; give some of {','.join(PARTS)}")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one card
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch's process needs memory too
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # its older name; both together are an error
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.92")
    use_plain_numbers()
    keep_compiled()
    if not arguments.tiny and jax.default_backend() != "gpu":
        print(f"jax found no GPU (backend {jax.default_backend()}): install the extra cuda12 or cuda13, or give --tiny")
        sys.exit(2)
    output = arguments.output or (None if arguments.tiny else Path(__file__).with_name("gpu.json"))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(TINY if arguments.tiny else PAPER, Path(folder), arguments.source)
        chosen = {name: PARTS[name] for name in PARTS if name in arguments.only.split(",")}
        minutes = arguments.minutes or (60.0 if arguments.tiny else 7.5)
        rows = run(chosen, bench, seconds=60 * minutes, output=output)
    sys.exit(any("failed" in row or row.get("ok") is False for row in rows))


if __name__ == "__main__":
    main()
