"""The cohort on the devices, and the batch of a step, drawn from it and augmented there."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from brainseg_jax import ops, sharding
from brainseg_jax.data.augment import perturb_intensity, stand_in, warp
from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.normalization import Normalization, normalize


class DeviceCohort(NamedTuple):
    """The cohort's arrays, whole on each device. An argument of each step: closed over, they would be compiled in."""

    images: jax.Array  # [N, S, S, 3] uint8
    masks: jax.Array  # [N, S, S, 1] uint8 in {0, 1}
    native_masks: jax.Array  # [N, 256, 256, 1] uint8 in {0, 1}
    patient_index: jax.Array  # [N] int32
    normalization: Normalization  # of [P, 3]

    def normalized(self, images: jax.Array, indices: jax.Array) -> jax.Array:
        """Normalizes images [B, H, W, 3] of the slices `indices` [B] by the constants of their patients."""
        constants = jax.tree.map(lambda c: c[self.patient_index[indices]], self.normalization)
        return jax.vmap(normalize)(images, constants)


def put_cohort(cohort: Cohort, mesh: Mesh) -> DeviceCohort:
    """Lays the cohort on every device, once a run."""
    put = partial(sharding.put, sharding=sharding.replicated(mesh))
    masks = put(cohort.masks)
    return DeviceCohort(
        images=put(cohort.images),
        masks=masks,
        native_masks=masks if cohort.native_masks is cohort.masks else put(cohort.native_masks),
        patient_index=put(cohort.patient_index),
        normalization=jax.tree.map(put, cohort.normalization),
    )


def augmentation_keys(seed: int, step: int | jax.Array, examples: int) -> list[jax.Array]:
    """The keys of the warp, the intensity and the stand-in, [B] each; all of one split, so that no two are equal."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return [jax.random.split(purpose, examples) for purpose in jax.random.split(key, 3)]


def make_batches(
    *,
    mesh: Mesh,
    seed: int,
    geometry: dict[str, float],
    intensity: dict[str, float],
    flair_stand_in: float = 0.0,
    deterministic: bool = False,
) -> Callable[[jax.Array, DeviceCohort, jax.Array], tuple[jax.Array, jax.Array]]:
    """Compiles what comes before an update: gather, warp, normalize, change the intensity.

    It is two programs, apart from the update's: in one, XLA on a CPU works out the warp anew in each loop that reads a
    pixel. `benchmarks/overhead.py` measures it.

    Args:
      mesh: the batch is divided over it.
      seed: of the augmentation, folded with the step.
      geometry: amounts of `augment.warp`.
      intensity: amounts of `augment.perturb_intensity`.
      flair_stand_in: probability of `augment.stand_in`.
      deterministic: see `ops.compiler_options`.

    Returns:
      (step, cohort, indices [B] int32) -> (images [B, S, S, 3] float32, normalized, and masks [B, S, S, 1] float32 in
      {0, 1}).
    """

    def gather_and_warp(step: jax.Array, cohort: DeviceCohort, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys, _, _ = augmentation_keys(seed, step, len(indices))
        images, masks = cohort.images[indices].astype(jnp.float32), cohort.masks[indices].astype(jnp.float32)
        return jax.vmap(partial(warp, **geometry))(keys, images, masks)

    def normalize_and_change(step: jax.Array, cohort: DeviceCohort, indices: jax.Array, images: jax.Array) -> jax.Array:
        _, keys, stand_in_keys = augmentation_keys(seed, step, len(indices))
        images = cohort.normalized(images, indices)
        images = jax.vmap(partial(stand_in, probability=flair_stand_in))(stand_in_keys, images)
        return jax.vmap(partial(perturb_intensity, **intensity))(keys, images)

    everywhere, divided = sharding.replicated(mesh), sharding.over_batch(mesh)
    compiled = partial(
        jax.jit,
        out_shardings=divided,
        compiler_options=ops.compiler_options(deterministic=deterministic, network=False),
    )
    first = compiled(gather_and_warp, in_shardings=(everywhere, everywhere, divided))
    second = compiled(normalize_and_change, in_shardings=(everywhere, everywhere, divided, divided))

    def batch(step: jax.Array, cohort: DeviceCohort, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Warped before normalization, so that what comes in from outside the image is black, not mean gray.
        images, masks = first(step, cohort, indices)
        return second(step, cohort, indices, images), masks

    return batch
