"""Estimates a training step at the paper's scale on one H100 and on eight: `python -m benchmarks.on_paper`.

Nothing runs on a GPU. XLA counts FLOPs and bytes in the step that it compiles here for a CPU. A GPU has other fusions,
so the bytes are a rough figure. The time is the maximum of FLOPs and bytes over the card's data-sheet rates. It is a
lower bound of the step's time.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from brainseg_jax import sharding
from brainseg_jax.losses import dice_loss
from brainseg_jax.models import build_model
from brainseg_jax.training.optimizer import build_optimizer
from brainseg_jax.training.state import create_state
from brainseg_jax.training.step import Batch, make_update

# NVIDIA H100 SXM data sheet, without sparsity; NVLink has 900 GB/s, the sum of both directions.
FLOPS = {"float32 (TF32)": 494e12, "bfloat16": 989e12}
BANDWIDTH, LINK = 3.35e12, 450e9  # bytes/s
LATENCY = 15e-6  # seconds of a small all-reduce over NVLink, an assumption
BATCH, PIXELS, DEVICES = 32, 256, 8
# Data sheets of cards, by their name in JAX: FLOP/s without sparsity, bytes/s.
CARDS = {
    "NVIDIA H100 80GB HBM3": ({"float32": 67e12, "TF32": 494e12, "bfloat16": 989e12}, BANDWIDTH),
    "NVIDIA H200": ({"float32": 67e12, "TF32": 494e12, "bfloat16": 989e12}, 4.8e12),
    "NVIDIA A100-SXM4-80GB": ({"float32": 19.5e12, "TF32": 156e12, "bfloat16": 312e12}, 2.039e12),
}


def main() -> None:
    """Prints the table of both networks and writes `on_paper.json`."""
    print("| network | numbers | TFLOP | GB | bound by | 1 H100, ms | 8 H100, ms | of it all-reduce, ms |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for network in ("unet", "attention_unet"):
        for numbers, peak in FLOPS.items():
            flops, bytes_moved, parameters, norms = count(network, numbers.split()[0])
            compute, memory = flops / peak, bytes_moved / BANDWIDTH
            exchange = all_reduce_seconds(4 * parameters, norms)
            one, eight = max(compute, memory), max(compute, memory) / DEVICES + exchange
            row = {"network": network, "numbers": numbers, "tflop": flops / 1e12, "gb": bytes_moved / 1e9}
            row |= {"bound": "FLOPs" if compute > memory else "bytes", "one_ms": 1e3 * one, "eight_ms": 1e3 * eight}
            rows.append({**row, "all_reduce_ms": 1e3 * exchange})
            print(
                f"| {network} | {numbers} | {flops / 1e12:.1f} | {bytes_moved / 1e9:.0f} | {row['bound']} | "
                f"{1e3 * one:.0f} | {1e3 * eight:.1f} | {1e3 * exchange:.1f} |",
                flush=True,
            )
    Path(__file__).with_name("on_paper.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def bound_seconds(network: str, numbers: str, batch: int, card: str) -> float | None:
    """Returns the minimum time of a step on one card by the counts in `on_paper.json`; None: `card` not in `CARDS`."""
    if card not in CARDS:
        return None
    flops, bandwidth = CARDS[card]
    rows = json.loads(Path(__file__).with_name("on_paper.json").read_text())["rows"]
    dtype = "bfloat16" if numbers == "bfloat16" else "float32"
    (row,) = (row for row in rows if row["network"] == network and row["numbers"].split()[0] == dtype)
    return batch / BATCH * max(1e12 * row["tflop"] / flops[numbers], 1e9 * row["gb"] / bandwidth)


def all_reduce_seconds(gradient_bytes: float, norms: int) -> float:
    """Returns the time of the all-reduces of a step.

    A ring sends 2 (n - 1) / n of the gradient over each link. Each norm exchanges twice, the loss once.
    """
    return 2 * (DEVICES - 1) / DEVICES * gradient_bytes / LINK + (2 * norms + 1) * LATENCY


def count(network: str, dtype: str) -> tuple[float, float, int, int]:
    """Returns FLOPs and bytes of a step on one device by XLA's count, and the numbers of parameters and batch norms."""
    model = build_model(network, dtype=dtype, formulation="lax")
    optimizer = build_optimizer("adam", lambda step: 1e-4, b2=0.99, weight_decay=0.0, clip_norm=0.0)
    mesh = sharding.data_mesh()
    loss = partial(dice_loss, smooth=0.1, batch_wide=True)
    update = make_update(model, optimizer, loss, mesh=mesh, ema_decay=0.0)
    state = create_state(model, optimizer, image_shape=(PIXELS, PIXELS, 3), seed=0, ema=False, mesh=mesh)
    images, masks = (jax.ShapeDtypeStruct((BATCH, PIXELS, PIXELS, channels), jnp.float32) for channels in (3, 1))
    costs = update.lower(state, Batch(images, masks)).compile().cost_analysis()
    norms = sum(path[-1].key == "mean" for path, _ in jax.tree.leaves_with_path(state.batch_stats))
    return costs["flops"], costs["bytes accessed"], sum(p.size for p in jax.tree.leaves(state.params)), norms


if __name__ == "__main__":
    main()
