"""U-Net with weighted cross-entropy.

    python -m brainseg_jax.main --config=configs/unet_wce.py[:cpu|:quick] --workdir=runs/unet_wce

`:cpu`, 70 patients, seed 0, 14 test patients: 3-D Dice 0.454 mean, 0.514 median
(experiments/lgg_70_cpu). Paper scale: not yet run.
"""

from ml_collections import ConfigDict

from brainseg_jax.config import default_config


def get_config(scale: str | None = None) -> ConfigDict:
    """See `default_config` for the scales."""
    config = default_config(scale)
    config.model.name = "unet"
    config.loss.name = "weighted_cross_entropy"
    return config
