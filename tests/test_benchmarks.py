"""The networks that speed is measured against do the same work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brainseg_jax.models import build_model

torch = pytest.importorskip("torch", reason="torch comes with the extra `bench`")
twins = pytest.importorskip("benchmarks.torch_nets")


@pytest.mark.parametrize("name", ["unet", "attention_unet"])
def test_the_twin_in_torch_gives_the_same_logits(name):
    model = build_model(name, features=4, depth=2)
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), jnp.asarray(images), train=False)
    rng = np.random.default_rng(1)  # as initialized, statistics and biases would hide what is not carried over

    def shaken(tree, low):
        return jax.tree.map(lambda v: v + rng.uniform(low, 0.3, v.shape).astype(np.float32), tree)

    variables = {"params": shaken(variables["params"], -0.3), "batch_stats": shaken(variables["batch_stats"], 0.0)}
    net = twins.UNet(4, 2, attention=name == "attention_unet").eval()
    twins.carry_over(net, variables)
    with torch.inference_mode():
        logits = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(model.apply(variables, images, train=False), logits, rtol=1e-4, atol=1e-4)
