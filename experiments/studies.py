"""All studies in one place: the cells, folds, seeds and budget of each."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from brainseg_jax.errors import InputError
from brainseg_jax.runs.run_folder import flatten
from configs import best
from configs.unet_dice import get_config


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of a study's table.

    Attributes:
      name: of its folder.
      label: name in tables and plots.
      changes: config keys and their values, on top of `configs/unet_dice.py` and the budget.
      features: factor for `model.features` of the budget.
      patients: number of training patients, 0: all. Smaller sets are subsets of larger ones.
      rescores: the cell trains nothing; it scores the baseline's checkpoints again.
      by_slice: the split assigns slices, not patients; see `by_slice.py`.
      published: the figure of the reproduced project, its soft IoU per batch of 32.
    """

    name: str
    label: str
    changes: dict[str, object] = dataclasses.field(default_factory=dict, hash=False)
    features: float = 1.0
    patients: int = 0
    rescores: bool = False
    by_slice: bool = False
    published: float | None = None


class Budget(NamedTuple):
    """The training length of every cell of a study. It counts steps, so a busy machine changes nothing.

    Attributes:
      scale: of `configs/unet_dice.py`; None: the paper's.
      changes: config keys and their values on top of it.
      folds: those that are run, of `Study.folds`.
      seeds: of initial weights, order and augmentation.
    """

    scale: str | None
    changes: dict[str, object]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]


FOLDS = 3  # each patient is a test patient in one of them
VALIDATION = 6  # one in this many of the other patients validates
ALL = tuple(range(FOLDS))


@dataclasses.dataclass(frozen=True)
class Study:
    """A question, its cells and its budgets. The first cell is the baseline for all comparisons.

    Attributes:
      question: in one or two sentences.
      cells: the rows of its table.
      budgets: by scale.
      folds: number of folds; each patient is a test patient in one of them.
      validation: one in this many of the other patients validates.
    """

    question: str
    cells: tuple[Cell, ...]
    budgets: dict[str | None, Budget]
    folds: int = FOLDS
    validation: int = VALIDATION

    @property
    def baseline(self) -> Cell:
        """The cell that the others are compared with."""
        return self.cells[0]


class Job(NamedTuple):
    """One training, or one rescoring of a checkpoint."""

    cell: Cell
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """Its folder in `runs/`."""
        return f"{self.cell.name}/fold{self.fold}_seed{self.seed}"


QUICK = Budget(
    "quick",
    {
        "data.source": "phantom:9:0",
        "data.image_size": 32,
        "model.features": 2,
        "model.depth": 2,
        "train.epochs": 1,
        "train.batch_size": 8,
        "train.steps_per_epoch": 3,
        "train.log_every": 1,
    },
    folds=(0,),
    seeds=(0,),
)
QUICK_SIZES = QUICK.changes | {"data.crop_size": 16}  # override those of a cell
# On two cores a U-Net step at :cpu takes about 0.75 s: 330 steps take 5 to 6 minutes with scoring, 180 take 3 to 4.
LONGER = Budget("cpu", {"train.epochs": 6, "train.steps_per_epoch": 55, "optimizer.warmup_epochs": 0.5}, ALL, (0,))
SHORTER = Budget("cpu", {"train.epochs": 4, "train.steps_per_epoch": 45, "optimizer.warmup_epochs": 0.5}, ALL, (0,))
ONE_FOLD = SHORTER._replace(folds=(0,))
# Limited by time: cells must not share cores.
TIMED = Budget("cpu", {"train.max_minutes": 25.0, "train.epochs": 10_000, "train.early_stop_patience": 0}, ALL, (0,))
FIVE_FOLDS, FEW = 5, 14  # number of folds; one in FEW of the other patients validates
# For a GPU: the reproduced recipe unchanged, or the recipe of :cpu at the paper's size.
PAPER = Budget(None, {}, ALL, (0, 1, 2))
PAPER_SIZE = Budget(
    "cpu", {"data.image_size": 256, "model.features": 64, "train.epochs": 50, "train.batch_size": 32}, ALL, (0, 1, 2)
)
SMALL_BUDGETS = {"quick": QUICK, "cpu": ONE_FOLD, None: PAPER_SIZE}

WCE = {"loss.name": "weighted_cross_entropy"}
ATTENTION = {"model.name": "attention_unet"}
PLAIN_IMAGES = {
    f"augment.{name}": 0.0
    for name in ("rotation", "scale", "shift", "shear", "flip", "flair_stand_in", "contrast", "gamma", "noise")
}
# The recipe of github.com/mateuszbuda/brain-segmentation-pytorch (dataset, loss, train, transform, utils), with a
# learning rate that suits 25 minutes. Differences from the original: slices are not cropped to the head, dark pixels
# are not set to 0, the first and the last slice of a patient are used, the normalization takes percentiles of each
# channel, slices are resized bilinearly (not with order 2), and the initial weights are those of our networks.
PUBLISHED = PLAIN_IMAGES | {
    "model.norm": "conv",
    "loss.smooth": 1.0,
    "data.normalization": "volume_zscore",
    "data.by_patient": True,
    "data.tumor_sampling": 1 / 1.1,
    "data.area_power": 1.0,
    "augment.rotation": 15.0,
    "augment.scale": 0.05,
    "augment.flip": 0.5,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 1e-3,
    "optimizer.b2": 0.999,
    "optimizer.weight_decay": 0.0,
    "optimizer.clip_norm": 0.0,
    "optimizer.ema_decay": 0.0,
    "optimizer.schedule": "constant",
    "optimizer.warmup_epochs": 0.0,
    "eval.largest_component": True,
}
RECIPE = Cell("recipe", "the recipe: U-Net, Dice")


def _changes_of_best(scale: str | None) -> dict[str, object]:
    """Returns where `configs/best.py` differs from `configs/unet_dice.py`, except for the training length."""
    plain, changed = (flatten(config_at(scale).to_dict()) for config_at in (get_config, best.get_config))
    return {key: value for key, value in changed.items() if value != plain[key] and key not in TIMED.changes}


# On one core a step of best.py at :cpu takes 0.8 to 2.9 s, by machine: 1 000 steps take 13 to 50 minutes.
OUT_OF_FOLD = Budget("cpu", {"train.epochs": 10, "train.early_stop_patience": 0}, tuple(range(FIVE_FOLDS)), (0,))
LEAKING = OUT_OF_FOLD._replace(changes=_changes_of_best("cpu") | OUT_OF_FOLD.changes)


STUDIES = {
    "reproduce": Study(
        "Does Dice loss beat weighted cross-entropy, and do attention gates help? Each is trained from scratch.",
        (
            Cell("unet_dice", "U-Net, Dice", published=0.5160),
            Cell("unet_wce", "U-Net, weighted cross-entropy", WCE, published=0.3414),
            Cell("attn_dice", "Attention U-Net, Dice", ATTENTION, published=0.6002),
            Cell("attn_wce", "Attention U-Net, weighted cross-entropy", ATTENTION | WCE),
        ),
        {"quick": QUICK, "cpu": LONGER, None: PAPER},
    ),
    "recipe": Study(
        "What does each ingredient of the recipe contribute? Each cell changes one.",
        (
            RECIPE,
            Cell("rescale", "pixels / 255", {"data.normalization": "rescale"}),
            Cell("zscore", "z-score of the volume", {"data.normalization": "volume_zscore"}),
            Cell("no_augmentation", "no augmentation", PLAIN_IMAGES),
            Cell(
                "by_patient",
                "each patient equally often",
                {"data.by_patient": True, "data.tumor_sampling": 0.7, "data.area_power": 0.5},
            ),
            Cell("no_tumor_sampling", "each slice equally often", {"data.tumor_sampling": 0.0}),
            Cell("dice_cross_entropy", "Dice + cross-entropy", {"loss.name": "dice_cross_entropy"}),
            Cell("slice_dice", "Dice slice by slice", {"loss.batch_wide": False, "loss.smooth": 100.0}),
            Cell(
                "slice_dice_cross_entropy",
                "Dice slice by slice + cross-entropy",
                {"loss.name": "dice_cross_entropy", "loss.batch_wide": False, "loss.smooth": 1.0},
            ),
            Cell("generalized_dice", "generalized Dice", {"loss.name": "generalized_dice"}),
            Cell("tversky", "Tversky, beta 0.7", {"loss.name": "tversky"}),
            Cell("focal_tversky", "focal Tversky, beta 0.7", {"loss.name": "focal_tversky"}),
            Cell("focal", "focal", {"loss.name": "focal"}),
            Cell("deep_supervision", "deep supervision", {"model.deep_supervision": True}),
            Cell("no_ema", "no weight averaging", {"optimizer.ema_decay": 0.0}),
            Cell("constant", "constant learning rate", {"optimizer.schedule": "constant"}),
            Cell("norm_conv", "norm after each convolution", {"model.norm": "conv"}),
            Cell("no_norm", "no norm", {"model.norm": "none"}),
            Cell("width_half", "half the features", features=0.5),
            Cell("width_double", "twice the features", features=2.0),
            Cell("size_64", "64 pixels", {"data.image_size": 64}),
            Cell("size_192", "192 pixels", {"data.image_size": 192}),
            Cell("largest", "largest 3-D component only", {"eval.largest_component": True}, rescores=True),
            Cell("chosen", "post-processing chosen on validation", {"eval.choose": True}, rescores=True),
            Cell("mirror", "mirror images averaged", {"eval.mirror": True}, rescores=True),
        ),
        SMALL_BUDGETS,
    ),
    "leakage": Study(
        "How much does a score rise when slices of one patient are on both sides of the split?",
        (Cell("by_patient", "split by patient"), Cell("by_slice", "split by slice", by_slice=True)),
        {"quick": QUICK, "cpu": LEAKING, None: PAPER_SIZE._replace(folds=tuple(range(FIVE_FOLDS)))},
        folds=FIVE_FOLDS,
        validation=FEW,
    ),
    "scaling": Study(
        "Which helps more: more patients or a larger network?",
        (
            Cell("all", "all training patients"),
            Cell("patients_10", "10 training patients", patients=10),
            Cell("patients_20", "20 training patients", patients=20),
            Cell("patients_40", "40 training patients", patients=40),
            Cell("width_half", "all patients, half the features", features=0.5),
            Cell("width_double", "all patients, twice the features", features=2.0),
        ),
        SMALL_BUDGETS,
    ),
    "cross_validation": Study(
        "How does each patient score under the network that was not trained on this patient?",
        (Cell("unet_dice", "U-Net, Dice"), Cell("attn_dice", "Attention U-Net, Dice", ATTENTION)),
        {"quick": QUICK, "cpu": LONGER, None: PAPER_SIZE},
    ),
    "best": Study(
        "How does each patient score out of fold with configs/best.py?",
        (
            Cell("best", "1 000 steps", _changes_of_best("cpu")),
            # As long as the training of the pretrained network.
            Cell("longer", "2 000 steps", _changes_of_best("cpu") | {"train.epochs": 20}),
        ),
        {"quick": QUICK, "cpu": OUT_OF_FOLD},
        folds=FIVE_FOLDS,
        validation=FEW,
    ),
    "against_published": Study(
        "Does configs/best.py beat the recipe of the published PyTorch U-Net in the same time?",
        (
            Cell("published", "the published recipe", PUBLISHED),
            Cell("best", "configs/best.py", _changes_of_best("cpu")),
        ),
        {"quick": QUICK, "cpu": TIMED},
    ),
}


def parse_study(text: str) -> tuple[Study, Budget]:
    """Returns the study and budget of `--study=NAME[:SCALE]`.

    Raises:
      InputError: the study or the budget does not exist.
    """
    name, _, scale = text.partition(":")
    if name not in STUDIES:
        raise InputError(f"--study={text}: unknown study {name!r}; give one of {', '.join(STUDIES)}")
    study = STUDIES[name]
    if (scale or None) not in study.budgets:
        scales = ", ".join(f"{name}:{budget}" if budget else name for budget in study.budgets)
        raise InputError(f"--study={text}: unknown budget {scale!r}; give one of {scales}")
    return study, study.budgets[scale or None]


def jobs(study: Study, budget: Budget) -> Iterator[Job]:
    """Yields all cells, seeds and folds, fold by fold: an interrupted study has then compared whole folds."""
    for seed in budget.seeds:
        for fold in budget.folds:
            yield from (Job(cell, fold, seed) for cell in study.cells)


def settings_of(job: Job, budget: Budget, *, source: str | None) -> dict[str, object]:
    """Returns what the job's command sets on top of `configs/unet_dice.py`, by config key.

    A cell's changes override those of the budget. At :quick the budget wins, so that no cell is slow.

    Args:
      job: of `jobs`.
      budget: of its study.
      source: of the data, instead of the config's.
    """
    changes = dict(job.cell.changes)
    if budget.scale == "quick":
        changes |= {key: value for key, value in QUICK_SIZES.items() if key in changes}
    settings = {**budget.changes, **changes, "seed": job.seed}
    if job.cell.features != 1.0:
        features = settings.get("model.features", get_config(budget.scale).model.features)
        settings["model.features"] = round(features * job.cell.features)
    return settings | ({"data.source": source} if source else {})


def config_of(job: Job, budget: Budget, *, source: str | None) -> ConfigDict:
    """Returns the whole config of a job, without the file of the split."""
    config = get_config(budget.scale)
    config.update_from_flattened_dict(settings_of(job, budget, source=source))
    return config
