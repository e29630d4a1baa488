"""An evaluation that is shared out gives the files of one process, to the byte, and shards that differ never meet."""

import gc
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from test_evaluate import box, call, write_slices, write_volume

from brainseg_jax import evaluate
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation import case_pictures, folders, report
from brainseg_jax.evaluation.case_pictures import Outlines
from brainseg_jax.scans.masks import Mask

FILES = evaluate.FILES
pytestmark = pytest.mark.usefixtures("optax_promotion")


def make_masks(folder, count=5):
    """Cases of different size, of which one is found half; the first one has no spacing, so all are in voxels."""
    for index in range(count):
        truth = box(slice(2, 6 + index), slice(2, 10))
        predicted = truth & (np.arange(20) < 10 - index)
        if index == 0:
            write_slices(folder / "truth", "TCGA_DU_0000_19990101", truth, "mask")
            write_slices(folder / "predicted", "TCGA_DU_0000_19990101", predicted, "pred")
        else:
            name = f"TCGA_CS_{index:04d}_19990101"
            write_volume(folder / "truth", name, truth, spacing=(1.0, 1.0, 3.0))
            write_volume(folder / "predicted", name, predicted, spacing=(1.0, 1.0, 3.0))


def flags_of(folder, **others):
    return {"predictions": str(folder / "predicted"), "truth": str(folder / "truth"), **others}


def run_shards(count, **values):
    for index in range(count):
        call(**values, shard=f"{index}/{count}")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def in_two_processes(**values):
    """Both shards at once, as a user starts them."""
    flags = [f"--{name}={value}" for name, value in values.items()]
    command = [sys.executable, "-m", "brainseg_jax.evaluate", *flags]
    shards = [subprocess.Popen([*command, f"--shard={i}/2"], stderr=subprocess.PIPE, text=True) for i in (1, 0)]
    for shard in shards:
        _, errors = shard.communicate()
        assert shard.returncode == 0, errors


def test_folders_in_two_processes(tmp_path):
    make_masks(tmp_path)
    values = flags_of(tmp_path, tolerance=1.0)
    call(**values, output=str(tmp_path / "one"))
    in_two_processes(**values, output=tmp_path / "two")
    call(merge=True, output=str(tmp_path / "two"))
    assert sorted(content(tmp_path / "two")) == sorted(FILES) and content(tmp_path / "two") == content(tmp_path / "one")
    scores = json.loads((tmp_path / "two" / "scores.json").read_text())
    assert (scores["unit"], scores["surface_tolerance"]) == ("voxel", 1.0)
    assert list(scores["runs"]["predicted"]["groups"]["institution"]) == ["CS", "DU"]


def test_labels_and_slices_are_those_of_all_cases(tmp_path, monkeypatch):
    """Each label is a target, and each is in one shard alone; 16 slices, at most 6: one in 3."""
    monkeypatch.setattr(case_pictures, "MOST_SLICES", 6)
    for index, name in enumerate("abcd"):
        labels = box(slice(2, 6), slice(2, 10)) * np.uint8(1 + index)
        write_volume(tmp_path / "truth", name, labels)
        write_volume(tmp_path / "predicted", name, labels)
    call(**flags_of(tmp_path), output=str(tmp_path / "one"))
    run_shards(3, **flags_of(tmp_path), output=str(tmp_path / "many"))
    call(merge=True, output=str(tmp_path / "many"))
    assert content(tmp_path / "many") == content(tmp_path / "one")
    page = (tmp_path / "many" / "report.html").read_text()
    assert "label 4" in page and "The page holds one in 3 slices" in page


def test_a_run_in_two_processes(trained_run, tmp_path):
    """The validation patients, of whom there are two, so that each shard has one."""
    values = {"run": str(trained_run[0]), "part": "val"}
    assert len(json.loads((trained_run[0] / "split.json").read_text())["val"]) == 2
    call(run=[values["run"]], part="val", output=str(tmp_path / "one"))
    in_two_processes(**values, output=tmp_path / "two")
    call(merge=True, output=str(tmp_path / "two"))
    assert sorted(content(tmp_path / "two")) == sorted(FILES) and content(tmp_path / "two") == content(tmp_path / "one")


def test_runs_side_by_side_in_more_shards_than_cases(trained_run, tmp_path, monkeypatch):
    """The page shows one slice in so many of all cases, not of a shard."""
    monkeypatch.setattr(case_pictures, "MOST_SLICES", 10)
    shutil.copytree(trained_run[0], tmp_path / "other")
    values = {"run": [str(trained_run[0]), str(tmp_path / "other")]}
    call(**values, output=str(tmp_path / "one"))
    run_shards(3, **values, output=str(tmp_path / "many"))
    call(merge=True, output=str(tmp_path / "many"))
    assert content(tmp_path / "many") == content(tmp_path / "one")


def test_a_shard_that_is_done_is_not_done_again(tmp_path, capsys):
    make_masks(tmp_path)
    values = flags_of(tmp_path, output=str(tmp_path / "out"))
    call(**values, shard="0/2")
    path = tmp_path / "out" / "shards" / "0-of-2.jsonl"
    assert "shard 0/2, 3 cases:" in capsys.readouterr().out
    before, time = path.read_bytes(), path.stat().st_mtime_ns
    call(**values, shard="0/2")
    assert f"shard 0/2 is done: {path}" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == time
    with pytest.raises(InputError, match=r"of another command \(--tolerance=2.0 and 1.0\); give --overwrite"):
        call(**values, shard="0/2", tolerance=1.0)
    call(**values, shard="0/2", overwrite=True)
    assert path.read_bytes() == before and path.stat().st_mtime_ns > time
    with pytest.raises(InputError, match=r"0-of-2.jsonl: a shard of another division than --shard=0/3"):
        call(**values, shard="0/3")


@pytest.fixture
def shared(tmp_path):
    """Both shards of five cases, and the flags that made them."""
    make_masks(tmp_path)
    values = flags_of(tmp_path, output=str(tmp_path / "out"))
    run_shards(2, **values)
    return values, tmp_path / "out" / "shards"


def refused(values):
    with pytest.raises(InputError) as raised:
        call(merge=True, output=values["output"])
    assert not set(FILES) & set(content_names(values)), "something was written"
    return str(raised.value)


def content_names(values):
    return [path.name for path in evaluate.user_path(values["output"], "--output").iterdir()]


def test_a_missing_shard(shared):
    values, shards = shared
    (shards / "0-of-2.jsonl").unlink()
    assert "  shard 0/2 is missing; make it by --shard=0/2" in refused(values).splitlines()


def test_all_faults_are_listed(shared):
    values, shards = shared
    whole = (shards / "1-of-2.jsonl").read_bytes()
    (shards / "1-of-2.jsonl").write_bytes(whole[: len(whole) // 2])
    (shards / "0-of-2.jsonl").unlink()
    message = refused(values)
    assert "shard 0/2 is missing" in message and "1-of-2.jsonl: damaged (" in message
    assert (shards / "1-of-2.jsonl").exists()
    (shards / "1-of-2.jsonl").write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])  # without its last line alone
    assert "1-of-2.jsonl: damaged (its end is missing); make this shard again" in refused(values)


def test_shards_of_another_command(shared):
    values, _ = shared
    call(**values | {"tolerance": 1.0}, shard="1/2", overwrite=True)
    assert "is of another command than 0-of-2.jsonl: --tolerance=1.0 and 2.0" in refused(values)


def test_shards_of_another_division(shared):
    values, shards = shared
    shutil.copy(shards / "0-of-2.jsonl", shards / "0-of-3.jsonl")
    assert "holds shards of 2 and of 3 (0-of-2.jsonl, 1-of-2.jsonl, 0-of-3.jsonl)" in refused(values)


def test_a_case_in_two_shards(shared):
    values, shards = shared
    shutil.copy(shards / "0-of-2.jsonl", shards / "1-of-2.jsonl")
    message = refused(values)
    assert "TCGA_CS_0001_19990101 is in 0-of-2.jsonl and 1-of-2.jsonl" in message
    assert "no shard has TCGA_CS_0002_19990101, TCGA_CS_0004_19990101" in message


def test_masks_that_changed_between_two_shards(shared, tmp_path):
    values, _ = shared
    changed = box(slice(2, 6), slice(2, 9))
    write_volume(tmp_path / "predicted", "TCGA_CS_0003_19990101", changed, spacing=(1.0, 1.0, 3.0))
    call(**values, shard="1/2", overwrite=True)
    assert "does not go with 0-of-2.jsonl: what predicted holds has changed between them" in refused(values)


def test_shards_of_another_version_of_the_code(shared, monkeypatch):
    values, _ = shared
    monkeypatch.setattr("brainseg_jax.evaluation.shards.code_version", lambda: "commit 1234567")
    call(**values, shard="1/2", overwrite=True)
    assert "is of another version of this code than 0-of-2.jsonl: commit 1234567 and " in refused(values)


def test_results_are_not_replaced_by_a_merge(shared):
    values, shards = shared
    (shards / ".part-0123456789ab-1-of-2.jsonl").write_text("the half of a shard whose process was killed")
    call(merge=True, output=values["output"])
    assert not shards.exists()
    for again in (dict(merge=True, output=values["output"]), values | {"shard": "0/2"}):
        with pytest.raises(InputError, match=r"scores.json:  already exists; give another --output, or --overwrite"):
            call(**again)


def test_a_mask_that_changes_while_it_is_scored(tmp_path):
    make_masks(tmp_path)
    begun = folders.begin_folders(tmp_path / "predicted", tmp_path / "truth", tolerance=1.0)
    path = tmp_path / "truth" / "TCGA_CS_0004_19990101.nii.gz"
    write_volume(path.parent, "TCGA_CS_0004_19990101", box(slice(0, 2), slice(0, 2)), spacing=(1.0, 1.0, 3.0))
    with pytest.raises(InputError, match=r"TCGA_CS_0004_19990101.nii.gz: it was changed while the masks were scored"):
        list(begun.scores)


def alive(kind, of=lambda one: True):
    return sum(type(one) is kind and of(one) for one in gc.get_objects())


def test_memory_holds_a_case_at_a_time(tmp_path, monkeypatch):
    """Of 12 cases: masks while they are scored, pictures while the page is written."""
    make_masks(tmp_path, count=12)
    found = {"masks": [], "pictures": []}
    score, data = folders.score_targets, report._data

    def count_masks(*args, **options):
        found["masks"].append(alive(Mask))
        return score(*args, **options)

    def count_pictures(case):
        found["pictures"].append(alive(Outlines, lambda one: len(one.paths) > 1))
        return data(case)

    monkeypatch.setattr(folders, "score_targets", count_masks)
    monkeypatch.setattr(report, "_data", count_pictures)
    call(**flags_of(tmp_path), output=str(tmp_path / "out"))
    assert len(found["masks"]) == len(found["pictures"]) == 12
    assert max(found["masks"]) <= 4  # both of a case, as read and on one grid
    assert max(found["pictures"]) <= 4  # both outlines of a case, and of the one before
