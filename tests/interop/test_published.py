"""The published PyTorch U-Net and its conversion: the same logits.

`python -m pytest -s tests/interop/test_published.py` prints the largest difference.
"""

import jax
import numpy as np
import pytest
from published_weights import published_state_dict

from brainseg_jax.errors import InputError
from brainseg_jax.models import build_model
from brainseg_jax.runs.trained import load_trained
from brainseg_jax.sharing import published

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("optax_promotion")


class Published(torch.nn.Module):
    """The architecture under its published names, written anew: blocks of (conv, norm, ReLU) twice, four levels."""

    def __init__(self, features):
        super().__init__()
        widths = [features * 2**level for level in range(5)]
        for level in range(4):
            inputs = widths[level - 1] if level else 3
            self.add_module(f"encoder{level + 1}", self.block(f"enc{level + 1}", inputs, widths[level]))
            up = torch.nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2)
            self.add_module(f"upconv{level + 1}", up)
            self.add_module(f"decoder{level + 1}", self.block(f"dec{level + 1}", 2 * widths[level], widths[level]))
        self.bottleneck = self.block("bottleneck", widths[3], widths[4])
        self.conv = torch.nn.Conv2d(features, 1, 1)

    @staticmethod
    def block(name, inputs, outputs):
        layers = torch.nn.Sequential()
        for i, channels in ((1, inputs), (2, outputs)):
            layers.add_module(f"{name}conv{i}", torch.nn.Conv2d(channels, outputs, 3, padding=1, bias=False))
            layers.add_module(f"{name}norm{i}", torch.nn.BatchNorm2d(outputs))
            layers.add_module(f"{name}relu{i}", torch.nn.ReLU())
        return layers

    def forward(self, x):
        skips = []
        for level in range(1, 5):
            skips.append(getattr(self, f"encoder{level}")(x))
            x = torch.nn.functional.max_pool2d(skips[-1], 2)
        x = self.bottleneck(x)
        for level in range(4, 0, -1):
            x = torch.cat([getattr(self, f"upconv{level}")(x), skips[level - 1]], dim=1)
            x = getattr(self, f"decoder{level}")(x)
        return self.conv(x)


def saved(path, features):
    net = Published(features).eval()
    net.load_state_dict({name: torch.from_numpy(array) for name, array in published_state_dict(features).items()})
    torch.save(net.state_dict(), path)
    return net


@pytest.mark.parametrize("features", [4, 32])
def test_logits(tmp_path, features):
    net = saved(tmp_path / "unet.pt", features)
    images = np.random.default_rng(3).normal(size=(2, 64, 48, 3)).astype(np.float32)
    variables = published.to_variables(published.read_state_dict(tmp_path / "unet.pt"), tmp_path / "unet.pt")
    model = build_model("unet", features=features, norm="conv")
    ours = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    with torch.no_grad():
        theirs = net(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    difference = np.abs(ours - theirs).max()
    print(
        f"\n{features} features: logits {theirs.min():.2f} to {theirs.max():.2f}, largest difference {difference:.1e}"
    )
    assert difference <= 1e-4 and np.ptp(theirs) > 1.0


def test_from_file_to_run(tmp_path):
    saved(tmp_path / "unet.pt", 2)
    published.convert(tmp_path / "unet.pt", tmp_path / "run")
    expected = published.to_variables(published_state_dict(2), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, load_trained(tmp_path / "run").network.variables, expected)


class Trap:
    def __reduce__(self):
        return (print, ("code of the file ran",))


@pytest.mark.parametrize("content", ["text", "a pickle", "a module", "a list", "missing"])
def test_what_is_no_state_dict(tmp_path, capsys, content):
    path = tmp_path / "weights.pt"
    if content == "text":
        path.write_text("no weights")
    elif content != "missing":
        torch.save({"a pickle": Trap(), "a module": Published(2), "a list": [1, 2]}[content], path)
    words = r"weights\.pt( cannot be read as weights alone|: list with other objects).*state dict"
    with pytest.raises(InputError, match=words):
        published.read_state_dict(path)
    assert "code of the file ran" not in capsys.readouterr().out
