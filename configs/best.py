"""The recipe to beat: U-Net with Dice loss and cross-entropy under what has helped so far.

    python -m brainseg_jax.main --config=configs/best.py:cpu --config.train.max_minutes=60 --workdir=runs/best

On top of `unet_dice.py`: each patient is drawn equally often, and slices of larger tumors more often; cross-entropy is
added to Dice; a norm follows each convolution; contrast and gamma vary half as much; the largest connected component of
a prediction is kept alone. At `:cpu` it trains on random windows of larger images, against the clock, and keeps the
last network, not that of the highest validation Dice. What else was tried is in experiments/best_cpu.
"""

from ml_collections import ConfigDict

from brainseg_jax.config import default_config


def get_config(scale: str | None = None) -> ConfigDict:
    """See `default_config` for the scales."""
    config = default_config(scale)
    config.model.name = "unet"
    config.model.norm = "conv"
    config.loss.name = "dice_cross_entropy"
    config.augment.contrast = 0.1
    config.augment.gamma = 0.1
    config.data.by_patient = True
    config.data.tumor_sampling = 0.7
    config.data.area_power = 0.5
    config.eval.largest_component = True
    if scale == "cpu":
        config.data.image_size = 192
        config.data.crop_size = 128
        config.train.epochs = 10_000
        config.train.max_minutes = 60.0
        config.train.keep = "last"
        config.train.early_stop_patience = 0
    return config
