"""Losses of twenty training steps, in this process or as one of several; the tests of `sharding` share it.

python tests/twenty_steps.py DATASET_FOLDER whole|divided|host|disk HOST:PORT PROCESSES PROCESS SECONDS_LATE
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from brainseg_jax import sharding
from brainseg_jax.data.cohort import Cohort
from brainseg_jax.data.load_cohort import IN_MEMORY, ON_DISK, load_cohort
from brainseg_jax.data.residence import DISK, HOST, REPLICATED, SHARDED
from brainseg_jax.data.sampling import BatchSampler
from brainseg_jax.losses import dice_loss
from brainseg_jax.models import build_model
from brainseg_jax.training.feed import make_feed
from brainseg_jax.training.optimizer import build_optimizer, build_schedule
from brainseg_jax.training.state import create_state
from brainseg_jax.training.step import make_train_step


def twenty_losses(cohort: Cohort, mesh: jax.sharding.Mesh, *, kind: int = REPLICATED) -> list[float]:
    """Uses batch norm, a batch-wide loss and augmentation: they would differ if a device saw only its own data."""
    model = build_model("attention_unet", features=4, depth=3)
    schedule = build_schedule("cosine", learning_rate=1e-3, total_steps=20, warmup_steps=5)
    optimizer = build_optimizer("adamw", schedule, b2=0.99, weight_decay=1e-4, clip_norm=1.0)
    step = make_train_step(
        model,
        optimizer,
        partial(dice_loss, smooth=0.1, batch_wide=True),
        description=cohort.description,
        mesh=mesh,
        seed=0,
        ema_decay=0.9,
        geometry={"rotation": 15.0, "scale": 0.1, "shift": 0.05, "shear": 5.0, "flip": 0.5},
        intensity={"contrast": 0.1, "gamma": 0.2, "noise": 0.1},
    )
    state = create_state(model, optimizer, image_shape=cohort.slices.shape, seed=0, ema=True, mesh=mesh)
    sampler = BatchSampler(np.arange(cohort.slices.count), cohort.has_target, batch_size=8, tumor_share=0.5)
    feed = make_feed(cohort, sampler, mesh, context=0, kind=kind)
    losses = []
    for i in range(20):
        state, report = step(state, feed(i))
        losses.append(float(report.loss))
    feed.close()
    return losses


if __name__ == "__main__":
    folder, residence, coordinator, processes, process, late = sys.argv[1:]
    jax.distributed.initialize(coordinator, int(processes), int(process))
    jax.devices()  # the processes wait for each other here as well, so a late one must be late after it
    sharding.connect()
    time.sleep(float(late))
    kind = {"whole": REPLICATED, "divided": SHARDED, "host": HOST, "disk": DISK}[residence]
    cohort = load_cohort(
        Path(folder), image_size=32, normalization="volume_zscore", slices=ON_DISK if kind == DISK else IN_MEMORY
    )
    print(json.dumps(twenty_losses(cohort, sharding.data_mesh(), kind=kind)))
