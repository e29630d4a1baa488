"""`benchmarks/gpu.py` in its tiny mode on a CPU: every part, and a part that fails or has no time."""

import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu, gpu_torch
from benchmarks.on_paper import bound_seconds

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(autouse=True)
def loose_ranks():
    """Allows rank promotion, as in a command."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """One network and one training; the others differ only in their names."""
    networks, configs = ("attention_unet",), ("unet_wce",)
    return gpu.Bench(gpu.TINY, tmp_path_factory.mktemp("gpu"), networks=networks, configs=configs)


def rows_of(name, bench, capsys):
    bench.until = float("inf")
    rows = gpu.run({name: gpu.PARTS[name]}, bench, seconds=3600, output=None)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith((f"{name}: ", "NOT OK"))]
    assert printed == [f"{name}: {row['line']}" for row in rows]  # beside what a training prints; none is NOT OK
    return rows


def test_a_part_that_fails_or_has_no_time_stops_no_other(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def fails(bench):
        yield {"line": "first"}
        raise ValueError("no such kernel\nmore")

    def slow(bench):
        for number in range(3):
            now[0] += 2.0
            yield {"line": f"row {number}", "ok": number != 0}

    def fine(bench):
        yield {"line": "fine", "value": 1.5}

    output = tmp_path / "gpu.json"
    parts = {"a": (1, fails), "b": (1, slow), "c": (1, fine)}
    bench = gpu.Bench(gpu.TINY, tmp_path)
    gpu.run(parts, bench, seconds=9.0, output=output)  # 3 s each; a leaves its time to b
    assert capsys.readouterr().out.splitlines() == [
        "a: first",
        "NOT OK a: failed: ValueError: no such kernel",
        "NOT OK b: row 0",
        "b: row 1",
        "b: row 2",
        "b: the time is over: rows that would follow are left out",
        "c: fine",
    ]
    rows = json.loads(output.read_text())["rows"]
    assert [row["part"] for row in rows] == ["a", "a", "b", "b", "b", "b", "c"] and rows[-1]["value"] == 1.5
    gpu.run({"d": (1, fine)}, bench, seconds=0.0, output=None)
    assert capsys.readouterr().out == "d: no time is left: the part is left out\n"


def test_all_parts_together_take_less_than_eight_minutes():
    assert sum(budget for budget, _ in gpu.PARTS.values()) <= 480


def test_tf32_by_hand():
    """10 bits of mantissa: 1 + 2^-11 is half-way and rounds to even, 1 + 3 * 2^-11 to 1 + 2^-9."""
    x = jnp.array([1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11], jnp.float32).reshape(1, 1, 3, 1)
    kernel = jnp.ones((1, 1, 1, 1), jnp.float32)

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    with gpu._rounded_to_tf32(True):
        y, back = jax.vjp(conv, x, kernel)
    np.testing.assert_array_equal(y.ravel(), [1 + 2**-10, 1.0, 1 + 2**-9])
    np.testing.assert_array_equal(back(x)[0].ravel(), y.ravel())  # the cotangent is rounded too
    # A gradient is a sum in float32 that is not rounded: 3 + 3 * 2^-10 needs 11 bits.
    np.testing.assert_array_equal(back(jnp.ones_like(y))[1].ravel(), [3 + 3 * 2**-10])
    np.testing.assert_array_equal(conv(x, kernel), x)


def test_roofline_by_hand():
    # U-Net, batch 32: 9.0467 TFLOP and 134.59 GB; at 67 TFLOP/s 135.0 ms, at 3.35 TB/s 40.2 ms.
    card = "NVIDIA H100 80GB HBM3"
    assert bound_seconds("unet", "float32", 32, card) == pytest.approx(0.1350, abs=1e-4)
    assert bound_seconds("unet", "TF32", 16, card) == pytest.approx(0.0402 / 2, abs=1e-4)
    assert bound_seconds("unet", "TF32", 32, "another") is None


def test_versions_and_operators(bench, capsys):
    (row,) = rows_of("versions", bench, capsys)
    assert (row["jax"], row["backend"]) == (jax.__version__, "cpu")
    rows = rows_of("operators", bench, capsys)
    assert len(rows) == 6 and all(0 < row["errors"]["float32"] <= 1e-5 for row in rows)


def test_agreement(bench, capsys):
    exact, tf32, bfloat16 = rows_of("agreement", bench, capsys)
    assert exact["logits"] < 1e-5 and exact["losses"] < 1e-5  # float32 against float64
    assert tf32["logits_limit"] > 100 * exact["logits_limit"]  # imitated on the CPU, as it has none
    assert 1e-3 < bfloat16["logits"] < 0.1


def test_resume(bench, capsys):
    (row,) = rows_of("resume", bench, capsys)
    assert row["different_arrays"] == 0


def test_commands(bench, capsys):
    rows = {row["command"]: row for row in rows_of("commands", bench, capsys)}
    assert {"main", "export onnx", "export stablehlo", "export safetensors", "predict", "evaluate"} == rows.keys()
    assert rows["predict"]["masks"] == 16 and rows["evaluate"]["dice"] == pytest.approx(rows["main"]["dice"], abs=1e-6)


def test_steps_and_the_largest_batch(bench, capsys):
    rows = rows_of("steps", bench, capsys)
    assert [(row["precision"], row["batch"]) for row in rows] == [(precision, 8) for precision in gpu.PRECISIONS]
    for row in rows:
        assert row["images_per_second"] == pytest.approx(8e3 / row["ms"]) and row["of_roofline"] is None
    bench.torch |= {("attention_unet", "float32", 16): 100.0, ("attention_unet", "float32", 8): 7.0}
    row = next(gpu.largest(bench))
    assert row["batch"] == 16  # a CPU has no limit: twice the batch
    assert row["of_torch"] == pytest.approx(row["images_per_second"] / 100)


def test_training(bench, capsys):
    (row,) = rows_of("training", bench, capsys)
    assert (row["config"], row["steps"], row["source"]) == ("unet_wce", 4, "phantom:9:0") and 0 <= row["dice"] <= 1


@pytest.mark.slow
def test_masks(bench, capsys):
    *scans, total = rows_of("masks", bench, capsys)
    assert total["imitated"] and total["tumor"] > 0 and total["voxels"] <= 0.01 * total["tumor"]
    assert all(0 < row["difference"] < 0.05 for row in scans)


def test_without_pytorch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(gpu_torch.importlib.util, "find_spec", lambda name: None)
    gpu_torch.main("unet", "2", "2", "32", "2", "1", "1")
    assert json.loads(capsys.readouterr().out)["line"] == "PyTorch is not installed: no comparison with it"
