"""Shows where the time of our training step goes: `taskset -c 0 python -m benchmarks.profile_step`.

It needs one core: with more, XLA starts a convolution and continues, and no event marks its end. It prints the time of
a step by kind of operator. It also lists the slowest fusions, with the minimum number of bytes that they move.
"""

import argparse
import math
import os
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from benchmarks.contestants import Work, ours

BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "u8": 1}


class Operator(NamedTuple):
    """One instruction of the compiled step.

    Attributes:
      kind: name in the table.
      shape: of its result, as XLA writes it.
      moved: bytes of operands and result.
      source: JAX's name for its place in the network.
    """

    kind: str
    shape: str
    moved: int
    source: str


def operators(text: str) -> dict[str, Operator]:
    """Returns the instructions of the main computation of a compiled program, by name."""
    instructions: dict[str, Operator] = {}
    sizes: dict[str, int] = {}
    for line in text[text.index("\nENTRY") :].splitlines():
        match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*?)\)", line)
        if not match:
            continue
        name, shape, code, operands = match.groups()
        sizes[name] = _size(shape)
        read = sum(sizes.get(operand, 0) for operand in re.findall(r"%([\w.\-]+)", operands))
        source = re.search(r'op_name="jit\(step\)/([^"]*)"', line)
        source = source[1] if source else ""
        instructions[name] = Operator(_kind(name, code, line, source), shape.split("{")[0], read + sizes[name], source)
    return instructions


def _kind(name: str, code: str, line: str, source: str) -> str:
    if code == "convolution":
        if not re.search("window={size=[13]x3 ", line):
            return "kernel gradient"  # the window is the whole image
        return "input gradient" if "transpose(jvp" in source else "convolution"
    if code == "fusion" and name.startswith("transpose_copy"):
        return "transposition"
    return {"dot": "matrix product", "fusion": "sum" if name.startswith("ynn") else "elementwise"}.get(code, "other")


def _size(shape: str) -> int:
    return sum(
        BYTES.get(kind, 4) * math.prod(int(side) for side in sides.split(",") if side)
        for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    )


def main() -> None:
    """Profiles the step of one network at the scale of `:cpu`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("unet", "attention_unet"), default="unet")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--slowest", type=int, default=8, help="number of fusions to list")
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) > 1:
        parser.error("run it on one core: taskset -c 0 python -m benchmarks.profile_step")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_hlo_module_re=jit_step"  # jax reads it at import
        run = ours(Work(arguments.network, 16, 128, 16), Path(folder))
        import jax

        for _ in range(2):
            run()
        with jax.profiler.trace(folder):
            for _ in range(arguments.steps):
                run()
        (program,) = Path(folder).glob("*jit_step*cpu_after_optimizations.txt")
        instructions = operators(program.read_text())
        (trace,) = Path(folder).rglob("*.xplane.pb")
        ms = Counter()
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
            for thread in plane.lines:
                for event in thread.events:
                    if event.name in instructions:
                        ms[event.name] += event.duration_ns / 1e6 / arguments.steps
    kinds = Counter()
    for name, duration in ms.items():
        kinds[instructions[name].kind] += duration
    print("| kind | ms per step | share |\n| --- | --- | --- |")
    for kind, duration in kinds.most_common():
        print(f"| {kind} | {duration:.0f} | {duration / kinds.total():.0%} |")
    print("\n| fusion | result | ms | GB/s | source |\n| --- | --- | --- | --- | --- |")
    fusions = [name for name, _ in ms.most_common() if instructions[name].kind in ("elementwise", "transposition")]
    for name in fusions[: arguments.slowest]:
        _, shape, moved, source = instructions[name]
        print(f"| {name} | {shape} | {ms[name]:.1f} | {moved / ms[name] / 1e6:.1f} | {source} |")


if __name__ == "__main__":
    main()
