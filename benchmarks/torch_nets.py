"""The same two networks in PyTorch, for comparisons of speed: same layers, same weights, same logits."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """conv - ReLU - conv - batch norm - ReLU, like `ConvBlock` with norm "block"."""

    def __init__(self, channels: int, features: int):
        """Maps [B, channels, H, W] to [B, features, H, W]."""
        super().__init__()
        self.first = nn.Conv2d(channels, features, 3, padding=1)
        self.second = nn.Conv2d(features, features, 3, padding=1)
        self.norm = nn.BatchNorm2d(features, eps=1e-3, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See `__init__`."""
        return functional.relu(self.norm(self.second(functional.relu(self.first(x)))))


class Gate(nn.Module):
    """An attention gate like `AttentionGate`, with up-sampling "nearest"."""

    def __init__(self, features: int):
        """Creates a gate for a skip of `features` channels; the gating signal has twice as many."""
        super().__init__()
        self.skip = nn.Conv2d(features, features, 1, stride=2)
        self.gating = nn.Conv2d(2 * features, features, 1)
        self.attention_logit = nn.Conv2d(features, 1, 1)
        self.norm = nn.BatchNorm2d(features, eps=1e-3, momentum=0.01)

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        """Maps [B, F, H, W] and [B, 2F, H / 2, W / 2] to [B, F, H, W]."""
        psi = self.attention_logit(functional.relu(self.skip(skip) + self.gating(gating)))
        return self.norm(functional.interpolate(torch.sigmoid(psi), scale_factor=2.0) * skip)


class UNet(nn.Module):
    """The same as our `UNet`, or with `attention` as `AttentionUNet`, with norm "block"."""

    def __init__(self, features: int, depth: int, *, attention: bool):
        """See `brainseg_jax.models`."""
        super().__init__()
        widths = [features * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(Block(3 if i == 0 else widths[i - 1], widths[i]) for i in range(depth))
        self.bottleneck = Block(widths[-2], widths[-1])
        self.gate = nn.ModuleList(Gate(width) for width in widths[:-1]) if attention else None
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, 2) for width in widths[:-1])
        self.decoder = nn.ModuleList(Block(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(features, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [B, 3, H, W] to logits [B, 1, H, W]."""
        skips = []
        for block in self.encoder:
            skips.append(block(x))
            x = functional.max_pool2d(skips[-1], 2)
        x = self.bottleneck(x)
        for level in reversed(range(len(skips))):
            skip = skips[level] if self.gate is None else self.gate[level](skips[level], x)
            x = self.decoder[level](torch.cat([self.up[level](x), skip], 1))
        return self.head(x)


def carry_over(net: UNet, weights: Path) -> None:
    """Copies weights and statistics from the file of `contestants.save` into the same network in PyTorch."""
    with np.load(weights) as arrays:
        for name, array in arrays.items():
            if not name.startswith(("params/", "batch_stats/")):
                continue
            _, group, *path, leaf = name.split("/")
            group, _, level = group.partition("_")
            module = getattr(net, group)[int(level)] if level else getattr(net, group)
            for step in path:
                module = getattr(module, {"Conv_0": "first", "Conv_1": "second", "BatchNorm_0": "norm"}.get(step, step))
            if leaf == "kernel" and isinstance(module, nn.ConvTranspose2d):
                array = np.flip(array, (0, 1)).transpose(2, 3, 0, 1)  # torch does not flip the kernel in space
            elif leaf == "kernel":
                array = array.transpose(3, 2, 0, 1)
            names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
            with torch.no_grad():
                getattr(module, names.get(leaf, leaf)).copy_(torch.from_numpy(array.copy()))
