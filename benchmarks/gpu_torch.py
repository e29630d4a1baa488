"""The training step in PyTorch for `benchmarks.gpu`: a process of its own, which prints a line of JSON a measurement.

python -m benchmarks.gpu_torch NETWORKS FEATURES PIXELS BATCH BLOCKS STEPS
"""

import contextlib
import importlib.util
import json
import statistics
import sys
import time

from benchmarks.contestants import RATE, Work

NUMBERS = ("float32", "TF32", "bfloat16")


def main(networks: str, *sizes: str) -> None:
    """Eager PyTorch first, which compiles nothing; then `torch.compile`."""
    features, pixels, batch, blocks, steps = map(int, sizes)
    if not importlib.util.find_spec("torch"):
        return tell("PyTorch is not installed: no comparison with it", skipped=True)
    import torch

    cuda = torch.cuda.is_available()
    if not cuda:
        tell(f"PyTorch {torch.__version__} sees no GPU: it runs on the CPU, and float32 stands for TF32", cuda=False)
    for compiled in (False, True):
        for network in networks.split(","):
            for numbers in NUMBERS if not compiled else NUMBERS[1:]:
                way = "torch.compile" if compiled else "torch"
                row = {"network": network, "numbers": numbers, "batch": batch, "library": f"{way} {torch.__version__}"}
                try:
                    run = make_step(Work(network, features, pixels, batch), numbers, compiled=compiled)
                    took = seconds_of_a_step(run, blocks, steps)
                except Exception as error:  # without a C++ compiler torch.compile does not run
                    tell(f"{way}, {network}, {numbers}: does not run: {str(error).strip().splitlines()[-1]}", **row)
                    continue
                row |= {"ms": 1e3 * took, "images_per_second": batch / took}
                words = ""
                if cuda:
                    row["gib"] = torch.cuda.max_memory_allocated() / 2**30
                    words = f", {row['gib']:.1f} GiB"
                tell(f"{way}, {network}, {numbers}, batch {batch}: {1e3 * took:.1f} ms{words}", **row)


def tell(line: str, **row: object) -> None:
    """Prints a row."""
    print(json.dumps({**row, "line": line}), flush=True)


def make_step(work: Work, numbers: str, *, compiled: bool):
    """A training step with channels last, and bfloat16 by autocast, as a function without arguments."""
    import torch

    from benchmarks.torch_nets import UNet

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest" if numbers == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = numbers != "float32"
    torch.backends.cudnn.benchmark = True
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    net = UNet(work.features, 4, attention=work.network == "attention_unet")
    net = net.to(device, memory_format=torch.channels_last).train()
    images, masks = (torch.from_numpy(array.transpose(0, 3, 1, 2).copy()).to(device) for array in work.data())
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    forward = torch.compile(net) if compiled else net
    cast = torch.autocast(device, torch.bfloat16) if numbers == "bfloat16" else contextlib.nullcontext()

    def run() -> None:
        optimizer.zero_grad()
        with cast:
            logits = forward(images)
        p = torch.sigmoid(logits.float())
        loss = 1 - (2 * (p * masks).sum() + 0.1) / (p.sum() + masks.sum() + 0.1)
        loss.backward()
        optimizer.step()

    return run


def seconds_of_a_step(run, blocks: int, steps: int) -> float:
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
