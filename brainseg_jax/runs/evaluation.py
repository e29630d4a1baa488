"""Everything that scoring a run needs: data, split and post-processing. Builds no optimizer, weights or sampler."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict

from brainseg_jax import sharding
from brainseg_jax.config import check_config
from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.load_cohort import NO_SLICES, ON_DISK, load_cohort
from brainseg_jax.data.prepared import read_summary
from brainseg_jax.data.residence import (
    Residence,
    bytes_of_labels,
    bytes_of_slices,
    choose_residence,
    device_memory,
    free_memory,
)
from brainseg_jax.data.splits import Split
from brainseg_jax.evaluation.assessment import Assessor
from brainseg_jax.files import user_path
from brainseg_jax.inference.network import Network, Runner
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.runs.build import build_network, posts_of
from brainseg_jax.runs.data import choose_split, find_data
from brainseg_jax.runs.processes import minimum_of_processes, on_all_processes, on_first_process, processes_of_host


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The parts of a run that its scores depend on.

    Attributes:
      cohort: all cases, on the host.
      split: split of the cases.
      network: network of the run, without variables (see `with_variables`).
      assessor: scores the network.
      posts: post-processing in the config, one for each target.
      chooses_posts: whether a finished training chooses the post-processing on the validation patients.
      kept: checkpoint to score, best or last (`train.keep`).
    """

    cohort: Cohort
    split: Split
    network: Network
    assessor: Assessor
    posts: tuple[PostProcess, ...]
    chooses_posts: bool
    kept: str

    def with_variables(self, variables: dict) -> Network:
        """The network with the given variables."""
        return dataclasses.replace(self.network, variables=variables)


def build_evaluation(config: ConfigDict, run: Path) -> Evaluation:
    """Builds the evaluation of a trained run.

    Args:
      config: config of the run.
      run: its folder. If `data.source` or `split.file` is missing, the data are found by their fingerprint, and the
        split is read from `split.json`.

    Raises:
      InputError: see `check_config`, `find_data` and `choose_split`.
    """
    check_config(config)
    folder = find_data(config.data, run, source_first=False)
    cohort = read_cohort(config, folder, load_cohort, slices=NO_SLICES)
    return evaluation_of(config, cohort, choose_split(config.split, cohort, run))


def choose_for(config: ConfigDict, folder: Path) -> Residence:
    """Decides where the slices are stored during training. The result is the same on all processes.

    Args:
      config: config of a run.
      folder: folder of the prepared data.

    Raises:
      InputError: see `choose_residence`. All processes raise it.
    """
    summary = read_summary(folder)
    return choose_residence(
        config.data.residence,
        slices=bytes_of_slices(summary, config.data.image_size, config.data.view),
        labels=bytes_of_labels(summary),
        free=minimum_of_processes(free_memory() // processes_of_host()),
        device=minimum_of_processes(device_memory()),
        devices=jax.device_count(),
    )


def read_cohort(config: ConfigDict, folder: Path, load: Callable[..., Cohort], *, slices: str) -> Cohort:
    """Reads the prepared data as the config describes. `load` has the signature of `load_cohort`.

    With several processes, the first one writes the slices if they are stored on disk.
    """
    data = config.data
    read = partial(
        load,
        folder,
        image_size=data.image_size,
        normalization=data.normalization,
        pixel_spacing=data.pixel_spacing,
        view=data.view,
        slices=slices,
        slices_dir=user_path(data.dir, "--config.data.dir") if data.dir else None,
    )
    if slices == ON_DISK:
        on_first_process("write the slices", read)
    return on_all_processes("read the data", read)


def evaluation_of(config: ConfigDict, cohort: Cohort, split: Split, *, loss: Callable | None = None) -> Evaluation:
    """Assembles an evaluation. The assessor sums `loss` beside the scores."""
    return Evaluation(
        cohort=cohort,
        split=split,
        network=build_network(config, cohort.description, {}),
        assessor=Assessor(cohort, Runner(sharding.data_mesh(), config.eval.batch_size), loss),
        posts=posts_of(config, cohort.description),
        chooses_posts=config.eval.choose,
        kept=config.train.keep,
    )
