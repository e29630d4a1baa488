"""The output of a trained network for normalized slices, with or without their mirror images."""

from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp


class Forward(NamedTuple):
    """The output of `forward`.

    Attributes:
      logits: [B, side, side, K] float32, for the unmirrored slices.
      members: probabilities, each [B, side, side, K]; their mean is the prediction. The first is for the slices, the
        second for their mirror images, mirrored back.
      attention: [B, side, side, 1] in [0, 1] of the finest attention gate; None for a network without gates.
    """

    logits: jax.Array
    members: tuple[jax.Array, ...]
    attention: jax.Array | None

    @property
    def probability(self) -> jax.Array:
        """Mean of the members, [B, side, side, K]."""
        return sum(self.members[1:], start=self.members[0]) / len(self.members)


def forward(model: nn.Module, variables: dict, images: jax.Array, *, mirror: bool) -> Forward:
    """Runs the network in evaluation mode.

    Args:
      model: maps [B, side, side, channels] to logits [B, side, side, K].
      variables: variables of the model.
      images: [B, side, side, channels] float32, normalized; left-right is the third axis.
      mirror: whether to predict left-right mirror images as well (test-time augmentation).
    """
    logits, state = cast(tuple, model.apply(variables, images, train=False, mutable=["intermediates"]))
    members = [jax.nn.sigmoid(logits)]
    if mirror:
        mirrored = cast(jax.Array, model.apply(variables, jnp.flip(images, axis=2), train=False))
        members.append(jnp.flip(jax.nn.sigmoid(mirrored), axis=2))
    gates = state.get("intermediates", {})
    return Forward(logits, tuple(members), gates["gate_0"]["attention"][0] if gates else None)
