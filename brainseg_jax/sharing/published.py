"""The published PyTorch U-Net (github.com/mateuszbuda/brain-segmentation-pytorch) as a run of ours.

Its architecture is `UNet(depth=4, norm="conv")`, of 32 features as published: the same layers, under other names.
"""

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
EPSILON = 1e-5  # of torch's batch normalization; ours has 1e-3
WHERE = "it is the state dict of the UNet of mateuszbuda/brain-segmentation-pytorch, saved with torch.save"


def convert(weights: Path, output: Path) -> int:
    """Writes a run folder that holds the weights.

    Its config is that of the published network: 256 pixels, normalization by `volume_zscore` (the nearest to its own,
    which also crops the head and takes percentiles over all channels together), the largest part of the mask alone.

    Args:
      weights: a state dict, saved by torch.
      output: the run folder to make; empty or not there.

    Returns:
      the number of parameters.

    Raises:
      InputError: torch is missing, the file holds anything else, or the folder cannot be used; nothing is written.
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
        raise InputError(f"--weights={weights} is of another network; {WHERE}:\n" + "\n".join(lines))
    put = jax.tree.map(lambda new, old: jax.device_put(jnp.asarray(new), old.sharding), variables, state.variables)
    try:
        output.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(output / "checkpoints")
        checkpoints.save(state.replace(**put), LoopState(), score=None)
        checkpoints.close()
        # Last: its presence means that the run is whole. No data, so no fingerprint.
        write_json(output / "config.json", {**config.to_dict(), "dataset": {"fingerprint": None}})
    except OSError as error:
        raise InputError(f"--output={output} cannot be written to ({error}); give another folder") from error
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads tensors and nothing else: torch's loader of weights alone runs no code of the file.

    Raises:
      InputError: torch is missing, or the file is not a dict of tensors.
    """
    try:
        import torch  # an extra
    except ImportError:
        raise InputError("converting needs PyTorch to read its files: pip install torch==2.13.0") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds; each means this one file
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"--weights={path} cannot be read as weights alone ({first}); {WHERE}") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(f"--weights={path} holds {type(content).__name__} with more than tensors; {WHERE}")
    return {name: value.float().numpy() for name, value in content.items()}


def to_variables(state_dict: dict[str, np.ndarray], path: Path) -> dict:
    """Our variables of the published names.

    Args:
      state_dict: arrays by name, as torch keeps them; also those of a network in DataParallel.
      path: of the file, for messages.

    Raises:
      InputError: names are missing or unknown.
    """
    # torch's DataParallel, which the network was trained in, puts "module." before each name.
    prefix = "module." if all(name.startswith("module.") for name in state_dict) else ""
    left = {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if not name.endswith("num_batches_tracked")
    }
    missing: list[str] = []

    def take(name: str) -> np.ndarray:
        if name not in left:
            missing.append(name)
        return left.pop(name, np.zeros((1, 1, 1, 1), np.float32))

    params: dict = {"head": {"kernel": _kernel(take("conv.weight")), "bias": take("conv.bias")}}
    statistics: dict = {}
    for ours, room, short in _blocks():
        params[ours], statistics[ours] = {}, {}
        for i in (0, 1):
            params[ours][f"Conv_{i}"] = {"kernel": _kernel(take(f"{room}.{short}conv{i + 1}.weight"))}
            norm = f"{room}.{short}norm{i + 1}"
            scale, bias, mean, variance = (
                take(f"{norm}.{k}") for k in ("weight", "bias", "running_mean", "running_var")
            )
            # The other epsilon goes into the scale: γ / sqrt(v + 1e-5) = γ' / sqrt(v + 1e-3).
            scale = (scale * np.sqrt((variance.astype(np.float64) + 1e-3) / (variance + EPSILON))).astype(np.float32)
            params[ours][f"BatchNorm_{i}"] = {"scale": scale, "bias": bias}
            statistics[ours][f"BatchNorm_{i}"] = {"mean": mean, "var": variance}
    for level in range(DEPTH):
        # [I, O, 2, 2], and flax flips the kernel in space.
        kernel = np.flip(_kernel(take(f"upconv{level + 1}.weight")), (0, 1)).swapaxes(-1, -2)
        params[f"up_{level}"] = {"kernel": np.ascontiguousarray(kernel), "bias": take(f"upconv{level + 1}.bias")}
    if missing or left:
        faults = [f"  missing: {name}" for name in missing] + [f"  unknown: {name}" for name in left]
        more = [f"  and {len(faults) - 10} more"] if faults[10:] else []
        raise InputError(f"--weights={path} is of another network; {WHERE}:\n" + "\n".join(faults[:10] + more))
    return {"params": params, "batch_stats": statistics}


def _blocks() -> list[tuple[str, str, str]]:
    """(our name, their module, their prefix of its layers) of each block."""
    levels = range(DEPTH)
    return [
        *((f"encoder_{level}", f"encoder{level + 1}", f"enc{level + 1}") for level in levels),
        ("bottleneck", "bottleneck", "bottleneck"),
        *((f"decoder_{level}", f"decoder{level + 1}", f"dec{level + 1}") for level in levels),
    ]


def _kernel(weight: np.ndarray) -> np.ndarray:
    """[O, I, H, W] to [H, W, I, O]; what is of another rank becomes an error of shape later."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0)) if weight.ndim == 4 else weight.reshape(1, 1, 1, -1)
