"""The same two networks in PyTorch, for speed beside speed: same layers, same weights, same logits."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """conv - ReLU - conv - batch norm - ReLU, as `ConvBlock` with norm "block"."""

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
    """As `AttentionGate`, up-sampling "nearest"."""

    def __init__(self, features: int):
        """A gate of a skip of `features` channels; the gating signal has twice as many."""
        super().__init__()
        self.skip = nn.Conv2d(features, features, 1, stride=2)
        self.gating = nn.Conv2d(2 * features, features, 1)
        self.attention_logit = nn.Conv2d(features, 1, 1)
        self.norm = nn.BatchNorm2d(features, eps=1e-3, momentum=0.01)

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        """[B, F, H, W] and [B, 2F, H / 2, W / 2] to [B, F, H, W]."""
        psi = self.attention_logit(functional.relu(self.skip(skip) + self.gating(gating)))
        return self.norm(functional.interpolate(torch.sigmoid(psi), scale_factor=2.0) * skip)


class UNet(nn.Module):
    """As `UNet`, or with `attention` as `AttentionUNet`, of norm "block"."""

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
        """[B, 3, H, W] to logits [B, 1, H, W]."""
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
    """Copies the weights and statistics of a network of `brainseg_jax.models`, of `contestants.save`, into its twin."""
    with np.load(weights) as arrays:
        for name, array in arrays.items():
            if not name.startswith(("params/", "batch_stats/")):
                continue
            _, room, *inner, leaf = name.split("/")
            room, _, level = room.partition("_")
            module = getattr(net, room)[int(level)] if level else getattr(net, room)
            for part in inner:
                module = getattr(module, {"Conv_0": "first", "Conv_1": "second", "BatchNorm_0": "norm"}.get(part, part))
            if leaf == "kernel" and isinstance(module, nn.ConvTranspose2d):
                array = np.flip(array, (0, 1)).transpose(2, 3, 0, 1)  # torch does not flip the kernel in space
            elif leaf == "kernel":
                array = array.transpose(3, 2, 0, 1)
            names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
            with torch.no_grad():
                getattr(module, names.get(leaf, leaf)).copy_(torch.from_numpy(array.copy()))
