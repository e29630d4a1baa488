"""A network that sees a volume in three views: its inputs, its scored voxels, and the average of the views."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import once
from test_assessment import LOSS, SUPPORT, random_network, sigmoid

from brainseg_jax import sharding
from brainseg_jax.data.canvas import Canvas
from brainseg_jax.data.load_cohort import load_cohort
from brainseg_jax.data.normalization import Normalization, normalize
from brainseg_jax.data.phantom_cohort import write_phantom_cohort
from brainseg_jax.data.prepare_source import prepare
from brainseg_jax.data.prepared_cases import read_cases
from brainseg_jax.evaluation.assessment import Assessor
from brainseg_jax.inference.ensemble import Ensemble, combine
from brainseg_jax.inference.network import Runner
from brainseg_jax.scans.volume import Volume

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def make(place):
        source = write_phantom_cohort(place, layout="nnunet", patients=3, seed=1)
        (place / "folder").write_text(str(prepare(str(source), place / "tfds", progress=False)))

    return Path((once(tmp_path_factory, "views", make) / "folder").read_text())


@pytest.fixture(scope="module")
def in_three_views(folder):
    load = partial(load_cohort, image_size=96, normalization="volume_zscore", pixel_spacing=3.0)
    return load(folder, view="all"), {view: load(folder, view=view) for view in ("axial", "coronal", "sagittal")}


def test_the_slices_of_a_case_are_those_of_each_view(in_three_views):
    cohort, single = in_three_views
    for index, case in enumerate(cohort.cases):
        stacks = cohort.stacks(index)
        assert [stop - start for start, stop in stacks] == list(cohort.labels[index].shape)
        for (start, stop), view in zip(stacks, single.values(), strict=True):
            own = view.slices_of([case])
            np.testing.assert_array_equal(cohort.slices.images[start:stop], view.slices.images[own])
            np.testing.assert_array_equal(cohort.slices.target_bits[start:stop], view.slices.target_bits[own])
            np.testing.assert_array_equal(cohort.target_fractions[start:stop], view.target_fractions[own])
    neighbors = cohort.neighbors(1)
    for start, stop in cohort.stacks(1):  # none beyond the ends of a view
        np.testing.assert_array_equal(neighbors[start], [start, start, start + 1])
        np.testing.assert_array_equal(neighbors[stop - 1], [stop - 2, stop - 1, stop - 1])


def test_views_are_averaged_on_the_grid_of_the_volume(in_three_views, folder):
    cohort, single = in_three_views
    network = random_network(targets=3, description=cohort.description, channels=4)
    network = network.__class__(**{**vars(network), "image_size": 96, "pixel_spacing": 3.0, "view": "all"})
    case = next(iter(read_cases(folder)))
    expected, losses, slices = 0.0, 0.0, 0
    apply = jax.jit(partial(network.model.apply, train=False))
    for view in single.values():
        own = view.slices_of([case.name])
        constants = Normalization(*(np.repeat(values[:1], len(own), axis=0) for values in view.normalization))
        logits = apply(network.variables, np.asarray(jax.vmap(normalize)(view.slices.images[own], constants)))
        expected = expected + view.canvases[0][0].from_network(np.asarray(sigmoid(logits), np.float32)) / 3
        targets = np.stack([view.slices.target_bits[own, ..., 0] >> k & 1 for k in range(3)], axis=-1).astype(
            np.float32
        )
        losses, slices = losses + float(LOSS(logits, targets).sum()), slices + len(own)
    ensemble = Ensemble([network], (SUPPORT,) * 3, mirror=False)
    assert ensemble.num_predictions == 3
    unlabelled = Volume(case.volume.voxels, case.volume.spacing, case.volume.numbers)
    maps = combine(ensemble.predict(ensemble.prepare(unlabelled)))
    np.testing.assert_allclose(maps.probability, expected, atol=1e-3)
    assert maps.uncertainty.max() > 0.05  # the views differ

    assessor = Assessor(cohort, Runner(sharding.data_mesh(), 24), LOSS)
    (assessed,) = assessor.assess_each(network, [case.name], (SUPPORT,) * 3, tolerance=2.0)
    assert assessor.loss.loss == pytest.approx(losses / slices, rel=1e-4)
    masks = ensemble.masks(maps.probability, Canvas.around(case.volume.labels.shape, None, image_size=256))
    assert (assessed.masks == masks).mean() > 0.9999
