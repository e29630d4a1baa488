"""From a config to the parts of a run: the one place, beside the loop, that knows the config's keys."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import flax.linen as nn
import jax
import numpy as np
import optax
import tensorflow_datasets as tfds
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from brainseg_jax import sharding
from brainseg_jax.config import check_config
from brainseg_jax.data import lgg, prepared
from brainseg_jax.data.cohort import Cohort, load_cohort
from brainseg_jax.data.sampling import BatchSampler, PatientSampler
from brainseg_jax.data.splits import Split, read_split, split_by_folds, split_by_fractions
from brainseg_jax.errors import InputError, StorageError, TrainingStopped
from brainseg_jax.evaluation.postprocess import PostProcess
from brainseg_jax.files import user_path
from brainseg_jax.models import build_model
from brainseg_jax.training.batches import DeviceCohort, put_cohort
from brainseg_jax.training.objective import build_loss
from brainseg_jax.training.optimizer import build_optimizer, build_schedule
from brainseg_jax.training.state import TrainState, create_state
from brainseg_jax.training.steps import Prediction, make_eval_step, make_predict_step, make_train_step
from brainseg_jax.training.trained import start_from

T = TypeVar("T")
_KINDS = (InputError, StorageError, TrainingStopped, RuntimeError)  # of errors, as other processes get them


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
      initial_state: of the training, with random weights.
      init_from: the run whose weights the training starts from, as the config says it, or None.
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
    init_from: str | None
    train_step: Callable
    eval_step: Callable
    predict_step: Callable
    eval_batch_size: int
    postprocess: PostProcess
    chooses_postprocess: bool
    kept: str

    def first_state(self) -> TrainState:
        """What a run that starts begins with. One that goes on, or is scored, can do without `init_from`.

        Raises:
          InputError: see `user_path` and `start_from`.
        """
        if not self.init_from:
            return self.initial_state
        return start_from(user_path(self.init_from, "--config.train.init_from"), self.initial_state)

    def put_batch(self, array: np.ndarray) -> jax.Array:
        """Lays the indices of a batch on the devices, divided among them."""
        return sharding.put(array, sharding.over_batch(self.mesh))

    def predict(self, variables: dict, slices: np.ndarray) -> Prediction:
        """Predicts a few slices of the cohort [K], as arrays on the host."""
        indices = sharding.put(slices.astype(np.int32), sharding.replicated(self.mesh))
        return jax.tree.map(np.asarray, self.predict_step(variables, self.on_devices, indices))


def build_experiment(
    config: ConfigDict, *, load: Callable[..., Cohort] = load_cohort, run: Path | None = None, trains: bool = True
) -> Experiment:
    """Makes every part of a run; all that can be wrong with the config or the data is found here.

    Args:
      config: of `default_config`, with overrides.
      load: reads the prepared data, called as `load_cohort`; for a study that looks at the same data in another way.
      run: the folder of a run of this config, if there is one: its data are found by their fingerprint, and its split
        by its `split.json`, where `data.source` or `split.file` are gone.
      trains: False for a run that is scored alone. Then the data of the run come first, and batches are of as many
        slices as the devices can share: `eval.batch_size` or a few more.

    Raises:
      InputError: see the parts.
    """
    check_config(config)
    mesh = sharding.data_mesh()
    eval_batch_size = config.eval.batch_size
    if trains:
        sharding.check_divides(mesh, "train.batch_size", config.train.batch_size)
        sharding.check_divides(mesh, "eval.batch_size", eval_batch_size)
    else:
        eval_batch_size = -(-eval_batch_size // mesh.size) * mesh.size
    model = build_model(**config.model)
    folder = _prepare(config.data, recorded(run), source_first=trains)
    cohort = load(folder, image_size=config.data.image_size, normalization=config.data.normalization)
    split = _choose_split(config.split, cohort, run)
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
        initial_state=state,
        init_from=config.train.init_from or None,
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
        eval_batch_size=eval_batch_size,
        postprocess=PostProcess(config.eval.threshold, config.eval.largest_component, config.eval.min_voxels),
        chooses_postprocess=config.eval.choose,
        kept=config.train.keep,
    )


def recorded(run: Path | None) -> dict:
    """What `config.json` of a run holds; empty where there is none that can be read (`claim_run_folder` tells)."""
    try:
        content = json.loads((run / "config.json").read_text()) if run else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _prepare(config: ConfigDict, run: dict, *, source_first: bool) -> Path:
    """The prepared data; with many processes the first one prepares, the others find it done, or prepare their own."""

    def find(*, progress: bool = True) -> Path:
        if not source_first and (folder := _data_of(run, config)):
            return folder
        try:
            return lgg.prepare(config.source, config.dir or None, progress=progress)
        except InputError as error:
            reason, fingerprint = str(error).splitlines()[0].split(". ")[0], _fingerprint_of(run)
            if not fingerprint:
                raise
            if (folder := _data_of(run, config)) is None:
                places = ", ".join(map(str, _data_folders(run, config))) or "a known folder"
                raise InputError(
                    f"{reason}; nor do the data of the run, fingerprint {fingerprint[:12]}, lie prepared in "
                    f"{places}; prepare them there again, or name the folder "
                    "that holds them in the environment variable TFDS_DATA_DIR"
                ) from error
            logging.warning("%s; the run's own data, which lie prepared in %s, are used", reason, folder)
            return folder

    return on_first_process("prepare the data", find) or find(progress=False)


def _data_of(run: dict, config: ConfigDict) -> Path | None:
    """The data that a run was made with, told by their fingerprint; prepared again from its source where they are gone.

    Args:
      run: of `recorded`.
      config: `data`, as it is given now.

    Returns:
      None where they are not found.
    """
    fingerprint, before = _fingerprint_of(run), run.get("data", {})
    if not fingerprint:
        return None
    for root in _data_folders(run, config):
        for folder, summary in prepared.list_prepared(root, str(lgg.LggMri.VERSION)).items():
            if summary.fingerprint == fingerprint:
                return folder
    if config.source == before.get("source"):
        return None
    try:
        folder = lgg.prepare(before["source"], config.dir or before.get("dir") or None, progress=False)
    except (InputError, KeyError):
        return None
    return folder if prepared.read_summary(folder).fingerprint == fingerprint else None


def _fingerprint_of(run: dict) -> str | None:
    return (run.get("dataset") or {}).get("fingerprint")


def _data_folders(run: dict, config: ConfigDict) -> list[Path]:
    """Where the data of a run may lie prepared: in the folder given now, in that of the run, in TFDS's own.

    A folder below a home folder that is not known is left out.
    """
    given = (config.dir, run.get("data", {}).get("dir"), tfds.core.constants.get_default_data_dir())
    folders = []
    for folder in filter(None, given):
        with contextlib.suppress(RuntimeError):
            folders.append(Path(folder).expanduser().absolute())
    return list(dict.fromkeys(folders))


def _choose_split(config: ConfigDict, cohort: Cohort, run: Path | None) -> Split:
    if config.file:
        own = run / "split.json" if run else None
        try:
            path = user_path(config.file, "--config.split.file")
            reason = None if path.exists() else f"split.file={path} is gone"
        except InputError as error:
            if own is None or not own.exists():
                raise
            reason = str(error)
        if reason and own and own.exists():
            logging.warning("%s; %s is used", reason, own)
            path = own
        return read_split(path, cohort.patients)
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


def on_first_process(what: str, action: Callable[[], T], *, quiet: bool = False) -> T | None:
    """Runs `action` on process 0 while the others wait.

    Args:
      what: the action, in words for a message.
      action: may raise anything.
      quiet: whether the log is spared the word of each process that it has come here.

    Returns:
      what `action` returns, on process 0; None on the others.

    Raises:
      Exception: on process 0, what `action` raised; on the others one of the same kind, so that none waits for it.
    """
    result, error = None, None
    if jax.process_index() == 0:
        try:
            result = action()
        except Exception as caught:  # an unforeseen one too: the others would wait for the heartbeat
            error = caught
    if jax.process_count() > 1:
        if not quiet:
            logging.info("process %d of %d: %s", jax.process_index(), jax.process_count(), what)
        kinds = [number for number, kind in enumerate(_KINDS) if isinstance(error, kind)]
        number = -1 if error is None else (kinds or [len(_KINDS) - 1])[0]
        number = int(multihost_utils.broadcast_one_to_all(np.int32(number)))
        if number >= 0 and error is None:
            raise _KINDS[number](f"process 0 could not {what}; its own message says why")
    if error is not None:
        raise error
    return result
