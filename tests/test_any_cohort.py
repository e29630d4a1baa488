"""A cohort of any format up to scores and label maps: BraTS-like patients with three nested regions."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import call_predict, once
from scored import score_runs

from brainseg_jax.config import default_config
from brainseg_jax.data.phantom_cohort import write_phantom_cohort
from brainseg_jax.data.prepare_source import prepare
from brainseg_jax.data.prepared import read_summary
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.scores import read_table
from brainseg_jax.runs.trained import load_trained
from brainseg_jax.training.loop import train

pytestmark = pytest.mark.usefixtures("optax_promotion")
REGIONS = ["whole tumor", "tumor core", "enhancing tumor"]


def config_of(source, folder):
    config = default_config("quick")
    config.data.update({"source": str(source), "dir": str(folder / "tfds"), "image_size": -1, "pixel_spacing": -1.0})
    config.model.update({"features": 4, "depth": -1})
    config.data.normalization, config.loss.name, config.eval.choose = "volume_zscore", "dice_cross_entropy", True
    config.train.update({"epochs": 4, "batch_size": 16, "steps_per_epoch": 20})
    config.split.update({"val": 0.2, "test": 0.3})
    config.augment.flair_stand_in = 0.0
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on the cohort in BraTS's layout."""

    def make(folder):
        source = write_phantom_cohort(folder, layout="brats", patients=12, seed=0)
        (folder / "source").write_text(str(source))
        train(config_of(source, folder), folder / "run")

    return once(tmp_path_factory, "brats", make) / "run"


def test_it_is_scored_by_region_and_no_patient_is_on_two_sides(run):
    split = json.loads((run / "split.json").read_text())
    patients = {part: {case.rsplit("-", 1)[0] for case in cases} for part, cases in split.items()}
    assert sum(len(cases) for cases in split.values()) > 12  # some patients have two time points
    assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 12
    rows = list(csv.DictReader((run / "per_patient.csv").open()))
    assert [row["target"] for row in rows] == REGIONS * len(split["test"])
    assert {row["case"] for row in rows} == set(split["test"]) and {row["unit"] for row in rows} == {"mm"}
    results = json.loads((run / "results.json").read_text())
    assert list(results["test"]["targets"]) == list(results["postprocess"]) == REGIONS
    assert results["patients"] == {part: len(names) for part, names in patients.items()}
    whole = results["test"]["targets"]["whole tumor"]
    assert whole["patients"] == len(patients["test"]) and whole["dice_mean"] > 0.2
    # A patient of two scans counts once: the mean of the two.
    of_patient = {}
    for row in rows:
        if row["target"] == "whole tumor":
            of_patient.setdefault(row["patient"], []).append(float(row["dice"]))
    assert whole["dice_mean"] == pytest.approx(np.mean([np.mean(dice) for dice in of_patient.values()]))
    mean = results["test"]["mean"]["dice_mean"]
    assert mean == pytest.approx(np.mean([results["test"]["targets"][name]["dice_mean"] for name in REGIONS]))
    report = (run / "report.html").read_text()
    assert all(name in report for name in REGIONS)


def test_what_was_planned_is_in_its_config(run):
    data = json.loads((run / "config.json").read_text())["data"]
    assert data["image_size"] == 64 and data["pixel_spacing"] > 0


def test_it_is_scored_again_without_its_source(run):
    (scored,), cases = score_runs([run], part="test", tolerance=2.0)
    expected = read_table(run / "per_patient.csv")
    assert [row["dice"] for row in scored.rows] == pytest.approx([row["dice"] for row in expected], rel=1e-6)
    assert len(cases[0].truth) == 3


def test_the_same_cohort_as_bids_has_the_same_labels_and_goes_through_predict(run, tmp_path):
    """BIDS has other names for sequences and patients; a BraTS network reads them and answers on the input's grid."""
    bids = write_phantom_cohort(tmp_path, layout="bids", patients=12, seed=0)
    brats = read_summary(prepare((run.parent / "source").read_text(), run.parent / "tfds", progress=False))
    summary = read_summary(prepare(str(bids), tmp_path / "tfds", progress=False))
    assert (summary.patients, summary.cases, summary.slices) == (12, brats.cases, brats.slices)
    found = [(target.cases, target.voxels) for target in summary.contents.targets]
    assert len(found) == 3 and sum(voxels for _, voxels in found) > 0
    subject = sorted(path for path in bids.iterdir() if path.name.startswith("sub-"))[0]
    call_predict(run, subject, tmp_path / "masks")
    (path,) = sorted((tmp_path / "masks").rglob("*_pred.nii.gz"))[:1]
    given = nib.load(next(subject.rglob("*FLAIR*.nii.gz")))
    mask = nib.load(path)
    np.testing.assert_allclose(mask.affine, given.affine, atol=1e-4)
    assert mask.shape == given.shape and set(np.unique(mask.dataobj)) <= {0, 1, 2, 3}


def test_other_targets_of_the_same_scans_are_another_experiment(run, tmp_path):
    """Content and fingerprint are the same; the targets of the network differ."""
    source = tmp_path / "cohort"
    shutil.copytree((run.parent / "source").read_text(), source)
    (source / "cohort.toml").write_text("[targets]\ntumor = [1, 2, 3]\n")
    assert load_trained(run).network.description.names == tuple(REGIONS)
    with pytest.raises(InputError, match=r"(?s)another experiment.*dataset\.description\.targets\.tumor: None before"):
        train(config_of(source, run.parent), run)
