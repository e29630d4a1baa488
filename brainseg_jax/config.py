"""All config keys with their defaults and meanings. The files in `configs/` override some of them."""

import math

from ml_collections import ConfigDict

from brainseg_jax.errors import InputError


def default_config(scale: str | None = None) -> ConfigDict:
    """Returns the recipe of the reproduced Keras project on the LGG data, or a smaller scale of it.

    Args:
      scale: The text after the colon of `--config=configs/FILE.py:SCALE`. None: the scale of the paper, for a GPU.
        "cpu": real scans at a size that two CPU cores train in under an hour. "quick": synthetic scans, about two
        minutes.

    Returns:
      A locked ConfigDict: existing keys can be set, and a new key is an error.

    Raises:
      InputError: The scale is unknown.
    """
    if scale not in _SCALES:
        raise InputError(
            f"config scale {scale!r} is unknown; leave it out or use one of {', '.join(filter(None, _SCALES))}"
        )
    config = _paper()
    config.update(_SCALES[scale])
    return config.lock()


def _paper() -> ConfigDict:
    """All keys, with their values at the scale of the paper."""
    config = ConfigDict()
    config.seed = 0  # seed of the initial weights, the order of the slices and the augmentation
    config.deterministic = False  # GPU: same bits in each run, but slower; a CPU always gives the same bits
    config.compilation_cache = 1.0  # maximum GiB of compiled programs in ~/.cache/brainseg_jax; 0: no cache

    config.model = ConfigDict()
    config.model.name = "unet"  # the network: unet | attention_unet
    config.model.features = 64  # channels of the first level; they double at each level down
    config.model.depth = 4  # number of 2x2 poolings
    config.model.norm = "block"  # batch norm: block (one per block) | conv (after each convolution) | none
    config.model.norm_momentum = 0.99  # decay of the running statistics of batch norm
    config.model.gate_upsampling = "nearest"  # in attention_unet: nearest (reproduced project) | bilinear (the paper)
    config.model.deep_supervision = False  # also train heads at coarser decoder levels, each at half the weight
    config.model.dtype = "float32"  # compute dtype: float32 | bfloat16; parameters and logits stay float32
    config.model.precision = "default"  # of float32 products: default (TF32 on a GPU) | highest (float32 everywhere)
    config.model.formulation = "auto"  # of the operators in ops.py, with the same maths: lax (XLA) | cpu | auto

    config.loss = ConfigDict()
    # dice | generalized_dice | tversky | focal_tversky | focal | dice_cross_entropy (nnU-Net's)
    config.loss.name = "dice"  # | weighted_cross_entropy (class weights from the training masks as drawn)
    config.loss.smooth = 0.1  # smoothing term of the overlap losses, except generalized_dice
    config.loss.batch_wide = True  # overlap losses: sums over the whole batch, not for each slice
    config.loss.false_negative_weight = 0.7  # tversky, focal_tversky: beta; the weight of false positives is 1 - beta
    config.loss.focal_tversky_gamma = 4 / 3  # focal_tversky: the Tversky loss to the power of 1 / gamma
    config.loss.focal_gamma = 2.0  # focal: a higher gamma reduces the weight of well-classified pixels
    config.loss.focal_tumor_weight = 0.25  # focal: alpha; the weight of background is 1 - alpha
    config.loss.target_weights = ()  # weights of the targets, in the order of the data; empty: equal weights

    config.data = ConfigDict()
    config.data.source = "kaggle"  # kaggle | phantom | phantom:PATIENTS:SEED | a kaggle_3m folder or zip | any cohort
    config.data.dir = ""  # folder of prepared data; empty: TFDS_DATA_DIR, else ~/tensorflow_datasets
    config.data.residence = "auto"  # auto (memory if the slices fit) | memory | disk; the batches are equal
    config.data.image_size = 256  # pixels a side in training; scores always use the grid of each scan
    config.data.pixel_spacing = 0.0  # mm per pixel (input pixels if the spacing is unknown); 0: slices fill the image
    config.data.crop_size = 0  # pixels a side of a random crop of each training image; 0: the whole image
    config.data.view = "axial"  # slices for the network: axial | coronal | sagittal | all (three views, averaged)
    config.data.context = 0  # neighboring slices on either side, as extra input channels
    config.data.normalization = "rescale"  # rescale (/255) | volume_zscore (Buda et al.) | volume_median (of the head)
    config.data.tumor_sampling = 0.0  # share of each batch drawn from slices with tumor; 0: all slices equally often
    config.data.by_patient = False  # draw each patient equally often, whatever its number of slices
    config.data.area_power = 0.0  # by_patient: tumor slices are drawn in proportion to their tumor area to this power

    config.split = ConfigDict()  # always by patient, stratified by institution
    config.split.seed = 0  # seed of the split
    config.split.val = 0.1  # share of the patients
    config.split.test = 0.1  # share of the patients
    config.split.folds = 0  # k > 0: k-fold cross-validation instead of shares; val is the fold after test
    config.split.fold = 0  # index of the test fold, from 0
    config.split.file = ""  # a split.json, or splits_final.json of nnU-Net; empty: a new split

    config.augment = ConfigDict()  # each value is the maximum of a random amount; 0: off
    config.augment.rotation = 0.0  # angle in degrees
    config.augment.scale = 0.0  # relative change of size
    config.augment.shift = 0.0  # share of the side of the image
    config.augment.shear = 0.0  # angle in degrees
    config.augment.flip = 0.0  # probability of a left-right mirror image
    config.augment.flair_stand_in = 0.0  # probability that FLAIR replaces other channels, as for a missing sequence
    config.augment.contrast = 0.0  # relative change of contrast
    config.augment.gamma = 0.0  # natural logarithm of the exponent
    config.augment.noise = 0.0  # standard deviation, relative to that of the image

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # adam | adamw
    config.optimizer.learning_rate = 1e-4  # maximum of the schedule
    config.optimizer.b2 = 0.99  # decay of the running mean of squared gradients in Adam
    config.optimizer.weight_decay = 0.0  # decoupled, for kernels only; needs adamw
    config.optimizer.clip_norm = 0.0  # maximum global norm of the gradient; 0: off
    config.optimizer.ema_decay = 0.0  # decay of a moving average of the weights, which is used for scores; 0: off
    config.optimizer.schedule = "plateau"  # plateau | cosine | constant
    config.optimizer.warmup_epochs = 0.0  # length of a linear warmup from 0
    config.optimizer.plateau_factor = 0.1  # multiplies the rate after plateau_patience epochs without a better val Dice
    config.optimizer.plateau_patience = 5  # epochs without a better val Dice
    config.optimizer.plateau_min = 1e-6  # minimum learning rate

    config.train = ConfigDict()
    config.train.init_from = ""  # start from the weights of this run folder or `pretrained`; empty: random weights
    config.train.epochs = 25  # maximum number of epochs
    config.train.batch_size = 32  # slices per step, over all devices
    config.train.steps_per_epoch = 0  # updates per epoch; 0: one pass over the training slices
    config.train.max_minutes = 0.0  # > 0: time limit of training and validation; a cosine schedule ends at it
    config.train.early_stop_patience = 15  # stop after this many epochs without a better val Dice; 0: off
    config.train.keep = "best"  # checkpoint to score, predict with and export: best (mean val Dice) | last
    config.train.log_every = 10  # steps between reports of the loss
    config.train.skip_nonfinite = 0  # maximum number of updates to skip because loss or gradient is not finite

    config.plan = ConfigDict()  # limits for the keys that are AUTO, which the data decide; see training/plan.py
    config.plan.image_size = 256  # maximum pixels a side
    config.plan.features = 32  # model.features, if AUTO
    config.plan.batch_size = 16  # slices per batch at that image size; smaller images allow more

    config.eval = ConfigDict()
    config.eval.batch_size = 32  # slices per batch; scores do not depend on it
    config.eval.mirror = False  # average the probabilities with those of the mirror image; takes twice as long
    config.eval.threshold = 0.5  # minimum probability of a tumor pixel
    config.eval.largest_component = False  # keep only the largest 3-D connected component of each prediction
    config.eval.min_voxels = 0  # remove 3-D connected components of fewer voxels, on slices of 256 x 256 pixels
    config.eval.choose = False  # after training, choose the three settings above by the validation score
    return config


AUTO = -1  # marks a number that `training.plan` fills in; text is "auto"
PLANNED = (
    *("data.view", "data.pixel_spacing", "data.image_size", "data.tumor_sampling"),
    *("model.depth", "model.features", "train.batch_size", "augment.flip"),
)
_RANGES = {  # key: minimum and maximum
    "data.image_size": (16, 1024),
    "data.pixel_spacing": (0.0, 100.0),
    "data.crop_size": (0, 1024),
    "data.context": (0, 5),
    "model.features": (1, 1024),
    "model.depth": (1, 8),
    "model.norm_momentum": (0.0, 0.9999),
    "loss.smooth": (0.0, math.inf),
    "loss.false_negative_weight": (0.0, 1.0),
    "loss.focal_tversky_gamma": (1.0, 3.0),
    "loss.focal_gamma": (0.0, 10.0),
    "loss.focal_tumor_weight": (0.0, 1.0),
    "data.tumor_sampling": (0.0, 1.0),
    "data.area_power": (0.0, 2.0),
    "augment.rotation": (0.0, 180.0),
    "augment.scale": (0.0, 0.9),
    "augment.shift": (0.0, 1.0),
    "augment.shear": (0.0, 80.0),
    "augment.flip": (0.0, 1.0),
    "augment.flair_stand_in": (0.0, 1.0),
    "augment.contrast": (0.0, 0.99),
    "augment.gamma": (0.0, 5.0),
    "augment.noise": (0.0, math.inf),
    "optimizer.learning_rate": (1e-12, math.inf),
    "optimizer.b2": (0.0, 0.999999),
    "optimizer.weight_decay": (0.0, math.inf),
    "optimizer.clip_norm": (0.0, math.inf),
    "optimizer.ema_decay": (0.0, 0.999999),
    "optimizer.warmup_epochs": (0.0, math.inf),
    "optimizer.plateau_factor": (1e-12, 1.0),
    "optimizer.plateau_patience": (1, math.inf),
    "optimizer.plateau_min": (0.0, math.inf),
    "train.epochs": (1, math.inf),
    "train.batch_size": (1, math.inf),
    "train.steps_per_epoch": (0, math.inf),
    "train.max_minutes": (0.0, math.inf),
    "train.early_stop_patience": (0, math.inf),
    "train.log_every": (1, math.inf),
    "train.skip_nonfinite": (0, math.inf),
    "plan.image_size": (16, 1024),
    "plan.features": (1, 1024),
    "plan.batch_size": (1, math.inf),
    "eval.batch_size": (1, math.inf),
    "eval.threshold": (0.0, 1.0),
    "eval.min_voxels": (0, math.inf),
}


_CHOICES = {
    "model.name": ("unet", "attention_unet"),
    "model.norm": ("block", "conv", "none"),
    "model.gate_upsampling": ("nearest", "bilinear"),
    "model.dtype": ("float32", "bfloat16"),
    "model.precision": ("default", "highest"),
    "loss.name": (
        *("dice", "weighted_cross_entropy", "dice_cross_entropy"),
        *("generalized_dice", "tversky", "focal_tversky", "focal"),
    ),
    "model.formulation": ("auto", "lax", "cpu"),
    "data.residence": ("auto", "memory", "disk"),
    "data.view": ("axial", "coronal", "sagittal", "all"),
    "data.normalization": ("rescale", "volume_zscore", "volume_median"),
    "train.keep": ("best", "last"),
    "optimizer.name": ("adam", "adamw"),
    "optimizer.schedule": ("plateau", "cosine", "constant"),
}


def check_config(config: ConfigDict) -> None:
    """Raises InputError with all values of the config that are not a valid choice or are out of range.

    Call it before reading data: a misspelt name must not start a download.
    """
    faults = []
    for key, choices in _CHOICES.items():
        section, name = key.split(".")
        if config[section][name] not in choices and not _is_planned(config, key):
            faults.append(f"  {key}={config[section][name]!r}: give one of {', '.join(choices)}")
    if not 0.0 <= config.compilation_cache < math.inf:
        faults.append(f"  compilation_cache={config.compilation_cache}: give GiB, or 0 for no cache")
    if not 0 <= config.seed < 2**32:
        faults.append(f"  seed={config.seed}: give 0 to {2**32 - 1}")
    for key, (minimum, maximum) in _RANGES.items():
        section, name = key.split(".")
        value = config[section][name]
        if _is_planned(config, key):
            continue
        if not (minimum <= value <= maximum and math.isfinite(value)):
            valid = f"at least {minimum}" if maximum == math.inf else f"{minimum} to {maximum}"
            faults.append(f"  {key}={value}: give {valid}")
    crop, side, depth = config.data.crop_size, config.data.image_size, config.model.depth
    if crop and side != AUTO and crop > side:
        faults.append(f"  data.crop_size={crop}: images have {side} pixels a side; give at most that, or 0 for no crop")
    if crop and depth != AUTO and crop % 2**depth:
        faults.append(f"  data.crop_size={crop}: model.depth={depth} needs a multiple of {2**depth}")
    if config.data.view in ("sagittal", "all"):
        faults += [
            f"  {key}={value} with data.view={config.data.view}: sagittal slices have no left and right; give {off}"
            for key, value, off in (
                ("augment.flip", max(0.0, config.augment.flip), 0.0),
                ("eval.mirror", config.eval.mirror, False),
            )
            if value
        ]
    if faults:
        raise InputError("the config has values that cannot be used:\n" + "\n".join(faults))


def _is_planned(config: ConfigDict, key: str) -> bool:
    section, name = key.split(".")
    return key in PLANNED and config[section][name] in (AUTO, "auto")


_OVERLAP = ("dice", "dice_cross_entropy", "tversky", "focal_tversky")
_TVERSKY = ("tversky", "focal_tversky")
_USED = {  # key: condition under which it has an effect, as text and as a function of the config
    "model.norm_momentum": ("with model.norm=block or conv", lambda c: c.model.norm != "none"),
    "model.gate_upsampling": ("with model.name=attention_unet", lambda c: c.model.name == "attention_unet"),
    "loss.smooth": (f"with loss.name={', '.join(_OVERLAP)}", lambda c: c.loss.name in _OVERLAP),
    "loss.batch_wide": (
        f"with loss.name={', '.join(_OVERLAP)}, generalized_dice",
        lambda c: c.loss.name in (*_OVERLAP, "generalized_dice"),
    ),
    "loss.false_negative_weight": (f"with loss.name={', '.join(_TVERSKY)}", lambda c: c.loss.name in _TVERSKY),
    "loss.focal_tversky_gamma": ("with loss.name=focal_tversky", lambda c: c.loss.name == "focal_tversky"),
    "loss.focal_gamma": ("with loss.name=focal", lambda c: c.loss.name == "focal"),
    "loss.focal_tumor_weight": ("with loss.name=focal", lambda c: c.loss.name == "focal"),
    "data.area_power": (
        "with data.by_patient and data.tumor_sampling",
        lambda c: c.data.by_patient and c.data.tumor_sampling > 0,
    ),
    "split.seed": ("without split.file", lambda c: not c.split.file),
    "split.val": ("without split.file and split.folds", lambda c: not c.split.file and not c.split.folds),
    "split.test": ("without split.file and split.folds", lambda c: not c.split.file and not c.split.folds),
    "split.folds": ("without split.file", lambda c: not c.split.file),
    "split.fold": ("with split.folds, or a split.file of nnU-Net", lambda c: bool(c.split.file) or c.split.folds > 0),
    "optimizer.plateau_factor": ("with optimizer.schedule=plateau", lambda c: c.optimizer.schedule == "plateau"),
    "optimizer.plateau_patience": ("with optimizer.schedule=plateau", lambda c: c.optimizer.schedule == "plateau"),
    "optimizer.plateau_min": ("with optimizer.schedule=plateau", lambda c: c.optimizer.schedule == "plateau"),
}


def idle_keys(config: ConfigDict) -> list[str]:
    """Lists keys without effect that differ from the defaults of all scales, each with the condition for an effect."""
    defaults = [default_config(scale) for scale in _SCALES]
    idle = []
    for key, (condition, used) in _USED.items():
        section, name = key.split(".")
        value = config[section][name]
        if not used(config) and all(value != default[section][name] for default in defaults):
            idle.append(f"{key}={value} ({condition} only)")
    return idle


_AUGMENT = {"rotation": 20.0, "scale": 0.15, "shift": 0.05, "flip": 0.5}
_AUGMENT |= {"flair_stand_in": 0.2, "contrast": 0.2, "gamma": 0.2, "noise": 0.1}
_SMALL = {
    "data": {"normalization": "volume_median", "tumor_sampling": 0.5},
    "model": {"norm_momentum": 0.9},
    "optimizer": {"name": "adamw", "weight_decay": 1e-4, "clip_norm": 1.0, "schedule": "cosine", "warmup_epochs": 1.0},
    "augment": _AUGMENT,
}


def _merged(*sections: dict) -> dict:
    result: dict = {}
    for section in sections:
        for key, values in section.items():
            result[key] = {**result.get(key, {}), **values}
    return result


_SCALES = {
    None: {},
    "cpu": _merged(
        _SMALL,
        {
            "model": {"features": 16},
            "plan": {"image_size": 128, "features": 16, "batch_size": 16},
            "data": {"image_size": 128},
            "split": {"val": 0.1, "test": 0.2},
            "optimizer": {"learning_rate": 2e-3, "ema_decay": 0.99, "warmup_epochs": 0.3},
            "train": {"epochs": 24, "batch_size": 16, "steps_per_epoch": 100},
        },
    ),
    "quick": _merged(
        _SMALL,
        {
            "model": {"features": 8, "depth": 3},
            "plan": {"image_size": 64, "features": 8, "batch_size": 16},
            "data": {"image_size": 64, "source": "phantom"},
            "split": {"val": 0.2, "test": 0.25},
            "optimizer": {"learning_rate": 3e-3},
            "train": {"epochs": 10, "batch_size": 16, "steps_per_epoch": 40},
        },
    ),
}
