"""Builds networks by name."""

from typing import Any, get_args

import jax.numpy as jnp

from brainseg_jax.errors import InputError
from brainseg_jax.models.attention_unet import AttentionUNet
from brainseg_jax.models.unet import Precision, UNet
from brainseg_jax.ops import Formulation

MODELS = {"unet": UNet, "attention_unet": AttentionUNet}
PRECISIONS = get_args(Precision)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build_model(name: str, *, dtype: str = "float32", gate_upsampling: str = "nearest", **fields: Any) -> UNet:
    """Builds a network.

    Args:
      name: A key of `MODELS`.
      dtype: Compute dtype, a key of `DTYPES`.
      gate_upsampling: Upsampling of the attention gates, if the network has them.
      **fields: Other fields of the network: features, depth, targets, norm, norm_momentum, precision,
        deep_supervision, formulation.

    Returns:
      The module, not yet initialized.

    Raises:
      InputError: A name or a value is unknown.
    """
    if name not in MODELS:
        raise InputError(f"model.name={name!r} is not a network; choose one of {', '.join(MODELS)}")
    if dtype not in DTYPES:
        raise InputError(f"model.dtype={dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
    if fields.get("precision", "default") not in PRECISIONS:
        raise InputError(f"model.precision={fields['precision']!r} is unknown; choose {' or '.join(PRECISIONS)}")
    if fields.get("norm", "block") not in ("block", "conv", "none"):
        raise InputError(f"model.norm={fields['norm']!r} is unknown; choose block, conv or none")
    if fields.get("formulation", "auto") not in get_args(Formulation):
        raise InputError(f"model.formulation={fields['formulation']!r} is unknown; choose auto, lax or cpu")
    if gate_upsampling not in ("nearest", "bilinear"):
        raise InputError(f"model.gate_upsampling={gate_upsampling!r} is not a method; choose nearest or bilinear")
    if name == "attention_unet":
        fields["gate_upsampling"] = gate_upsampling
    return MODELS[name](dtype=DTYPES[dtype], **fields)
