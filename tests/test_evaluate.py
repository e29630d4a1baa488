"""The command `python -m brainseg_jax.evaluate`: runs, folders, and invalid input."""

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from scored import score_folders, score_runs

from brainseg_jax import evaluate
from brainseg_jax.errors import InputError
from brainseg_jax.runs.trained import names_of
from brainseg_jax.scans.description import LGG, Target

pytestmark = pytest.mark.usefixtures("optax_promotion")


def write_slices(folder, case, volume, kind):
    folder.mkdir(parents=True, exist_ok=True)
    for number, mask in enumerate(volume, start=1):
        Image.fromarray(255 * mask.astype(np.uint8)).save(folder / f"{case}_{number}_{kind}.tif")


def write_volume(folder, case, volume, spacing=(1.0, 1.0, 1.0)):
    """Writes slices along the third axis, as in NIfTI; `spacing` of columns, rows and slices."""
    folder.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(volume.astype(np.uint8).transpose(2, 1, 0), np.diag([*spacing, 1.0]))
    nib.save(image, folder / f"{case}.nii.gz")


def box(rows, columns, slices=slice(1, 3)):
    volume = np.zeros((4, 16, 20), bool)
    volume[slices, rows, columns] = True
    return volume


def call(**values):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["evaluate"])
    names = (
        "run",
        "source",
        "part",
        "predictions",
        "truth",
        "targets",
        "tolerance",
        "output",
        "shard",
        "merge",
        "overwrite",
        "figures",
    )
    with flagsaver.flagsaver(**{name: values.get(name, flags.FLAGS[name].default) for name in names}):
        evaluate.main([])


def test_a_folder_against_a_folder(tmp_path):
    """Runs the command on foreign masks; one case is exact, in one half of the tumor is predicted."""
    cases = {
        "TCGA_DU_0001_19990101": box(slice(2, 6), slice(2, 10)),
        "TCGA_CS_0002_19990101": box(slice(8, 12), slice(0, 4)),
    }
    for case, truth in cases.items():
        write_slices(tmp_path / "truth" / case, case, truth, "mask")
    exact, half = cases.values()
    half = half & (np.arange(20) < 2)  # 16 of 32 voxels
    for case, predicted in zip(cases, (exact, half), strict=True):
        write_slices(tmp_path / "others", case, predicted, "pred")
    command = [sys.executable, "-m", "brainseg_jax.evaluate", f"--predictions={tmp_path / 'others'}"]
    command += [f"--truth={tmp_path / 'truth'}", f"--output={tmp_path / 'out'}", "--tolerance=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "others, 2 patients: 3-D Dice 0.833 mean, 0.833 median" in done.stdout and "Traceback" not in done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["per_patient.csv", "report.html", "scores.json"]
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    scores = content["runs"]["others"]["scores"]
    assert (content["unit"], content["surface_tolerance"]) == ("voxel", 1.0)
    assert scores["dice_mean"] == pytest.approx((1 + 2 / 3) / 2) and scores["recall_mean"] == pytest.approx(0.75)
    assert scores["volume_error_mean"] == pytest.approx(-8.0) and scores["found_lesions"] == 2
    assert content["runs"]["others"]["groups"]["institution"]["CS"]["dice_mean"] == pytest.approx(2 / 3)
    rows = {row["patient"]: row for row in csv.DictReader((tmp_path / "out" / "per_patient.csv").open())}
    assert float(rows["TCGA_DU_0001_19990101"]["hd95"]) == 0.0 and rows["TCGA_CS_0002_19990101"]["unit"] == "voxel"
    assert "TCGA_CS_0002_19990101" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_figures_for_papers(tmp_path, ending):
    case = "TCGA_DU_0001_19990101"
    for kind, rows in (("truth", slice(2, 6)), ("predicted", slice(2, 8))):
        write_slices(tmp_path / kind, case, box(rows, slice(2, 10)), "mask")
    folders = {"predictions": str(tmp_path / "predicted"), "truth": str(tmp_path / "truth"), "figures": ending}
    call(**folders, output=str(tmp_path / "scores"))
    names = {"dice-of-the-patients", "volume-of-the-tumor"}  # masks have no probabilities and no training
    files = {path.name: path.read_bytes() for path in (tmp_path / "scores" / "figures").iterdir()}
    assert set(files) == {f"{name}.{ending}" for name in names}
    for content in files.values():
        if ending == "svg":
            assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
            assert b"#b8470a" in content  # the first run in print, and none of the placeholders
            assert not re.search(rb"#(010101|020202|0a0a0\d)", content)
            assert b"var(--" not in content and case.encode() not in content
        else:
            assert content.startswith(b"%PDF-") and b"CreationDate" not in content
    page = (tmp_path / "scores" / "report.html").read_text()
    assert "var(--run0)" in page and f'data-patient="{case[:12]}' in page  # the page keeps its own colors and marks
    with pytest.raises(InputError, match="figures already exists"):
        (tmp_path / "again" / "figures").mkdir(parents=True)
        call(**folders, output=str(tmp_path / "again"))
    call(**folders, output=str(tmp_path / "again"), overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "again" / "figures").iterdir()} == files
    with pytest.raises(InputError, match=f"--figures={ending} with --shard=0/2: give --figures to --merge"):
        call(**folders, output=str(tmp_path / "shards"), shard="0/2")


def test_volumes_are_measured_in_mm(tmp_path):
    """A mask moved by one column of 2 mm."""
    write_volume(tmp_path / "truth", "a", box(slice(2, 6), slice(2, 3)), spacing=(2.0, 3.0, 4.0))
    write_volume(tmp_path / "predicted", "a", box(slice(2, 6), slice(3, 4)), spacing=(2.0, 3.0, 4.0))
    scored, (case,) = score_folders(tmp_path / "predicted", tmp_path / "truth", tolerance=1.9)
    (row,) = scored.rows
    assert (row["unit"], row["hd95"], row["assd"], row["surface_dice"]) == ("mm", 2.0, 2.0, 0.0)
    assert row["volume_true"] == pytest.approx(8 * 24 / 1000)
    assert case.scan is None and case.truth[0].areas == [0, 4, 4, 0] and "institution" not in row


def test_a_case_without_spacing_makes_voxels_of_all(tmp_path, caplog):
    for folder in (tmp_path / "truth", tmp_path / "predicted"):
        write_volume(folder, "a", box(slice(2, 6), slice(2, 3)), spacing=(2.0, 3.0, 4.0))
        write_slices(folder, "b", box(slice(2, 6), slice(2, 3)), "mask")
    scored, _ = score_folders(tmp_path / "predicted", tmp_path / "truth", tolerance=1.0)
    assert [row["unit"] for row in scored.rows] == ["voxel", "voxel"]
    assert "the spacing of b is unknown" in caplog.text


def test_folders_that_do_not_match_are_refused_with_all_that_differs(tmp_path):
    mask = box(slice(2, 6), slice(2, 3))
    truth, predicted = tmp_path / "truth", tmp_path / "predicted"
    write_volume(truth, "missing", mask)
    write_volume(predicted, "extra", mask)
    write_volume(truth, "shape", mask)
    write_volume(predicted, "shape", mask[1:])
    write_volume(truth, "spacing", mask, spacing=(1.0, 1.0, 5.0))
    write_volume(predicted, "spacing", mask, spacing=(1.0, 1.0, 6.0))
    write_volume(truth, "kind", mask)
    write_slices(predicted, "kind", mask, "pred")
    write_slices(truth, "first", mask[:3], "mask")
    for number in (2, 3, 4):
        Image.fromarray(mask[0].astype(np.uint8)).save(predicted / f"first_{number}_pred.png")
    with pytest.raises(InputError) as raised:
        call(predictions=str(predicted), truth=str(truth), output=str(tmp_path / "out"))
    lines = str(raised.value).splitlines()
    assert f"  missing: in {truth} only" in lines and f"  extra: in {predicted} only" in lines
    assert "  shape: prediction has 3 x 16 x 20 voxels, reference 4 x 16 x 20" in lines
    assert "  spacing: spacing of the prediction 6 x 1 x 1 mm, of the reference 5 x 1 x 1 mm" in lines
    assert "  first: prediction starts at slice 2, reference at slice 1" in lines
    assert any(line.startswith("  kind: one is a volume with a spacing, the other single slices") for line in lines)
    assert len(lines) == 7 and not (tmp_path / "out").exists()


def test_a_run_is_scored_as_it_scored_itself(trained_run, tmp_path):
    workdir, _ = trained_run
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    shutil.copytree(workdir, tmp_path / "other")
    call(run=[str(workdir), str(tmp_path / "other")], output=str(tmp_path / "out"))
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before
    results = json.loads((workdir / "results.json").read_text())
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    one, other = content["runs"]["run"], content["runs"]["other"]
    assert one["scores"] == other["scores"] == {k: v for k, v in results["test"].items() if k in one["scores"]}
    assert one["groups"] == results["groups"] and one["calibration"] == results["calibration"]
    assert content["differences"]["other less run"]["dice"]["mean"] == 0.0
    rows = list(csv.DictReader((tmp_path / "out" / "per_patient.csv").open()))
    own = list(csv.DictReader((workdir / "per_patient.csv").open()))
    assert [row.pop("run") for row in rows] == ["run"] * len(own) + ["other"] * len(own) and rows == own + own
    assert "no choice depends on them" in (workdir / "report.html").read_text()


def test_validation_patients_of_a_run(trained_run):
    workdir, _ = trained_run
    (scored,), cases = score_runs([workdir], part="val", tolerance=1.0)
    split = json.loads((workdir / "split.json").read_text())
    assert [row["patient"] for row in scored.rows] == [case.name for case in cases] == sorted(split["val"])
    assert "so these scores are too good" in scored.facts["Scored"]
    assert {row["grade"] for row in scored.rows} <= {-1, 1, 2}


@pytest.mark.parametrize("difference", ["patients", "data", "targets"])
def test_runs_that_cannot_be_compared(trained_run, tmp_path, difference):
    workdir, _ = trained_run
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    if difference == "patients":
        split = json.loads((other / "split.json").read_text())
        split["test"][0], split["train"][0] = split["train"][0], split["test"][0]
        (other / "split.json").write_text(json.dumps(split))
        words = f"the same test patients.*{split['test'][0]}"
    elif difference == "targets":  # the fingerprint covers only the content, not the label names
        config = json.loads((other / "config.json").read_text())
        lesion = dataclasses.replace(LGG, targets=(Target("lesion", (1,)),))
        config["dataset"]["description"] = lesion.to_json()
        (other / "config.json").write_text(json.dumps(config))
        words = r"do not have the same targets \(tumor \[1\]; lesion \[1\]\)"
    else:
        config = json.loads((other / "config.json").read_text())
        config["dataset"]["fingerprint"] = "0123456789abcdef"
        (other / "config.json").write_text(json.dumps(config))
        words = "were trained on different data"
        with pytest.raises(InputError, match="was trained on data of fingerprint 0123456789ab"):
            call(run=[str(other)], output=str(tmp_path / "out"))  # alone, the prepared data are another set
    with pytest.raises(InputError, match=words):
        call(run=[str(workdir), str(other)], output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_names_tell_runs_apart(tmp_path):
    assert names_of([tmp_path / "a" / "run"]) == ["run"]
    assert names_of([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    with pytest.raises(InputError, match="the same folder twice"):
        names_of([tmp_path / "a", tmp_path / "a"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "give --run=FOLDER, or --predictions"),
        ({"run": ["a"], "predictions": "b", "truth": "c"}, "give --run=FOLDER, or"),
        ({"predictions": "b"}, "give --run=FOLDER, or"),
        ({"run": list("abcdefg")}, "7 runs; give at most 6"),
        ({"run": ["nowhere"]}, "nowhere: not a run folder"),
        ({"run": ["a"], "tolerance": -1.0}, r"--tolerance=-1\.0: give a length of at least 0"),
        ({"run": ["a"], "output": ""}, "--output is empty"),
        ({"run": ["a"], "shard": "2/2"}, "--shard=2/2: give i/n with i from 0"),
        ({"merge": True}, "no shard of evaluate in out/shards; run evaluate with --shard=0/N"),
        ({"run": ["a"], "output": __file__}, "is a file; give a folder"),
        ({"predictions": "nowhere", "truth": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_unusable_input_is_reported(tmp_path, monkeypatch, values, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        call(**{"output": "out", **values})
    assert not (tmp_path / "out").exists()


def test_flags_that_a_merge_does_not_take(tmp_path):
    """Also if the given value is the default."""
    flags.FLAGS(["evaluate"], known_only=True)
    with flagsaver.flagsaver(), pytest.raises(InputError) as refused:
        flags.FLAGS(["evaluate", "--merge", f"--output={tmp_path}", "--run=r", "--part=test", "--shard=0/2"])
        evaluate.main([])
    words = "--merge: leave out --run, --part, --shard; the shards already record these settings"
    assert str(refused.value) == words


def test_a_run_is_not_written_over(trained_run):
    workdir, _ = trained_run
    with pytest.raises(InputError, match="is a run folder, and its own results would be lost"):
        call(run=[str(workdir)], output=str(workdir))
