"""Our networks against the same in PyTorch (eager), in one process, turn by turn: `make bench`.

Prints a table in markdown and writes `benchmarks/speed.json`. Ratios below 1 mean that ours is the faster.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks.torch_nets import UNet, carry_over
from brainseg_jax import ops
from brainseg_jax.losses import dice_loss
from brainseg_jax.models import build_model

SIZES = {"16 features, 128 px, batch 16": (16, 128, 16), "32 features, 256 px, batch 4": (32, 256, 4)}
RATE = 1e-4


def main() -> None:
    """Measures every network at every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=9)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = []
    for name in ("unet", "attention_unet"):
        for size, (features, pixels, batch) in SIZES.items():
            pairs = make_pairs(name, features, pixels, batch)
            for work, (ours, theirs) in pairs.items():
                rows.append(
                    {"name": f"{name}, {size}", "work": work, "reference": "torch", **race(ours, theirs, repetitions)}
                )
                print(line(rows[-1]), flush=True)
    Path(__file__).with_name("speed.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def make_pairs(name: str, features: int, pixels: int, batch: int) -> dict[str, tuple[Callable, Callable]]:
    """The same work in both libraries, by name; each callable does it once and waits for the end."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, pixels, pixels, 3)).astype(np.float32)
    masks = (rng.random((batch, pixels, pixels, 1)) > 0.95).astype(np.float32)
    model = build_model(name, features=features)
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, pixels, pixels, 3)), train=False))()
    net = UNet(features, model.depth, attention=name == "attention_unet")
    carry_over(net, variables)
    x, y = (torch.from_numpy(a.transpose(0, 3, 1, 2).copy()) for a in (images, masks))
    infer = jax.jit(lambda v, x: model.apply(v, x, train=False), compiler_options=ops.compiler_options())

    net.eval()
    with torch.inference_mode():
        difference = np.abs(net(x).numpy().transpose(0, 2, 3, 1) - np.asarray(infer(variables, images))).max()
    if difference > 1e-4:
        raise SystemExit(f"{name}: the logits differ by {difference}, so this is not the same work")

    def torch_inference(x: torch.Tensor) -> None:
        net.eval()
        with torch.inference_mode():
            net(x)

    pairs = {
        f"inference, batch {n}": (
            lambda n=n: infer(variables, images[:n]).block_until_ready(),
            lambda n=n: torch_inference(x[:n]),
        )
        for n in (1, batch)
    }
    return {"train_step": (jax_train_step(model, variables, images, masks), torch_train_step(net, x, y)), **pairs}


def jax_train_step(model: object, variables: dict, images: np.ndarray, masks: np.ndarray) -> Callable:
    """Forward, Dice loss over the batch, gradient, Adam."""
    optimizer = optax.adam(RATE)

    def step(state: tuple, images: jax.Array, masks: jax.Array) -> tuple[tuple, jax.Array]:
        params, batch_stats, opt_state = state

        def loss(params: dict) -> tuple[jax.Array, dict]:
            given = {"params": params, "batch_stats": batch_stats}
            logits, updated = model.apply(given, images, train=True, mutable=["batch_stats"])
            return dice_loss(logits, masks, smooth=0.1, batch_wide=True).mean(), updated["batch_stats"]

        (value, batch_stats), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), batch_stats, opt_state), value

    compiled = jax.jit(step, donate_argnums=0, compiler_options=ops.compiler_options())
    params = jax.tree.map(jnp.copy, variables["params"])
    state = (params, jax.tree.map(jnp.copy, variables["batch_stats"]), optimizer.init(params))
    images, masks = jnp.asarray(images), jnp.asarray(masks)

    def run() -> None:
        nonlocal state
        state, value = compiled(state, images, masks)
        value.block_until_ready()

    return run


def torch_train_step(net: UNet, x: torch.Tensor, y: torch.Tensor) -> Callable:
    """The same."""
    optimizer = torch.optim.Adam(net.parameters(), RATE)

    def run() -> None:
        net.train()
        optimizer.zero_grad()
        p = torch.sigmoid(net(x))
        loss = 1 - (2 * (p * y).sum() + 0.1) / (p.sum() + y.sum() + 0.1)
        loss.backward()
        optimizer.step()

    return run


def race(ours: Callable, theirs: Callable, repetitions: int) -> dict:
    """Medians in ms, the ratio of the medians, and the least and greatest ratio of two runs side by side."""
    for warm_up in (ours, theirs) * 2:
        warm_up()
    times = [(seconds(ours), seconds(theirs)) for _ in range(repetitions)]
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = [x / y for x, y in times]
    return {"ours_ms": 1e3 * a, "reference_ms": 1e3 * b, "ratio": a / b, "ratio_range": [min(ratios), max(ratios)]}


def seconds(work: Callable) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def line(row: dict) -> str:
    """A row of the markdown table."""
    low, high = row["ratio_range"]
    return (
        f"| {row['name']} | {row['work']} | {row['ours_ms']:.0f} | {row['reference_ms']:.0f} | {row['ratio']:.2f} "
        f"[{low:.2f}, {high:.2f}] |"
    )


if __name__ == "__main__":
    print("| network | work | ours, ms | torch eager, ms | ratio [range] |\n| --- | --- | --- | --- | --- |")
    main()
