"""Attention U-Net with weighted cross-entropy.

    python -m brainseg_jax.main --config=configs/attn_wce.py[:cpu|:quick] --workdir=runs/attn_wce

Not yet run on the real scans.
"""

from ml_collections import ConfigDict

from brainseg_jax.config import default_config


def get_config(scale: str | None = None) -> ConfigDict:
    """See `default_config` for the scales."""
    config = default_config(scale)
    config.model.name = "attention_unet"
    config.loss.name = "weighted_cross_entropy"
    return config
