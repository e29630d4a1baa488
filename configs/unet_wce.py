"""unet_wce

python -m brainseg_jax.main --config=configs/unet_wce.py --workdir=runs/unet_wce
"""

from ml_collections import ConfigDict

from brainseg_jax.config import default_config


def get_config(scale: str | None = None) -> ConfigDict:
    """See `default_config` for the scales."""
    config = default_config(scale)
    config.model.name = "unet"
    config.loss.name = "weighted_cross_entropy"
    return config
