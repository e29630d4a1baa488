"""The best recipe so far: U-Net with Dice loss and cross-entropy.

    python -m brainseg_jax.main --config=configs/best.py --workdir=runs/best    # paper scale: not yet run
    python -m brainseg_jax.main --config=configs/best.py:cpu --config.train.max_minutes=60 --workdir=runs/best

Changes on top of `unet_dice.py`:
- Sampling draws each patient equally often, and slices with larger tumors more often.
- The loss is Dice plus cross-entropy, and a norm follows each convolution.
- Contrast and gamma vary half as much.
- Post-processing keeps only the largest connected component of a prediction.

At `:cpu` it trains on random windows of larger images, for a fixed time, and keeps the last network instead of the one
with the highest validation Dice. experiments/best_cpu describes the experiments behind it. Without a scale it is the
recipe of `:cpu` on whole native images with 64 features; `docs/how-to/gpus.md` gives the reasons.
"""

from ml_collections import ConfigDict

from brainseg_jax.config import default_config


def get_config(scale: str | None = None) -> ConfigDict:
    """See `default_config` for the scales."""
    config = default_config(scale)
    if not scale:
        small = default_config("cpu")
        config.data.normalization, config.model.norm_momentum = small.data.normalization, small.model.norm_momentum
        config.augment.update(small.augment)
        config.optimizer.update(small.optimizer)
        config.optimizer.update({"learning_rate": 7e-4, "ema_decay": 0.995, "warmup_epochs": 1.0})
        config.train.update({"epochs": 50, "steps_per_epoch": 100, "keep": "last", "early_stop_patience": 0})
    config.model.name = "unet"
    config.model.norm = "conv"
    config.loss.name = "dice_cross_entropy"
    config.augment.update({"contrast": 0.1, "gamma": 0.1})
    config.data.update({"by_patient": True, "tumor_sampling": 0.7, "area_power": 0.5})
    config.eval.largest_component = True
    if scale == "cpu":
        config.data.update({"image_size": 192, "crop_size": 128})
        config.train.update({"epochs": 10_000, "max_minutes": 60.0, "keep": "last", "early_stop_patience": 0})
    return config
