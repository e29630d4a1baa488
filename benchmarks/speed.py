"""Compares our networks with PyTorch, MONAI and plain flax, each in a separate process, in turns: `make bench`.

Prints a Markdown table and writes `benchmarks/speed.json`. Ratios below 1 mean that ours is faster. "torch" is the same
network with the same weights, and its logits are checked. "monai" is the network that MONAI offers for this task.
`--against=parts` compares ours with ours without one formulation or option: below 1 that part pays.
"""

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contestants import CONTESTANTS, Work
from benchmarks.worker import Worker

SIZES = ((16, 128, 16), (32, 256, 4))  # features, pixels, batch
WITHOUT = tuple(name for name in CONTESTANTS if name.startswith("without "))
ALL_LIBRARIES = tuple(name for name in CONTESTANTS if name != "ours" and name not in WITHOUT)


def races() -> list[tuple[Work, tuple[str, ...]]]:
    """Returns the work to compare, with the references for each."""
    selected = []
    for network in ("unet", "attention_unet"):
        for features, pixels, batch in SIZES:
            selected += [
                (Work(network, features, pixels, batch), ALL_LIBRARIES),
                (Work(network, features, pixels, 1, "inference"), ALL_LIBRARIES),
                (Work(network, features, pixels, 16, "inference"), ALL_LIBRARIES),
            ]
        selected.append((Work(network, 64, 256, 2), ("torch",)))
    return selected


def race(work: Work, references: tuple[str, ...], repetitions: int) -> list[dict]:
    """Returns one row per reference: medians in ms, the ratio of medians, minimum and maximum of the turns' ratios."""
    with tempfile.TemporaryDirectory() as shared, ExitStack() as processes:
        workers = {}
        for library in ("ours", *references):
            worker = processes.enter_context(Worker(library, work, Path(shared)))
            if worker.failure is None:
                workers[library] = worker
            else:
                print(f"| {work.name} | {work.kind} | {library} | does not run: {worker.failure} |", flush=True)
        times: dict[str, list[float]] = {library: [] for library in workers}
        for _ in range(repetitions):
            for library, worker in workers.items():
                times[library].append(worker.ms())
    ours = statistics.median(times["ours"])
    rows = []
    for library in workers:
        if library == "ours":
            continue
        ratios = [a / b for a, b in zip(times["ours"], times[library], strict=True)]
        theirs = statistics.median(times[library])
        row = {"name": work.name, "work": work.kind, "reference": library, "ours_ms": ours, "reference_ms": theirs}
        row |= {"ratio": ours / theirs, "ratio_range": [min(ratios), max(ratios)]}
        row |= {"ours_peak_mb": workers["ours"].peak_mb, "reference_peak_mb": workers[library].peak_mb}
        rows.append(row)
    return rows


def line(row: dict) -> str:
    """Formats a row of the Markdown table."""
    low, high = row["ratio_range"]
    return (
        f"| {row['name']} | {row['work']} | {row['reference']} | {row['ours_ms']:.0f} | {row['reference_ms']:.0f} | "
        f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}] | {row['ours_peak_mb']:.0f} | {row['reference_peak_mb']:.0f} |"
    )


def main() -> None:
    """Runs the selected comparisons; all by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--only", default="", help="words that network, size and work must contain")
    parser.add_argument("--against", default=",".join(ALL_LIBRARIES), help="references, separated by commas; or parts")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("speed.json"))
    arguments = parser.parse_args()
    print(
        "| network | work | reference | ours, ms | reference, ms | ratio [range] | ours, peak MB | reference, peak MB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    rows = []
    for work, references in races():
        if not all(word in f"{work.name} {work.kind}" for word in arguments.only.split()):
            continue
        requested = arguments.against.split(",")
        against = (
            WITHOUT if requested == ["parts"] else tuple(name for name in (*references, *WITHOUT) if name in requested)
        )
        for row in race(work, against, arguments.repetitions):
            print(line(row), flush=True)
            rows.append(row)
    arguments.output.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
