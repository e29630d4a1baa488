"""The training step in PyTorch for `benchmarks.gpu`: a process of its own, which prints a line of JSON a measurement.

python -m benchmarks.gpu_torch NETWORKS FEATURES DEPTH PIXELS BATCH BLOCKS STEPS
"""

import contextlib
import dataclasses
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable

from benchmarks.contestants import RATE, Work

PRECISIONS = ("float32", "TF32", "bfloat16")


def main(networks: str, *sizes: str) -> None:
    """Eager PyTorch first, which compiles nothing; then `torch.compile`; then larger batches while they fit."""
    features, depth, pixels, batch, *repetitions = map(int, sizes)
    if not importlib.util.find_spec("torch"):
        return tell("PyTorch is not installed: no comparison with it", skipped=True)
    import torch

    if not torch.cuda.is_available():
        tell(f"PyTorch {torch.__version__} sees no GPU: it runs on the CPU, and float32 stands for TF32", cuda=False)
    works = [Work(network, features, pixels, batch) for network in networks.split(",")]
    for compiled in (False, True):
        for work in works:
            for precision in PRECISIONS[compiled:]:
                measure(work, depth, precision, repetitions, compiled=compiled)
    for work in works if torch.cuda.is_available() else ():
        while measure(work, depth, "bfloat16", repetitions, compiled=False):
            work = dataclasses.replace(work, batch=2 * work.batch)


def measure(work: Work, depth: int, precision: str, repetitions: list[int], *, compiled: bool) -> bool:
    """Prints a row, and returns whether the work runs."""
    import torch

    way = "torch.compile" if compiled else "torch"
    name = f"{way}, {work.network}, {precision}, batch {work.batch}"
    row = {
        "network": work.network,
        "precision": precision,
        "batch": work.batch,
        "library": f"{way} {torch.__version__}",
    }
    try:
        took = seconds_of_a_step(make_step(work, depth, precision, compiled=compiled), *repetitions)
    except Exception as error:  # too large; or torch.compile without a C++ compiler
        tell(f"{name}: does not run: {(str(error).strip().splitlines() or [type(error).__name__])[0]}", **row)
        return False
    row |= {"ms": 1e3 * took, "images_per_second": work.batch / took}
    words = ""
    if torch.cuda.is_available():
        row["gib"] = torch.cuda.max_memory_allocated() / 2**30
        words = f", {row['gib']:.1f} GiB"
    tell(f"{name}: {1e3 * took:.1f} ms, {work.batch / took:.0f} images/s{words}", **row)
    return True


def tell(line: str, **row: object) -> None:
    """Prints a row."""
    print(json.dumps({**row, "line": line}), flush=True)


def make_step(work: Work, depth: int, precision: str, *, compiled: bool) -> Callable[[], None]:
    """A training step with channels last, and bfloat16 by autocast, as a function without arguments."""
    import torch

    from benchmarks.torch_nets import UNet

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    torch.backends.cudnn.benchmark = True
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    net = UNet(work.features, depth, attention=work.network == "attention_unet")
    net = net.to(device, memory_format=torch.channels_last).train()
    images, masks = (torch.from_numpy(array.transpose(0, 3, 1, 2).copy()).to(device) for array in work.data())
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    forward = torch.compile(net) if compiled else net
    cast = torch.autocast(device, torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()

    def run() -> None:
        optimizer.zero_grad()
        with cast:
            logits = forward(images)
        p = torch.sigmoid(logits.float())
        loss = 1 - (2 * (p * masks).sum() + 0.1) / (p.sum() + masks.sum() + 0.1)
        loss.backward()
        optimizer.step()

    return run


def seconds_of_a_step(run: Callable[[], None], blocks: int, steps: int) -> float:
    """The median over blocks of steps, after three to warm up."""
    import torch

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    for _ in range(3):
        run()
    wait()
    seconds = []
    for _ in range(blocks):
        started = time.perf_counter()
        for _ in range(steps):
            run()
        wait()
        seconds.append((time.perf_counter() - started) / steps)
    return statistics.median(seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
