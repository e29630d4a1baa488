"""attn_dice

python -m brainseg_jax.main --config=configs/attn_dice.py --workdir=runs/attn_dice
"""

from ml_collections import ConfigDict

from brainseg_jax.config import default_config


def get_config(scale: str | None = None) -> ConfigDict:
    """See `default_config` for the scales."""
    config = default_config(scale)
    config.model.name = "attention_unet"
    config.loss.name = "dice"
    return config
