"""From a config to the parts of a run: the one place, beside the loop, that knows the config's keys."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import flax.linen as nn
import jax
import numpy as np
import optax
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from brainseg_jax import sharding
from brainseg_jax.config import check_config
from brainseg_jax.data import lgg
from brainseg_jax.data.cohort import Cohort, load_cohort
from brainseg_jax.data.sampling import BatchSampler, PatientSampler
from brainseg_jax.data.splits import Split, read_split, split_by_folds, split_by_fractions
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.postprocess import PostProcess
from brainseg_jax.models import build_model
from brainseg_jax.training.batches import DeviceCohort, put_cohort
from brainseg_jax.training.objective import build_loss
from brainseg_jax.training.optimizer import build_optimizer, build_schedule
from brainseg_jax.training.state import TrainState, create_state
from brainseg_jax.training.steps import Prediction, make_eval_step, make_predict_step, make_train_step
from brainseg_jax.training.trained import start_from

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """The parts that a config asks for, ready to use.

    Attributes:
      dataset_folder: of the prepared data.
      cohort: all patients, on the host.
      split: of the patients.
      mesh: of all devices.
      on_devices: the cohort's arrays on the devices.
      model: the network.
      schedule: learning rate by step.
      sampler: the slices of each step.
      steps_per_epoch: updates an epoch.
      initial_state: of the training.
      train_step: see `make_train_step`.
      eval_step: see `make_eval_step`.
      predict_step: see `make_predict_step`.
      eval_batch_size: slices a batch in evaluation.
      postprocess: what makes masks of probabilities, as the config says it.
      chooses_postprocess: whether at the end the validation patients choose another.
      kept: which checkpoint is scored, best or last (`train.keep`).
    """

    dataset_folder: Path
    cohort: Cohort
    split: Split
    mesh: Mesh
    on_devices: DeviceCohort
    model: nn.Module
    schedule: optax.Schedule
    sampler: BatchSampler | PatientSampler
    steps_per_epoch: int
    initial_state: TrainState
    train_step: Callable
    eval_step: Callable
    predict_step: Callable
    eval_batch_size: int
    postprocess: PostProcess
    chooses_postprocess: bool
    kept: str

    def put_batch(self, array: np.ndarray) -> jax.Array:
        """Lays the indices of a batch on the devices, divided among them."""
        return sharding.put(array, sharding.over_batch(self.mesh))

    def predict(self, variables: dict, slices: np.ndarray) -> Prediction:
        """Predicts a few slices of the cohort [K], as arrays on the host."""
        indices = sharding.put(slices.astype(np.int32), sharding.replicated(self.mesh))
        return jax.tree.map(np.asarray, self.predict_step(variables, self.on_devices, indices))


def build_experiment(config: ConfigDict, *, load: Callable[..., Cohort] = load_cohort) -> Experiment:
    """Makes every part of a run; all that can be wrong with the config or the data is found here.

    Args:
      config: of `default_config`, with overrides.
      load: reads the prepared data, called as `load_cohort`; for a study that looks at the same data in another way.

    Raises:
      InputError: see the parts.
    """
    check_config(config)
    mesh = sharding.data_mesh()
    sharding.check_divides(mesh, "train.batch_size", config.train.batch_size)
    sharding.check_divides(mesh, "eval.batch_size", config.eval.batch_size)
    model = build_model(**config.model)
    folder = _prepare(config.data)
    cohort = load(folder, image_size=config.data.image_size, normalization=config.data.normalization)
    split = _choose_split(config.split, cohort)
    train_slices = cohort.slices_of(split.train)
    sampler = _choose_sampler(config, cohort, train_slices)
    steps_per_epoch = config.train.steps_per_epoch or -(-len(train_slices) // config.train.batch_size)
    opt = config.optimizer
    # Against a limit of time the loop lets the cosine fall itself, by `TrainState.learning_rate_scale`.
    by_time = opt.schedule == "cosine" and config.train.max_minutes > 0.0
    schedule = build_schedule(
        "constant" if by_time else opt.schedule,
        learning_rate=opt.learning_rate,
        total_steps=config.train.epochs * steps_per_epoch,
        warmup_steps=round(opt.warmup_epochs * steps_per_epoch),
    )
    optimizer = build_optimizer(opt.name, schedule, b2=opt.b2, weight_decay=opt.weight_decay, clip_norm=opt.clip_norm)
    # The masks of training as the sampler draws them: where it prefers slices with tumor, tumor is less rare.
    of_slices = cohort.native_masks[train_slices].mean(axis=(1, 2, 3), dtype=np.float64)
    loss = build_loss(**config.loss, tumor_fraction=sampler.expected_mean(of_slices))
    state = create_state(
        model,
        optimizer,
        image_size=config.data.image_size,
        seed=config.seed,
        ema=opt.ema_decay > 0.0,
        mesh=mesh,
    )
    augment = config.augment
    return Experiment(
        dataset_folder=folder,
        cohort=cohort,
        split=split,
        mesh=mesh,
        on_devices=put_cohort(cohort, mesh),
        model=model,
        schedule=schedule,
        sampler=sampler,
        steps_per_epoch=steps_per_epoch,
        initial_state=start_from(Path(config.train.init_from).expanduser(), state) if config.train.init_from else state,
        train_step=make_train_step(
            model,
            optimizer,
            loss,
            mesh=mesh,
            seed=config.seed,
            ema_decay=opt.ema_decay,
            geometry={key: augment[key] for key in ("rotation", "scale", "shift", "shear", "flip")},
            intensity={key: augment[key] for key in ("contrast", "gamma", "noise")},
            flair_stand_in=augment.flair_stand_in,
            skip_nonfinite=config.train.skip_nonfinite > 0,
            deterministic=config.deterministic,
        ),
        eval_step=make_eval_step(model, loss, mesh=mesh, patients=len(cohort.patients), mirror=config.eval.mirror),
        predict_step=make_predict_step(model, mesh=mesh, mirror=config.eval.mirror),
        eval_batch_size=config.eval.batch_size,
        postprocess=PostProcess(config.eval.threshold, config.eval.largest_component, config.eval.min_voxels),
        chooses_postprocess=config.eval.choose,
        kept=config.train.keep,
    )


def _prepare(config: ConfigDict) -> Path:
    """The prepared data; with many processes the first one prepares, the others find it done, or prepare their own."""
    folder = on_first_process("prepare the data", lambda: lgg.prepare(config.source, config.dir or None))
    return folder or lgg.prepare(config.source, config.dir or None, progress=False)


def _choose_split(config: ConfigDict, cohort: Cohort) -> Split:
    if config.file:
        return read_split(Path(config.file).expanduser(), cohort.patients)
    if config.folds:
        return split_by_folds(
            cohort.patients, cohort.institutions, folds=config.folds, fold=config.fold, seed=config.seed
        )
    return split_by_fractions(cohort.patients, cohort.institutions, val=config.val, test=config.test, seed=config.seed)


def _choose_sampler(config: ConfigDict, cohort: Cohort, slices: np.ndarray) -> BatchSampler | PatientSampler:
    data, batch_size = config.data, config.train.batch_size
    if data.by_patient:
        area = cohort.native_masks[slices].sum(axis=(1, 2, 3), dtype=np.int64)
        patients = cohort.patient_index[slices]
        return PatientSampler(slices, patients, area, batch_size, data.tumor_sampling, data.area_power, config.seed)
    return BatchSampler(slices, cohort.tumor_slices[slices], batch_size, data.tumor_sampling, config.seed)


def on_first_process(what: str, action: Callable[[], T]) -> T | None:
    """Runs `action` on process 0 while the others wait.

    Args:
      what: the action, in words for a message.
      action: may raise InputError.

    Returns:
      what `action` returns, on process 0; None on the others.

    Raises:
      InputError: on all processes where process 0 raised one, so that none waits for it forever.
    """
    result, error = None, None
    if jax.process_index() == 0:
        try:
            result = action()
        except InputError as caught:
            error = caught
    if jax.process_count() > 1:
        logging.info("process %d of %d: %s", jax.process_index(), jax.process_count(), what)
        failed = multihost_utils.broadcast_one_to_all(np.int32(error is not None))
        if failed and error is None:
            raise InputError(f"process 0 could not {what}; its own message says why")
    if error is not None:
        raise error
    return result
