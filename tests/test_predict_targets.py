"""`predict` with networks of several targets: cohort formats, any grid, and invalid input."""

import csv
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from sharing_cases import EXCLUSIVE, NESTED, POSTS, SEQUENCES, small_network

from brainseg_jax.errors import InputError, PartlyDone
from brainseg_jax.evaluation.scores import QUALITY
from brainseg_jax.inference.ensemble import Maps
from brainseg_jax.inference.quality import Expected, Quality, Removed
from brainseg_jax.prediction import job
from brainseg_jax.prediction.results import Wanted, check_free, write_results
from brainseg_jax.scans.description import LGG, Description, Target
from brainseg_jax.scans.find import find_scans
from brainseg_jax.scans.patterns import read_patterns

pytestmark = pytest.mark.usefixtures("optax_promotion")
SPACING = (1.0, 2.0, 3.0)


def head(channels=4, shape=(20, 16, 6), seed=0):
    """A volume of blocks, [I, J, K, C] int16, integers 0 to 255."""
    rng = np.random.default_rng(seed)
    blocks = rng.gamma(2.0, 25.0, (5, 4, 3, channels)).repeat(4, 0).repeat(4, 1).repeat(2, 2)
    return (blocks + rng.normal(0, 9, (*shape, channels))).clip(0, 255).round().astype(np.int16)


def image_of(values, codes="RAS"):
    """Values [I, J, K] along RAS axes, stored along the axes `codes`."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-9.0, -14.0, 30.0)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    return nib.Nifti1Image(values, affine).as_reoriented(turn)


@pytest.fixture
def runs(monkeypatch):
    """Makes `predict` use the given networks as run folders `a`, `b`, ..."""

    def give(*networks):
        folders = {Path("abc"[k]): network for k, network in enumerate(networks)}

        def load(folder):
            network = folders[folder]
            posts = POSTS[: len(network.description.targets)]
            return SimpleNamespace(folder=folder, network=network, posts=posts, expected_dice=None, training_scans=None)

        monkeypatch.setattr(job, "load_trained", load)
        monkeypatch.setattr(job, "names_of", lambda runs: None)
        return list(folders)

    return give


def predict(folders, scans, output, *, wanted=None, sequences=None):
    patterns = read_patterns(sequences) if sequences else None
    options = {"wanted": wanted or Wanted(), "mirror": None, "overwrite": False, "sequences": patterns}
    return job.predict(folders, scans, output, **options)


def rows_of(path):
    with path.open() as table:
        return list(csv.DictReader(table))


# A case of four files; names or numbers give the channels.


@pytest.mark.parametrize("codes", ["LPS", "PIR", "SAL", "ASR", "oblique"])
def test_label_maps_lie_on_the_grid_of_the_input(tmp_path, runs, codes):
    """One head, stored along other axes or rotated in space: each voxel has its label of RAS."""
    folders = runs(small_network(description=EXCLUSIVE, normalization="volume_zscore", pixel_spacing=1.5))
    values, labels = head(), {}
    for name in ("RAS", codes):
        folder = tmp_path / name / "in"
        folder.mkdir(parents=True, exist_ok=True)
        for k, sequence in enumerate(SEQUENCES):
            # The second channel has other axes.
            image = image_of(values[..., k], "RAS" if name == "oblique" else "PSR" if k == 1 else name)
            if name == "oblique":
                c, s = np.cos(0.2), np.sin(0.2)
                turn = np.array([[c, -s, 0, 5], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
                image = nib.Nifti1Image(values[..., k], turn @ image.affine)
            nib.save(image, folder / f"P1_{sequence}.nii.gz")
        outcome = predict(folders, folder, folder.parent / "out", wanted=Wanted(probabilities=True))
        written = nib.load(folder.parent / "out" / "P1_pred.nii.gz")
        given = nib.load(folder / "P1_t1n.nii.gz")
        np.testing.assert_allclose(written.affine, given.affine, atol=1e-5)
        assert written.shape == given.shape and not outcome.faults
        to_ras = nib.as_closest_canonical(written)
        labels[name] = np.asarray(to_ras.dataobj)
        maps = nib.load(folder.parent / "out" / "P1_probability.nii.gz")
        assert maps.shape == (*given.shape, 3)
        np.testing.assert_allclose(maps.affine, given.affine, atol=1e-5)
    assert set(np.unique(labels["RAS"])) == {0, *EXCLUSIVE.painted}
    np.testing.assert_array_equal(labels[codes], labels["RAS"])


def test_the_tables_have_a_row_for_each_target(tmp_path, runs, capsys):
    """Volumes and areas of the label map's own voxels, 6 mm3 each, of exclusive targets."""
    (tmp_path / "in").mkdir()
    for case in ("P1", "P2"):
        for k in range(4):
            nib.save(image_of(head(seed=len(case))[..., k]), tmp_path / "in" / f"{case}_{k:04d}.nii.gz")
    outcome = predict(runs(small_network(description=EXCLUSIVE)), tmp_path / "in", tmp_path / "out")
    assert (outcome.scans_done, outcome.slices_done) == (2, 12)
    labels = np.asarray(nib.load(tmp_path / "out" / "P2_pred.nii.gz").dataobj)
    rows, areas = (rows_of(tmp_path / "out" / name) for name in ("predictions.csv", "areas.csv"))
    assert [(row["case"], row["target"]) for row in rows] == [
        (case, target) for case in ("P1", "P2") for target in EXCLUSIVE.names
    ]
    for row, value in zip(rows[3:], EXCLUSIVE.painted, strict=True):
        counts = (labels == value).sum(axis=(0, 1))
        assert float(row["volume"]) == pytest.approx(counts.sum() * 6 / 1000) and row["volume_unit"] == "mL"
        assert float(row["largest_area"]) == counts.max() * 2 and int(row["tumor_slices"]) == (counts > 0).sum()
        of_target = [one for one in areas if (one["case"], one["target"]) == ("P2", row["target"])]
        assert [(int(one["slice"]), float(one["area"])) for one in of_target] == list(enumerate(counts * 2.0))
    shown = capsys.readouterr().out
    assert "2 scans, 12 slices in" in shown and "P1_0000.nii.gz  P1_0001.nii.gz" in shown


def test_a_missing_channel_is_replaced_or_refused(tmp_path, runs, capsys):
    """T1n replaces a missing channel; without a replacement channel the case is refused with a message."""
    (tmp_path / "in").mkdir()
    for sequence in ("t1n", "t2w", "t2f"):
        nib.save(image_of(head()[..., SEQUENCES.index(sequence)]), tmp_path / "in" / f"P1-{sequence}.nii.gz")
    replaced = Description(SEQUENCES, EXCLUSIVE.targets, stand_in="t1n")
    outcome = predict(runs(small_network(description=replaced)), tmp_path / "in", tmp_path / "out")
    assert list(outcome.notes) == ["no t1c: replaced by t1n"]
    assert "(-: t1n replaces it)" in capsys.readouterr().out
    with pytest.raises(InputError, match="t1c"):
        predict(runs(small_network(description=EXCLUSIVE)), tmp_path / "in", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_one_file_of_all_channels(tmp_path, runs, capsys):
    """Channels along a fourth axis, in two cases; one is truncated."""
    (tmp_path / "in").mkdir()
    affine = np.diag([*SPACING, 1.0])
    nib.save(nib.Nifti1Image(head(), affine), tmp_path / "in" / "P1.nii.gz")
    nib.save(nib.Nifti1Image(head(), affine), tmp_path / "in" / "P2.nii")
    cut = (tmp_path / "in" / "P2.nii").read_bytes()[:900]
    (tmp_path / "in" / "P2.nii").write_bytes(cut)
    with pytest.raises(PartlyDone, match=r"P2\.nii: truncated"):
        predict(runs(small_network(description=NESTED)), tmp_path / "in", tmp_path / "out")
    assert "(*: all channels in one file)" in capsys.readouterr().out
    written = nib.load(tmp_path / "out" / "P1_pred.nii.gz")
    assert written.shape == (20, 16, 6) and set(np.unique(written.dataobj)) <= {0, 1, 2, 3}
    np.testing.assert_allclose(written.affine, affine)


def test_single_images(tmp_path, runs):
    """Colors as channels: labels are gray values, and each target has a separate probability."""
    (tmp_path / "in").mkdir()
    color = Description(("red", "green", "blue"), EXCLUSIVE.targets[:2])
    pixels = head(channels=3).transpose(2, 0, 1, 3).astype(np.uint8)[0]
    Image.fromarray(pixels).save(tmp_path / "in" / "leaf.png")
    folders, wanted = runs(small_network(description=color)), Wanted(probabilities=True)
    predict(folders, tmp_path / "in", tmp_path / "out", wanted=wanted)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tif")) == [
        "leaf_edema_probability.tif", "leaf_necrosis_probability.tif", "leaf_pred.tif"
    ]  # fmt: skip
    labels = np.asarray(Image.open(tmp_path / "out" / "leaf_pred.tif"))
    maps = [np.asarray(Image.open(tmp_path / "out" / f"leaf_{name}_probability.tif")) for name in color.names]
    expected = np.where((maps[0] >= 0.4) & ((maps[0] >= maps[1]) | (maps[1] < 0.5)), 2, np.where(maps[1] >= 0.5, 1, 0))
    assert labels.shape == (20, 16)
    np.testing.assert_array_equal(labels, expected)


# What is refused before anything is read.


def test_runs_of_different_data_do_not_predict_together(tmp_path, runs):
    other = dataclasses.replace(NESTED, painted=(1, 2, 3))
    folders = runs(*(small_network(description=description) for description in (NESTED, NESTED, other)))
    with pytest.raises(InputError) as raised:
        predict(folders, tmp_path, tmp_path / "out")
    known = "channels t1n, t1c, t2w, t2f; targets whole tumor [1, 2, 3], tumor core [1, 3], enhancing tumor [3]"
    assert str(raised.value).splitlines() == [
        "--run: runs that predict together need the same channels and targets, but these differ; predict with each "
        "run separately:",
        f"  a: {known}, written as [2, 1, 3]",
        f"  c: {known}, written as [1, 2, 3]",
    ]


def test_patterns_of_sequences_are_for_networks_of_the_lgg_channels(tmp_path, runs):
    folders = runs(small_network(description=NESTED))
    with pytest.raises(
        InputError, match=r"--sequences is for networks with .* this network has t1n, t1c, t2w, t2f\. Omit"
    ):
        predict(folders, tmp_path, tmp_path / "out", sequences="flair=*")


# Networks of the LGG set's channels and several targets find scans by their sequences.


def test_several_targets_on_the_lgg_channels(tmp_path, runs):
    targets = (Target("edema", (2,)), Target("core", (1,)))
    description = Description(LGG.channels, targets, stand_in="FLAIR")
    (tmp_path / "in").mkdir()
    for sequence, k in (("t1", 0), ("flair", 1), ("t1c", 2)):
        nib.save(image_of(head()[..., k], "LPS"), tmp_path / "in" / f"P1_{sequence}.nii.gz")
    everything = Wanted(probabilities=True, overlays=True)
    predict(runs(small_network(description=description)), tmp_path / "in", tmp_path / "out", wanted=everything)
    labels = nib.load(tmp_path / "out" / "P1_pred.nii.gz")
    assert {1, 2} <= set(np.unique(labels.dataobj)) <= {0, 1, 2}
    np.testing.assert_allclose(labels.affine, nib.load(tmp_path / "in" / "P1_flair.nii.gz").affine, atol=1e-5)
    assert [row["target"] for row in rows_of(tmp_path / "out" / "predictions.csv")] == ["edema", "core"]
    picture = Image.open(tmp_path / "out" / "P1_overlay.png")
    # 6 slices of 20 columns and 16 rows in 3 columns, and the legend below them.
    assert picture.width >= 60 and picture.height > 2 * 16


def test_results_by_hand_and_files_that_are_there(tmp_path):
    """Masks of 3 and 5 voxels of 6 mm3; the check for existing files of all targets comes before any write."""
    nib.save(image_of(head()[..., 0]), tmp_path / "P1.nii.gz")
    (source,) = find_scans(tmp_path / "P1.nii.gz")
    scan = source.read()
    description = Description(LGG.channels, (Target("edema", (2,)), Target("core", (7,))), stand_in="FLAIR")
    masks = np.zeros((*scan.voxels.shape[:3], 2), bool)
    masks[1, 2, :3, 0] = masks[4, 3:8, 5, 1] = True
    maps = Maps(masks * np.float32(0.9), masks * np.float32(0.1))
    wanted = Wanted(probabilities=True, uncertainty=True)
    check_free([source], description, tmp_path / "out", wanted)
    qualities = (Quality(0.8, Expected(0.7, 0.5, 0.9), Removed(0.75, 2, 4)), Quality(0.6, None))
    written = write_results(source, scan, maps, masks, qualities, description, tmp_path / "out", wanted)
    assert [[row[name] for name in QUALITY] for row in written.scans] == [[0.8, 0.7, 0.5, 0.9], [0.6, None, None, None]]
    assert written.notes[-1].startswith("edema: a second region in slices 2 to 4 was removed; it has 75% of the mask's")
    assert [(row["target"], row["volume"], row["largest_slice"]) for row in written.scans] == [
        ("edema", pytest.approx(0.018), 1),
        ("core", pytest.approx(0.030), 4),
    ]
    assert [row["area"] for row in written.slices if row["target"] == "core"] == [0, 0, 0, 0, 10, 0]
    labels = np.asarray(nib.load(tmp_path / "out" / "P1_pred.nii.gz").dataobj)
    assert ((labels == 2).sum(), (labels == 7).sum(), (labels > 0).sum()) == (3, 5, 8)
    with pytest.raises(InputError, match=r"P1_probability.nii.gz and 2 more of the results already exist"):
        check_free([source], description, tmp_path / "out", wanted)
