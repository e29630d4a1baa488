"""Random weights under the names of the published PyTorch U-Net."""

import numpy as np


def published_state_dict(features, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}

    def conv(name, *shape):
        arrays[f"{name}.weight"] = (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    def norm(name, channels):
        # Variances also next to 0, where the epsilons matter; the convolution's output is as small then.
        variance = 10 ** rng.uniform(-4, 0.5, channels)
        arrays[f"{name.replace('norm', 'conv')}.weight"] *= np.sqrt(variance)[:, None, None, None].astype(np.float32)
        arrays[f"{name}.running_var"] = variance.astype(np.float32)
        arrays[f"{name}.running_mean"] = (rng.normal(size=channels) * 0.3 * np.sqrt(variance)).astype(np.float32)
        arrays[f"{name}.weight"] = rng.uniform(0.5, 1.5, channels).astype(np.float32)
        arrays[f"{name}.bias"] = (rng.normal(size=channels) * 0.3).astype(np.float32)
        arrays[f"{name}.num_batches_tracked"] = np.array(7)

    def block(room, short, inputs, outputs):
        for i, channels in ((1, inputs), (2, outputs)):
            conv(f"{room}.{short}conv{i}", outputs, channels, 3, 3)
            norm(f"{room}.{short}norm{i}", outputs)

    widths = [features * 2**level for level in range(5)]
    for level in range(4):
        block(f"encoder{level + 1}", f"enc{level + 1}", widths[level - 1] if level else 3, widths[level])
        conv(f"upconv{level + 1}", widths[level + 1], widths[level], 2, 2)
        arrays[f"upconv{level + 1}.bias"] = rng.normal(size=widths[level]).astype(np.float32)
        block(f"decoder{level + 1}", f"dec{level + 1}", 2 * widths[level], widths[level])
    block("bottleneck", "bottleneck", widths[3], widths[4])
    conv("conv", 1, features, 1, 1)
    arrays["conv.bias"] = np.array([0.3], np.float32)
    return arrays
