"""A sharded evaluation gives the same files as one process, byte for byte; different shards are never merged."""

import fcntl
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
from brainseg_jax.runs import comparison
from brainseg_jax.scans.masks import Mask

FILES = evaluate.FILES
pytestmark = pytest.mark.usefixtures("optax_promotion")


def make_masks(folder, count=5):
    """Cases of different sizes, one with half of its tumor predicted. The first has no spacing: all are in voxels."""
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
    """Runs both shards at the same time, as a user starts them."""
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
    """Each label is a target and is in only one shard; 16 slices, at most 6 shown: one in 3."""
    monkeypatch.setattr(case_pictures, "MAX_SLICES", 6)
    for index, name in enumerate("abcd"):
        labels = box(slice(2, 6), slice(2, 10)) * np.uint8(1 + index)
        write_volume(tmp_path / "truth", name, labels)
        write_volume(tmp_path / "predicted", name, labels)
    call(**flags_of(tmp_path), output=str(tmp_path / "one"))
    run_shards(3, **flags_of(tmp_path), output=str(tmp_path / "many"))
    call(merge=True, output=str(tmp_path / "many"))
    assert content(tmp_path / "many") == content(tmp_path / "one")
    page = (tmp_path / "many" / "report.html").read_text()
    assert "label 4" in page and "The page shows one of every 3 slices" in page


def test_a_run_in_two_processes(trained_run, tmp_path):
    """Scores the two validation patients, so that each shard has one."""
    values = {"run": str(trained_run[0]), "part": "val"}
    assert len(json.loads((trained_run[0] / "split.json").read_text())["val"]) == 2
    call(run=[values["run"]], part="val", output=str(tmp_path / "one"))
    in_two_processes(**values, output=tmp_path / "two")
    call(merge=True, output=str(tmp_path / "two"))
    assert sorted(content(tmp_path / "two")) == sorted(FILES) and content(tmp_path / "two") == content(tmp_path / "one")


def test_runs_side_by_side_in_more_shards_than_cases(trained_run, tmp_path, monkeypatch):
    """The page chooses every n-th slice over all cases, not per shard."""
    monkeypatch.setattr(case_pictures, "MAX_SLICES", 10)
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
    path = tmp_path / "out" / "shards" / "evaluate-0-of-2.jsonl"
    assert "shard 0/2, 3 cases:" in capsys.readouterr().out
    before, time = path.read_bytes(), path.stat().st_mtime_ns
    call(**values, shard="0/2")
    assert f"shard 0/2 is done: {path}" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == time
    with pytest.raises(InputError, match=r"by a different command .*\(--tolerance: 2.0 and 1.0\); give another"):
        call(**values, shard="0/2", tolerance=1.0)
    call(**values, shard="0/2", overwrite=True)
    assert path.read_bytes() == before and path.stat().st_mtime_ns > time
    with pytest.raises(InputError, match=r"0-of-2.jsonl: from a different number of shards than --shard=0/3"):
        call(**values, shard="0/3")


def change_a_mask(folder):
    changed = box(slice(2, 6), slice(2, 9))
    write_volume(folder / "predicted", "TCGA_CS_0003_19990101", changed, spacing=(1.0, 1.0, 3.0))


def test_a_done_shard_of_masks_that_changed_is_refused(two_shards, tmp_path):
    values, _ = two_shards
    change_a_mask(tmp_path)
    for index in range(2):
        with pytest.raises(InputError, match=r"different input \(masks; TCGA_CS_0003_19990101 changed\); give another"):
            call(**values, shard=f"{index}/2")


def test_a_done_shard_of_another_version_of_the_code_is_refused(two_shards, monkeypatch):
    values, _ = two_shards
    monkeypatch.setattr(evaluate, "code_version", lambda: "commit 1234567")
    with pytest.raises(InputError, match=r"different command or from different input \(code: .* and commit 1234567\)"):
        call(**values, shard="0/2")


def test_a_done_shard_of_a_run_that_changed_is_refused(trained_run, tmp_path):
    run = shutil.copytree(trained_run[0], tmp_path / "run")
    values = {"run": [str(run)], "part": "val", "output": str(tmp_path / "out"), "shard": "0/2"}
    call(**values)
    results = json.loads((run / "results.json").read_text())
    results["postprocess"] = {"threshold": 0.25, "largest_component": False, "min_voxels": 0}
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=r"run run; post-processing changed\); give another --output, or --overwrite"):
        call(**values)


def test_a_stopped_shard_goes_on(tmp_path, monkeypatch, capsys):
    """Ctrl-C in its third and last case: two are kept."""
    make_masks(tmp_path)
    values = flags_of(tmp_path, output=str(tmp_path / "out"), shard="0/2")
    score, scored = folders.score_targets, []

    def stop(*args, **options):
        scored.append(args)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(*args, **options)

    monkeypatch.setattr(folders, "score_targets", stop)
    with pytest.raises(KeyboardInterrupt, match="repeat the command to continue shard 0/2"):
        call(**values)
    with pytest.raises(InputError, match=r"shard 0/2 is not done; wait for it, or run it again if it was stopped"):
        call(merge=True, output=values["output"])
    call(**values)
    assert len(scored) == 4 and "shard 0/2, 1 case:" in capsys.readouterr().out


def test_a_shard_that_was_cut_off_anywhere_goes_on(two_shards):
    """Nine lines: header, run, two per case, end. The case of an incomplete line is scored again."""
    values, shards = two_shards
    path = shards / "evaluate-0-of-2.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 9
    for count in range(9):
        before = sum(map(len, lines[:count]))
        for cut in (before, before + len(lines[count]) // 2, before + len(lines[count]) - 1):
            path.write_bytes(whole[:cut])
            assert "shard 0/2 is not done" in refused(values)
            call(**values, shard="0/2")
            assert path.read_bytes() == whole


def test_a_file_without_its_last_run_is_not_whole(trained_run, tmp_path):
    shutil.copytree(trained_run[0], tmp_path / "other")
    values = {"run": [str(trained_run[0]), str(tmp_path / "other")], "part": "val", "output": str(tmp_path / "out")}
    run_shards(2, **values)
    path = tmp_path / "out" / "shards" / "evaluate-1-of-2.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert [index for index, line in enumerate(lines) if "run" in json.loads(line)] == [1, 4] and len(lines) == 8
    path.write_bytes(b"".join(lines[:4]))  # header, the first run, its only case
    assert "shard 1/2 is not done" in refused(values)
    path.write_bytes(b"".join([*lines[:4], lines[7]]))
    assert "evaluate-1-of-2.jsonl: damaged (it holds 1 of 2 runs); run shard 1/2 with --overwrite" in refused(values)
    path.write_bytes(b"".join(lines[:4]))
    call(**values, shard="1/2")
    assert path.read_bytes() == whole


def test_data_of_all_runs_are_looked_for_before_one_is_scored(trained_run, tmp_path, monkeypatch):
    def miss(config, run, **_):
        raise InputError(f"no data of {run}")

    def build(*_):
        raise AssertionError("the first run was begun")

    other = shutil.copytree(trained_run[0], tmp_path / "other")
    monkeypatch.setattr(comparison, "find_data", miss)
    monkeypatch.setattr(comparison, "build_evaluation", build)
    with pytest.raises(InputError, match=f"no data of {other}"):
        call(run=[str(trained_run[0]), str(other)], output=str(tmp_path / "out"))


def test_two_processes_do_not_write_one_shard(two_shards):
    values, shards = two_shards
    with (shards / "evaluate-0-of-2.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"evaluate-0-of-2.jsonl: another process is working on shard 0/2; wait"):
            call(**values, shard="0/2")


@pytest.mark.parametrize("merge", [False, True])
def test_an_interrupted_report_leaves_no_results(two_shards, monkeypatch, merge):
    values, shards = two_shards
    values = {"merge": True, "output": values["output"]} if merge else values

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "write_report", stop)
    with pytest.raises(KeyboardInterrupt):
        call(**values)
    assert content_names(values) == ["shards"]
    monkeypatch.undo()
    call(**values)
    assert set(FILES) <= set(content_names(values)) and shards.exists() != merge


@pytest.fixture
def two_shards(tmp_path):
    """Both shards of five cases, and their flags."""
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


def test_a_missing_shard(two_shards):
    values, shards = two_shards
    (shards / "evaluate-0-of-2.jsonl").unlink()
    assert f"  {shards}: shard 0/2 is missing; run evaluate with --shard=0/2" in refused(values).splitlines()


def test_all_faults_are_listed(two_shards):
    values, shards = two_shards
    whole = (shards / "evaluate-1-of-2.jsonl").read_bytes()
    (shards / "evaluate-1-of-2.jsonl").write_bytes(whole[: len(whole) // 2])
    (shards / "evaluate-0-of-2.jsonl").unlink()
    message = refused(values)
    assert "shard 0/2 is missing" in message and "shard 1/2 is not done; wait for it, or" in message
    (shards / "evaluate-1-of-2.jsonl").write_bytes(whole[: whole.index(b"\n") + 1] + b"[]\n")
    message = refused(values)
    assert "shard 0/2 is missing" in message and "1-of-2.jsonl: damaged (" in message
    with pytest.raises(InputError, match=r"1-of-2.jsonl: damaged \(.*\); give --overwrite to begin it again"):
        call(**values, shard="1/2")
    (shards / "evaluate-1-of-2.jsonl").write_bytes(b"[]\n" + whole)
    with pytest.raises(InputError, match=r"1-of-2.jsonl: damaged \(invalid header: .*\); give --overwrite"):
        call(**values, shard="1/2")


def test_shards_of_another_command(two_shards):
    values, _ = two_shards
    call(**values | {"tolerance": 1.0}, shard="1/2", overwrite=True)
    assert "from a different command or input than evaluate-0-of-2.jsonl (--tolerance: 1.0 and 2.0)" in refused(values)


def test_shards_of_another_number(two_shards):
    values, shards = two_shards
    shutil.copy(shards / "evaluate-0-of-2.jsonl", shards / "evaluate-0-of-3.jsonl")
    names = "evaluate-0-of-2.jsonl, evaluate-1-of-2.jsonl, evaluate-0-of-3.jsonl"
    assert f"different numbers of shards: 2 and 3 ({names}); remove the old ones" in refused(values)


def test_a_case_in_two_shards(two_shards):
    values, shards = two_shards
    shutil.copy(shards / "evaluate-0-of-2.jsonl", shards / "evaluate-1-of-2.jsonl")
    assert "1-of-2.jsonl: damaged (its header names shard 0/2)" in refused(values)
    text = (shards / "evaluate-0-of-2.jsonl").read_text().replace('"shard": "0/2"', '"shard": "1/2"')
    (shards / "evaluate-1-of-2.jsonl").write_text(text)
    assert "1-of-2.jsonl: damaged (TCGA_CS_0001_19990101, TCGA_CS_0002_19990101, " in refused(values)


def test_masks_that_changed_between_two_shards(two_shards, tmp_path):
    values, _ = two_shards
    change_a_mask(tmp_path)
    call(**values, shard="1/2", overwrite=True)
    assert "than evaluate-0-of-2.jsonl (masks; TCGA_CS_0003_19990101 changed)" in refused(values)


def test_shards_of_another_version_of_the_code(two_shards, monkeypatch):
    values, _ = two_shards
    monkeypatch.setattr(evaluate, "code_version", lambda: "commit 1234567")
    call(**values, shard="1/2", overwrite=True)
    assert "input than evaluate-0-of-2.jsonl (code: commit 1234567 and " in refused(values)


def test_results_are_not_replaced_by_a_merge(two_shards):
    values, shards = two_shards
    call(merge=True, output=values["output"])
    assert not shards.exists()
    for again in (dict(merge=True, output=values["output"]), values | {"shard": "0/2"}):
        with pytest.raises(InputError, match=r"scores.json already exists; give another --output, or --overwrite"):
            call(**again)


def test_a_mask_that_changes_while_it_is_scored(tmp_path):
    make_masks(tmp_path)
    (scoring,) = folders.begin_folders(tmp_path / "predicted", tmp_path / "truth", tolerance=1.0).scorings
    path = tmp_path / "truth" / "TCGA_CS_0004_19990101.nii.gz"
    write_volume(path.parent, "TCGA_CS_0004_19990101", box(slice(0, 2), slice(0, 2)), spacing=(1.0, 1.0, 3.0))
    with pytest.raises(InputError, match=r"TCGA_CS_0004_19990101.nii.gz: it changed while the masks were scored"):
        list(scoring.score(scoring.cases))


def alive(kind, of=lambda one: True):
    return sum(type(one) is kind and of(one) for one in gc.get_objects())


def test_memory_holds_a_case_at_a_time(tmp_path, monkeypatch):
    """Among 12 cases: masks during scoring, pictures while the page is written."""
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
