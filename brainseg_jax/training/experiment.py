"""Builds all objects of a training from a config. Only this module and the loop read the keys of the config."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from brainseg_jax import sharding
from brainseg_jax.config import check_config
from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.load_cohort import IN_MEMORY, ON_DISK, load_cohort
from brainseg_jax.data.residence import DISK, Residence
from brainseg_jax.data.sampling import BatchSampler, PatientSampler
from brainseg_jax.data.splits import cases_sharing_patients
from brainseg_jax.files import network_path
from brainseg_jax.runs.data import choose_split, find_data
from brainseg_jax.runs.evaluation import Evaluation, choose_for, evaluation_of, read_cohort
from brainseg_jax.runs.trained import cases_of_training, start_from
from brainseg_jax.training.feed import DeviceFeed, HostFeed, make_feed
from brainseg_jax.training.objective import Loss, build_loss
from brainseg_jax.training.optimizer import build_optimizer, build_schedule
from brainseg_jax.training.plan import PlannedValue, plan
from brainseg_jax.training.state import TrainState, create_state
from brainseg_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """All objects of a training.

    Attributes:
      config: The config, with all planned values filled in.
      planned: The values that the plan filled in, with reasons.
      residence: Where the slices are stored: on the devices, in memory or on disk.
      evaluation: The inputs of the scores: cohort, split, network and masks.
      mesh: The mesh of all devices.
      schedule: Maps a step to its learning rate.
      sampler: Maps a step to the indices of its slices.
      feed: Maps a step to its slices, on the devices.
      steps_per_epoch: Number of updates per epoch.
      initial_state: The state with random weights.
      init_from: `train.init_from` of the config, or None if it is empty.
      train_step: See `make_train_step`.
    """

    config: ConfigDict
    planned: list[PlannedValue]
    residence: Residence
    evaluation: Evaluation
    mesh: Mesh
    schedule: optax.Schedule
    sampler: BatchSampler | PatientSampler
    feed: DeviceFeed | HostFeed
    steps_per_epoch: int
    initial_state: TrainState
    init_from: str | None
    train_step: Callable

    @property
    def cohort(self) -> Cohort:
        """All cases, on the host."""
        return self.evaluation.cohort

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.evaluation.network.model

    def first_state(self) -> TrainState:
        """The state before the first step: `initial_state`, or the weights of `init_from`.

        Only a new run needs it. A resumed run does not read `init_from`.

        Raises:
          InputError: See `network_path` and `start_from`.
        """
        if not self.init_from:
            return self.initial_state
        folder = network_path(self.init_from, "--config.train.init_from")
        state = start_from(folder, self.initial_state)
        split, cohort = self.evaluation.split, self.cohort
        if (cases := cases_of_training(folder)) is None:
            logging.warning(
                "train.init_from=%s has no split.json: it is unknown whether it was trained on validation or test "
                "cases of this run",
                folder,
            )
            return state
        trained, trained_or_chosen = (
            cases_sharing_patients(cohort.cases, cohort.patients, names) for names in (cases[0], cases[0] | cases[1])
        )
        if leaked := trained.intersection(split.val) | trained_or_chosen.intersection(split.test):
            logging.warning(
                "train.init_from=%s was trained on or chosen by %d validation or test cases of this run (%s): "
                "their scores are too good; use the same split for both runs (split.file)",
                *(folder, len(leaked), ", ".join(sorted(leaked)[:5]) + (", ..." if len(leaked) > 5 else "")),
            )
        return state


def build_experiment(
    config: ConfigDict, *, load: Callable[..., Cohort] = load_cohort, run: Path | None = None
) -> Experiment:
    """Builds all objects of a training, and so checks the config and the data.

    Args:
      config: From `default_config`, with overrides.
      load: Reads the prepared data; called like `load_cohort`. A study can pass a function that changes the data.
      run: The folder of a run of this config, if there is one. If `data.source` or `split.file` no longer exists, the
        fingerprint of the run identifies its data, and its `split.json` gives the split.

    Raises:
      InputError: The config or the data cannot be used.
    """
    check_config(config)
    mesh = sharding.data_mesh()
    folder = find_data(config.data, run, source_first=True)
    config, planned = plan(config, folder)
    check_config(config)
    sharding.check_divides(mesh, "train.batch_size", config.train.batch_size)
    sharding.check_divides(mesh, "eval.batch_size", config.eval.batch_size)
    residence = choose_for(config, folder)
    cohort = read_cohort(config, folder, load, slices=ON_DISK if residence.kind == DISK else IN_MEMORY)
    split = choose_split(config.split, cohort, run)
    train_slices = cohort.slices_of(split.train)
    sampler = _choose_sampler(config, cohort, train_slices)
    steps_per_epoch = config.train.steps_per_epoch or -(-len(train_slices) // config.train.batch_size)
    loss = _choose_loss(config, cohort, train_slices, sampler)
    evaluation = evaluation_of(config, cohort, split, loss=loss)
    opt = config.optimizer
    # With a time limit the loop applies the cosine itself, through `TrainState.learning_rate_scale`.
    by_time = opt.schedule == "cosine" and config.train.max_minutes > 0.0
    schedule = build_schedule(
        "constant" if by_time else opt.schedule,
        learning_rate=opt.learning_rate,
        total_steps=config.train.epochs * steps_per_epoch,
        warmup_steps=round(opt.warmup_epochs * steps_per_epoch),
    )
    optimizer = build_optimizer(opt.name, schedule, b2=opt.b2, weight_decay=opt.weight_decay, clip_norm=opt.clip_norm)
    model = evaluation.network.model
    assert cohort.slices is not None  # a cohort for training has them
    side, _, channels = cohort.slices.shape
    augment = config.augment
    return Experiment(
        config=config,
        planned=planned,
        residence=residence,
        evaluation=evaluation,
        mesh=mesh,
        schedule=schedule,
        sampler=sampler,
        feed=make_feed(cohort, sampler, mesh, context=config.data.context, kind=residence.kind),
        steps_per_epoch=steps_per_epoch,
        initial_state=create_state(
            model,
            optimizer,
            image_shape=(side, side, (2 * config.data.context + 1) * channels),
            seed=config.seed,
            ema=opt.ema_decay > 0.0,
            mesh=mesh,
        ),
        init_from=config.train.init_from or None,
        train_step=make_train_step(
            model,
            optimizer,
            loss,
            description=cohort.description,
            mesh=mesh,
            seed=config.seed,
            ema_decay=opt.ema_decay,
            geometry={key: augment[key] for key in ("rotation", "scale", "shift", "shear", "flip")}
            | {"crop": config.data.crop_size},
            intensity={key: augment[key] for key in ("contrast", "gamma", "noise")},
            replaced_channels=augment.flair_stand_in,
            skip_nonfinite=config.train.skip_nonfinite > 0,
            deterministic=config.deterministic,
        ),
    )


def _choose_loss(
    config: ConfigDict, cohort: Cohort, slices: np.ndarray, sampler: BatchSampler | PatientSampler
) -> Loss:
    """Builds the loss. Its class weights come from the training masks, each counted as often as it is drawn."""
    # A sampler that prefers slices with tumor makes tumor pixels less rare.
    fractions = [sampler.expected_mean(fraction) for fraction in cohort.target_fractions[slices].T]
    return build_loss(**config.loss, target_fractions=fractions)


def _choose_sampler(config: ConfigDict, cohort: Cohort, slices: np.ndarray) -> BatchSampler | PatientSampler:
    data, batch_size = config.data, config.train.batch_size
    if data.by_patient:
        patients = np.unique(cohort.patients, return_inverse=True)[1][cohort.case_index[slices]]
        area = cohort.target_area[slices]
        return PatientSampler(slices, patients, area, batch_size, data.tumor_sampling, data.area_power, config.seed)
    return BatchSampler(slices, cohort.has_target[slices], batch_size, data.tumor_sampling, config.seed)
