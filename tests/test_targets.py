"""Folders of label maps: the meaning of the labels, its source, and invalid folders."""

import json

import nibabel as nib
import numpy as np
import pytest
from scored import score_folders
from test_evaluate import call

from brainseg_jax.errors import InputError
from brainseg_jax.evaluation import case_pictures
from brainseg_jax.evaluation.scores import read_table
from brainseg_jax.evaluation.targets import parse_targets, read_dataset_json

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
SHAPE = (8, 6, 4)


def labels():
    """24 voxels of 1, 16 of 2, 8 of 3."""
    volume = np.zeros(SHAPE, np.uint8)
    volume[:, :, 1] = 1
    volume[4:, :, 1] = 0
    volume[:4, :4, 2] = 2
    volume[4:, :2, 2] = 3
    return volume


def half():
    """All labels only on the first four rows and columns: 16 of 1, 16 of 2, 0 of 3."""
    volume = labels()
    volume[:, 4:] = 0
    volume[4:] = 0
    return volume


def write(path, volume, affine=AFFINE):
    path.parent.mkdir(exist_ok=True, parents=True)
    nib.save(nib.Nifti1Image(volume, affine), path)


@pytest.fixture
def folders(tmp_path):
    for case in ("007", "a"):
        write(tmp_path / "truth" / f"{case}.nii.gz", labels())
        write(tmp_path / "predicted" / f"{case}.nii.gz", half())
    return tmp_path


def score(folder, **options):
    return score_folders(folder / "predicted", folder / "truth", tolerance=1.0, **options)


def dice_of(scored):
    return {row["target"]: row["dice"] for row in scored.rows if row["patient"] == "a"}


def test_each_label_is_a_target(folders):
    scored, (case, _) = score(folders)
    assert scored.description.names == ("label 1", "label 2", "label 3")
    assert dice_of(scored) == {"label 1": pytest.approx(0.8), "label 2": 1.0, "label 3": 0.0}
    assert [row["volume_true"] for row in scored.rows[:3]] == pytest.approx([0.048, 0.032, 0.016])
    assert [outlines.areas for outlines in case.truth] == [[0, 24, 0, 0], [0, 0, 16, 0], [0, 0, 8, 0]]
    assert [outlines.areas for outlines in case.overlays[0].masks] == [[0, 16, 0, 0], [0, 0, 16, 0], [0] * 4]


@pytest.mark.parametrize("codes", ["RAS", "SAR", "PIL", "ASL"])
def test_label_maps_are_turned_by_their_affine(folders, codes):
    image = nib.Nifti1Image(half(), AFFINE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes))
    nib.save(image.as_reoriented(turn), folders / "predicted" / "a.nii.gz")
    assert dice_of(score(folders)[0]) == {"label 1": pytest.approx(0.8), "label 2": 1.0, "label 3": 0.0}


def test_a_large_report_holds_fewer_slices(folders, monkeypatch):
    """8 slices, at most 3: one in 3."""
    monkeypatch.setattr(case_pictures, "MAX_SLICES", 3)
    scored, (case, _) = score(folders)
    assert case.step == 3 and case.numbers == [1, 4] and [len(one.paths) for one in case.truth] == [2] * 3
    assert scored.rows[0]["slices"] == 4


def test_regions_by_hand(folders):
    """whole: 48 reference and 32 predicted voxels, all overlap; core: labels 2 and 3, 24 and 16."""
    scored, _ = score(folders, targets="whole=1,2,3; core=3,2")
    assert dice_of(scored) == {"whole": pytest.approx(2 * 32 / 80), "core": pytest.approx(2 * 16 / 40)}
    assert scored.facts["Targets named by"] == "--targets"
    (alone,) = {
        row["patient"]: row for row in score(folders, targets="rim=1")[0].rows if row["patient"] == "a"
    }.values()
    assert "target" not in alone and alone["dice"] == pytest.approx(0.8)


@pytest.mark.parametrize("beside", [True, False])
def test_regions_and_ignored_voxels_of_a_dataset_json(folders, beside):
    """Label 3 is ignored: its voxels do not count, although label 2 is predicted there."""
    predicted = half()
    predicted[4:, :2, 2] = 2
    write(folders / "predicted" / "a.nii.gz", predicted)
    content = {"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, "regions_class_order": [1, 2]}
    (folders / "dataset.json" if beside else folders / "truth" / "dataset.json").write_text(json.dumps(content))
    scored, (_, case) = score(folders)
    assert dice_of(scored) == {"whole": pytest.approx(2 * 32 / (40 + 32)), "core": 1.0}
    assert scored.facts["Not scored"] == "voxels of label 3"
    assert case.overlays[0].masks[1].areas == [0, 0, 16, 0]
    of_both, _ = score(folders, targets="second=2")
    assert of_both.rows[1]["dice"] == 1.0 and of_both.facts["Not scored"] == "voxels of label 3"
    with pytest.raises(InputError, match=r"predicted/a.nii.gz: value 3 is not a label of .* \(1, 2\)"):
        write(folders / "predicted" / "a.nii.gz", labels())
        score(folders)
    with pytest.raises(InputError, match=r"label 3 is ignored in .*dataset.json and a target in --targets=third=3"):
        score(folders, targets="third=3")


def test_labels_the_other_way_round(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}))
    found = read_dataset_json(path)
    assert [(t.name, t.labels) for t in found.description.targets] == [("Anterior", (1,)), ("Posterior", (2,))]
    assert found.known == {0, 1, 2}
    path.write_text(json.dumps({"name": "no labels"}))
    assert read_dataset_json(path) is None


def test_ignore_is_found_in_any_spelling(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text('{"labels": {"background": 0, "tumor": 1, "Ignore": 2}}')
    description = read_dataset_json(path).description
    assert (description.names, description.ignore) == (("tumor",), 2)


def test_what_the_reference_does_not_know_is_refused_with_all_else(folders):
    predicted = half()
    predicted[0, 0, 0] = 4
    write(folders / "predicted" / "a.nii.gz", predicted)
    write(folders / "predicted" / "extra.nii.gz", predicted)
    with pytest.raises(InputError) as raised:
        score(folders)
    lines = str(raised.value).splitlines()
    words = (
        "value 4 is not a label of the reference masks (1, 2, 3); correct the mask, or name the label with --targets"
    )
    assert f"  {folders / 'predicted' / 'a.nii.gz'}: {words}" in lines
    assert f"  extra: in {folders / 'predicted'} only" in lines and len(lines) == 4
    (folders / "predicted" / "extra.nii.gz").unlink()
    scored, _ = score(folders, targets="first=1;fourth=4")
    assert dice_of(scored)["fourth"] == 0.0


def test_a_reference_that_its_dataset_json_does_not_know(folders):
    (folders / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "one": 1, "two": 2}}))
    with pytest.raises(InputError, match=r"truth/007.nii.gz: value 3 is not a label of .*dataset.json; correct"):
        score(folders)


def test_masks_of_one_value_against_label_maps(tmp_path):
    """0/255 against 0/1 is one target; 0/1 against 0/1/2/3 is its label 1; 0/255 against labels is refused."""
    ones = (labels() == 1).astype(np.uint8)
    write(tmp_path / "truth" / "a.nii.gz", ones)
    write(tmp_path / "predicted" / "a.nii.gz", 255 * ones)
    scored, _ = score(tmp_path)
    assert scored.rows[0]["dice"] == 1.0 and scored.description.names == ("tumor",) and "target" not in scored.rows[0]
    write(tmp_path / "truth" / "a.nii.gz", labels())
    with pytest.raises(InputError, match=r"predicted/a.nii.gz: value 255 is not a label of"):
        score(tmp_path)
    write(tmp_path / "predicted" / "a.nii.gz", ones)
    assert dice_of(score(tmp_path)[0]) == {"label 1": 1.0, "label 2": 0.0, "label 3": 0.0}
    write(tmp_path / "truth" / "a.nii.gz", ones)
    write(tmp_path / "predicted" / "a.nii.gz", labels())
    with pytest.raises(InputError, match=r"predicted/a.nii.gz: value 2 is not a label of the reference masks \(1\)"):
        score(tmp_path)


def test_a_value_that_often_means_ignored_has_to_be_named(tmp_path):
    volume = labels()
    volume[volume == 3] = 255
    write(tmp_path / "truth" / "a.nii.gz", volume)
    write(tmp_path / "predicted" / "a.nii.gz", half())
    with pytest.raises(InputError, match=r"truth/a.nii.gz: value 255 next to labels 1, 2; name all with --targets"):
        score(tmp_path)
    assert dice_of(score(tmp_path, targets="first=1;second=2;ignore=255")[0]) == {"first": 0.8, "second": 1.0}
    assert dice_of(score(tmp_path, targets="first=1;third=255")[0]) == {"first": 0.8, "third": 0.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("whole", "'whole' is not NAME=LABEL"),
        ("whole=1,x;=2", "'whole=1,x' is not NAME=LABEL,LABEL; '=2' is not NAME=LABEL"),
        ("a=1;a=2", "target 'a' occurs twice"),
        ("a=300", "target 'a' has labels 300"),
        ("a=1;ignore=1", "label 1 is both ignored and a label of target 'a'"),
        ("a=1;ignore=2,3", "2 ignore labels; give one"),
        ("ignore=1", "no target"),
    ],
)
def test_targets_that_cannot_be_read(text, words):
    with pytest.raises(InputError) as raised:
        parse_targets(text)
    assert str(raised.value).startswith(f"--targets={text}: ") and words in str(raised.value)


def test_the_command_writes_a_block_a_target(folders, capsys):
    arguments = {"predictions": str(folders / "predicted"), "truth": str(folders / "truth")}
    call(**arguments, targets="whole=1,2,3;rim=1", output=str(folders / "out"))
    content = json.loads((folders / "out" / "scores.json").read_text())["runs"]["predicted"]
    assert content["scores"]["targets"]["rim"]["dice_mean"] == pytest.approx(0.8)
    assert content["scores"]["mean"]["dice_mean"] == pytest.approx(0.8)  # 2 * 32 / 80, and 0.8
    rows = read_table(folders / "out" / "per_patient.csv")
    assert [(row["patient"], row["target"]) for row in rows] == [(p, t) for p in ("007", "a") for t in ("whole", "rim")]
    printed = capsys.readouterr().out
    assert "predicted, mean over the targets, 2 patients: 3-D Dice 0.800 mean" in printed
    assert "predicted, rim, 2 patients: 3-D Dice 0.800 mean" in printed
    page = (folders / "out" / "report.html").read_text()
    assert "Segmentation of whole and rim, scores by patient" in page and "FLAIR" not in page
    with pytest.raises(InputError, match="the targets of a run are those of its data"):
        call(run=["a"], targets="whole=1", output=str(folders / "other"))
