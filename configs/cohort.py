"""Any cohort: plans the settings that depend on the data, prints their reasons, and stores them in `config.json`.

    python -m brainseg_jax.main --config=configs/cohort.py:cpu --config.data.source=FOLDER \
      --config.train.max_minutes=15 --workdir=runs/cohort

The source is a folder in the layout of nnU-Net, the Medical Segmentation Decathlon, BraTS or BIDS, a folder of images
and masks, or a folder with a `cohort.toml`. A flag such as `--config.model.features=24` overrides a planned value.
"""

from ml_collections import ConfigDict

from brainseg_jax.config import AUTO, PLANNED, default_config


def get_config(scale: str | None = None) -> ConfigDict:
    """See `default_config` for the scales; the recipe is the same at each."""
    config = default_config(scale)
    for key in PLANNED:
        section, name = key.split(".")
        config[section][name] = "auto" if isinstance(config[section][name], str) else AUTO
    config.data.normalization = "volume_zscore"
    config.model.name = "unet"
    config.model.norm = "conv"
    config.model.norm_momentum = 0.95
    config.loss.name = "dice_cross_entropy"
    config.split.update({"val": 0.1, "test": 0.2})
    config.augment.update({"rotation": 10.0, "scale": 0.1, "shift": 0.05, "flair_stand_in": 0.0})
    config.augment.update({"contrast": 0.1, "gamma": 0.1, "noise": 0.0})
    config.optimizer.update({"name": "adamw", "weight_decay": 1e-4, "clip_norm": 1.0, "schedule": "cosine"})
    config.optimizer.update({"warmup_epochs": 1.0, "ema_decay": 0.99, "learning_rate": 3e-3})
    config.train.update({"steps_per_epoch": 100, "epochs": 100, "keep": "last", "early_stop_patience": 0})
    config.eval.choose = True
    if scale == "cpu":
        config.train.update({"epochs": 10_000, "max_minutes": 25.0})
    elif scale == "quick":
        config.train.update({"epochs": 10, "steps_per_epoch": 40})
    return config
