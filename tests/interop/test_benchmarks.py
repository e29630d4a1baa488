"""The networks that speed is measured against do the same work, and a race is a race."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainseg_jax.models import build_model

torch = pytest.importorskip("torch", reason="torch comes with the extra `bench`")
contestants = pytest.importorskip("benchmarks.contestants")
speed = pytest.importorskip("benchmarks.speed")
twins = pytest.importorskip("benchmarks.torch_nets")


@pytest.mark.parametrize("name", ["unet", "attention_unet"])
def test_the_twin_in_torch_gives_the_same_logits(name, tmp_path):
    model = build_model(name, features=4, depth=2)
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), jnp.asarray(images), train=False)
    rng = np.random.default_rng(1)  # as initialized, statistics and biases would hide what is not carried over

    def shaken(tree, low):
        return jax.tree.map(lambda v: v + rng.uniform(low, 0.3, v.shape).astype(np.float32), tree)

    variables = {"params": shaken(variables["params"], -0.3), "batch_stats": shaken(variables["batch_stats"], 0.0)}
    net = twins.UNet(4, 2, attention=name == "attention_unet").eval()
    contestants.save(tmp_path / "weights.npz", variables, logits=np.zeros(1))
    twins.carry_over(net, tmp_path / "weights.npz")
    with torch.inference_mode():
        logits = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(model.apply(variables, images, train=False), logits, rtol=1e-4, atol=1e-4)


def test_a_race_of_two_processes():
    work = contestants.Work("unet", features=2, pixels=32, batch=2)
    (row,) = speed.race(work, ("torch",), repetitions=3)
    assert row["ratio"] == pytest.approx(row["ours_ms"] / row["reference_ms"])
    assert row["ratio_range"][0] <= row["ratio_range"][1]
    assert min(row["ours_ms"], row["ours_peak_mb"], row["reference_peak_mb"]) > 0
    assert work.name in speed.line(row)
