"""unet_dice

python -m brainseg_jax.main --config=configs/unet_dice.py --workdir=runs/unet_dice
"""

from ml_collections import ConfigDict

from brainseg_jax.config import default_config


def get_config(scale: str | None = None) -> ConfigDict:
    """See `default_config` for the scales."""
    config = default_config(scale)
    config.model.name = "unet"
    config.loss.name = "dice"
    return config
