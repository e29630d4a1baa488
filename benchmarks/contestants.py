"""The same work in each library, as a callable that does it once and waits for its end.

Each function imports its library itself, so that a process has the threads and memory of one library only.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

RATE = 1e-4  # of Adam


@dataclasses.dataclass(frozen=True)
class Work:
    """One unit of work to compare.

    Attributes:
      network: "unet" or "attention_unet".
      features: of the first level.
      pixels: height and width.
      batch: number of images.
      kind: "train_step" (forward, Dice loss over the batch, gradient, Adam) or "inference".
    """

    network: str
    features: int
    pixels: int
    batch: int
    kind: str = "train_step"

    @property
    def name(self) -> str:
        """The name in the table."""
        return f"{self.network}, {self.features} features, {self.pixels} px, batch {self.batch}"

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns images [B, S, S, 3] and masks [B, S, S, 1], float32, the same in every process."""
        rng = np.random.default_rng(0)
        images = rng.normal(size=(self.batch, self.pixels, self.pixels, 3)).astype(np.float32)
        return images, (rng.random((*images.shape[:3], 1)) > 0.95).astype(np.float32)


def ours(work: Work, shared: Path) -> Callable[[], None]:
    """Our network as a run compiles it. Saves its weights and logits in `shared` for the check in `torch_eager`."""
    from brainseg_jax import ops
    from brainseg_jax.compilation import release_compiler_memory

    release_compiler_memory()
    return _in_jax(work, formulation="auto", options=ops.compiler_options(), weights=shared / "weights.npz")


def naive_flax(work: Work, _: Path) -> Callable[[], None]:
    """The same network from XLA's own operators, compiled with the defaults of `jax.jit`."""
    return _in_jax(work, formulation="lax", options=None, weights=None)


def ours_without(part: str) -> Callable[[Work, Path], Callable[[], None]]:
    """Our network as a run compiles it, without one operator of `ops`, one compiler option or one memory saving.

    Args:
      part: a name of `PARTS`.
    """

    def contestant(work: Work, _: Path) -> Callable[[], None]:
        from brainseg_jax import ops
        from brainseg_jax.compilation import release_compiler_memory
        from brainseg_jax.models import blocks, unet

        if part.startswith("xla_"):
            ops._CPU_OPTIONS = {name: value for name, value in ops._CPU_OPTIONS.items() if name != part}
        elif part == "gradient order":
            blocks._parameters_first = lambda *arrays: list(arrays)
        elif part == "recomputation":
            unet.nn.remat = lambda network, **_: network
        else:
            operator = getattr(ops, part)
            setattr(ops, part, lambda *arguments: operator(*arguments[:-1], "lax"))
        release_compiler_memory()
        return _in_jax(work, formulation="auto", options=ops.compiler_options(), weights=None)

    return contestant


def _in_jax(work: Work, *, formulation: str, options: dict | None, weights: Path | None) -> Callable[[], None]:
    import jax
    import jax.numpy as jnp
    import optax

    from brainseg_jax.losses import dice_loss
    from brainseg_jax.models import build_model

    images, masks = map(jnp.asarray, work.data())
    model = build_model(work.network, features=work.features, formulation=formulation)
    variables = jax.jit(lambda: model.init(jax.random.key(0), images[:1], train=False), compiler_options=options)()
    infer = jax.jit(lambda v, x: model.apply(v, x, train=False), compiler_options=options)
    if weights is not None:
        save(weights, variables, logits=infer(variables, images[:1]))
    if work.kind == "inference":
        return lambda: infer(variables, images).block_until_ready()
    optimizer = optax.adam(RATE)

    def step(state: tuple, images: jax.Array, masks: jax.Array) -> tuple[tuple, jax.Array]:
        params, batch_stats, opt_state = state

        def loss(params: dict) -> tuple[jax.Array, dict]:
            inputs = {"params": params, "batch_stats": batch_stats}
            logits, updated = model.apply(inputs, images, train=True, mutable=["batch_stats"])
            return dice_loss(logits, masks, smooth=0.1, batch_wide=True).mean(), updated["batch_stats"]

        (value, batch_stats), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), batch_stats, opt_state), value

    compiled = jax.jit(step, donate_argnums=0, compiler_options=options)
    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))

    def run() -> None:
        nonlocal state
        state, value = compiled(state, images, masks)
        value.block_until_ready()

    return run


def save(weights: Path, variables: dict, *, logits: np.ndarray) -> None:
    """Saves the variables of one of our networks as arrays named by path, and the logits of its first image."""
    from flax.traverse_util import flatten_dict

    np.savez(weights, **flatten_dict(variables, sep="/"), logits=np.asarray(logits))


def torch_eager(work: Work, shared: Path) -> Callable[[], None]:
    """The same network in PyTorch with the same weights. SystemExit: its logits differ from those of `ours`."""
    from benchmarks.torch_nets import UNet, carry_over

    net = UNet(work.features, 4, attention=work.network == "attention_unet")
    carry_over(net, shared / "weights.npz")
    images, _ = work.data()
    logits = np.load(shared / "weights.npz")["logits"]
    difference = np.abs(_torch_logits(net, images[:1]) - logits).max()
    if difference > 1e-4:
        raise SystemExit(f"{work.name}: the logits differ by {difference}; fix the layers in torch_nets.py")
    return _in_torch(net, work)


def torch_compile(work: Work, _: Path) -> Callable[[], None]:
    """The same network with `torch.compile`, which needs a C++ compiler."""
    import torch

    from benchmarks.torch_nets import UNet

    return _in_torch(torch.compile(UNet(work.features, 4, attention=work.network == "attention_unet")), work)


def monai(work: Work, _: Path) -> Callable[[], None]:
    """The network that MONAI offers for this task: `BasicUNet` or `AttentionUnet` with the same widths."""
    from monai.networks.nets import AttentionUnet, BasicUNet

    widths = [work.features * 2**level for level in range(5)]
    if work.network == "attention_unet":
        return _in_torch(AttentionUnet(2, 3, 1, channels=widths, strides=(2, 2, 2, 2)), work)
    return _in_torch(BasicUNet(2, 3, 1, features=(*widths, work.features)), work)


def _torch_logits(net: Callable, images: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return net.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)


def _in_torch(net: Callable, work: Work) -> Callable[[], None]:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    x, y = (torch.from_numpy(a.transpose(0, 3, 1, 2).copy()) for a in work.data())
    if work.kind == "inference":
        net.eval()

        def infer() -> None:
            with torch.inference_mode():
                net(x)

        return infer
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    net.train()

    def run() -> None:
        optimizer.zero_grad()
        p = torch.sigmoid(net(x))
        loss = 1 - (2 * (p * y).sum() + 0.1) / (p.sum() + y.sum() + 0.1)
        loss.backward()
        optimizer.step()

    return run


PARTS = (  # what `ours_without` can leave out
    *("conv3x3", "conv_transpose2x2", "conv1x1_stride2", "max_pool2x2", "upsample2x"),
    *("gradient order", "recomputation"),
    *("xla_cpu_experimental_ynn_fusion_type", "xla_cpu_scheduler_type", "xla_cpu_use_fusion_emitters"),
)
CONTESTANTS = {
    "ours": ours,
    "torch": torch_eager,
    "torch.compile": torch_compile,
    "monai": monai,
    "naive flax": naive_flax,
    **{f"without {part}": ours_without(part) for part in PARTS},
}
