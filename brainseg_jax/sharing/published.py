"""Converts the published PyTorch U-Net (github.com/mateuszbuda/brain-segmentation-pytorch) to a run folder.

Its architecture is `UNet(depth=4, norm="conv")` with 32 features; only the names of the layers differ.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from brainseg_jax import sharding
from brainseg_jax.config import default_config
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.scores import write_json
from brainseg_jax.files import check_folder
from brainseg_jax.models import build_model
from brainseg_jax.runs.checkpoint import Checkpoints
from brainseg_jax.runs.trained import different_shapes
from brainseg_jax.scans.description import LGG
from brainseg_jax.training.loop_state import LoopState
from brainseg_jax.training.optimizer import build_optimizer, build_schedule
from brainseg_jax.training.state import create_state

DEPTH = 4
EPSILON = 1e-5  # of torch's batch normalization; ours is 1e-3
EXPECTED = "give the state dict of the UNet of mateuszbuda/brain-segmentation-pytorch, saved with torch.save"


def convert(weights: Path, output: Path) -> int:
    """Writes a run folder with the weights.

    The config matches the published network: 256 pixels, and only the largest connected component of the mask. The
    closest normalization is `volume_zscore`; the original also crops the head and computes percentiles over all
    channels together.

    Args:
      weights: state dict saved by torch.
      output: run folder to create; empty or missing.

    Returns:
      Number of parameters.

    Raises:
      InputError: torch is missing, the file has other content, or the folder cannot be used. Nothing is written.
    """
    check_folder(output, "--output")
    if output.exists() and any(output.iterdir()):
        raise InputError(f"--output={output} is not empty; give a new folder")
    state_dict = read_state_dict(weights)
    variables = to_variables(state_dict, weights)
    features = int(variables["params"]["encoder_0"]["Conv_0"]["kernel"].shape[-1])
    config = default_config()
    config.model.update(name="unet", features=features, depth=DEPTH, norm="conv")
    config.data.normalization = "volume_zscore"
    config.eval.largest_component = True
    model, opt = build_model(**config.model), config.optimizer
    schedule = build_schedule("constant", learning_rate=opt.learning_rate, total_steps=1, warmup_steps=0)
    state = create_state(
        model,
        build_optimizer(opt.name, schedule, b2=opt.b2, weight_decay=opt.weight_decay, clip_norm=opt.clip_norm),
        image_shape=(config.data.image_size,) * 2 + (len(LGG.channels),),
        seed=config.seed,
        ema=False,
        mesh=sharding.data_mesh(),
    )
    if lines := different_shapes(variables, state.variables, "the file"):
        raise InputError(f"--weights={weights} has another network; {EXPECTED}:\n" + "\n".join(lines))
    new_variables = jax.tree.map(
        lambda new, old: jax.device_put(jnp.asarray(new), old.sharding), variables, state.variables
    )
    try:
        output.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(output / "checkpoints")
        checkpoints.save(dataclasses.replace(state, **new_variables), LoopState(), score=None)
        checkpoints.close()
        # Last: its presence marks a complete run. No data, so no fingerprint.
        write_json(output / "config.json", {**config.to_dict(), "dataset": {"fingerprint": None}})
    except OSError as error:
        raise InputError(f"--output={output} cannot be written to ({error}); give another folder") from error
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads only tensors: torch's weights-only loader runs no code from the file.

    Raises:
      InputError: torch is missing, or the file is not a dict of tensors.
    """
    try:
        import torch  # an extra
    except ImportError:
        raise InputError("converting needs PyTorch to read its files: pip install torch==2.13.0") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise many types for a damaged file
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"--weights={path} cannot be read as weights alone ({first}); {EXPECTED}") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(f"--weights={path}: {type(content).__name__} with other objects than tensors; {EXPECTED}")
    return {name: value.float().numpy() for name, value in content.items()}


def to_variables(state_dict: dict[str, np.ndarray], path: Path) -> dict:
    """Converts the published weights to variables of our network.

    Args:
      state_dict: arrays by torch name; also of a network in DataParallel.
      path: path of the file, for messages.

    Raises:
      InputError: names are missing or unknown.
    """
    # torch's DataParallel, used for its training, prefixes each name with "module.".
    prefix = "module." if all(name.startswith("module.") for name in state_dict) else ""
    unused = {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if not name.endswith("num_batches_tracked")
    }
    missing: list[str] = []

    def take(name: str) -> np.ndarray:
        if name not in unused:
            missing.append(name)
        return unused.pop(name, np.zeros((1, 1, 1, 1), np.float32))

    params: dict = {"head": {"kernel": _kernel(take("conv.weight")), "bias": take("conv.bias")}}
    statistics: dict = {}
    for block, module, layer_prefix in _blocks():
        params[block], statistics[block] = {}, {}
        for i in (0, 1):
            params[block][f"Conv_{i}"] = {"kernel": _kernel(take(f"{module}.{layer_prefix}conv{i + 1}.weight"))}
            norm = f"{module}.{layer_prefix}norm{i + 1}"
            scale, bias, mean, variance = (
                take(f"{norm}.{k}") for k in ("weight", "bias", "running_mean", "running_var")
            )
            # Adapts the scale to our epsilon: γ / sqrt(v + 1e-5) = γ' / sqrt(v + 1e-3).
            scale = (scale * np.sqrt((variance.astype(np.float64) + 1e-3) / (variance + EPSILON))).astype(np.float32)
            params[block][f"BatchNorm_{i}"] = {"scale": scale, "bias": bias}
            statistics[block][f"BatchNorm_{i}"] = {"mean": mean, "var": variance}
    for level in range(DEPTH):
        # [I, O, 2, 2]; flax flips the kernel spatially.
        kernel = np.flip(_kernel(take(f"upconv{level + 1}.weight")), (0, 1)).swapaxes(-1, -2)
        params[f"up_{level}"] = {"kernel": np.ascontiguousarray(kernel), "bias": take(f"upconv{level + 1}.bias")}
    if missing or unused:
        faults = [f"  missing: {name}" for name in missing] + [f"  unknown: {name}" for name in unused]
        rest = [f"  and {len(faults) - 10} more"] if faults[10:] else []
        raise InputError(f"--weights={path} has another network; {EXPECTED}:\n" + "\n".join(faults[:10] + rest))
    return {"params": params, "batch_stats": statistics}


def _blocks() -> list[tuple[str, str, str]]:
    """(our block name, their module name, their prefix of its layers) of each block."""
    levels = range(DEPTH)
    return [
        *((f"encoder_{level}", f"encoder{level + 1}", f"enc{level + 1}") for level in levels),
        ("bottleneck", "bottleneck", "bottleneck"),
        *((f"decoder_{level}", f"decoder{level + 1}", f"dec{level + 1}") for level in levels),
    ]


def _kernel(weight: np.ndarray) -> np.ndarray:
    """[O, I, H, W] to [H, W, I, O]. Another rank gives a wrong shape, which a later check reports."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0)) if weight.ndim == 4 else weight.reshape(1, 1, 1, -1)
