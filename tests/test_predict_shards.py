"""Shards of a prediction give the files and tables of one process; unrelated shards are refused."""

import filecmp
import json
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import call_predict, once

from brainseg_jax.errors import InputError, PartlyDone
from brainseg_jax.evaluation.scores import write_table
from brainseg_jax.files import PRETRAINED
from brainseg_jax.prediction import job, results, stream
from brainseg_jax.prediction.results import Wanted
from brainseg_jax.prediction.shards import digest_of_channels, merge_shards
from brainseg_jax.scans.find import find_scans
from brainseg_jax.scans.patterns import read_patterns
from brainseg_jax.shards import Shard

pytestmark = pytest.mark.usefixtures("optax_promotion")
WANTED = Wanted(probabilities=True, overlays=True)


def predict_shard(run, scans, output, shard, *, wanted=WANTED, overwrite=False):
    return job.predict([run], scans, output, wanted=wanted, mirror=None, overwrite=overwrite, shard=shard)


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def parts_of(output):
    return sorted(path.name for path in (output / "shards").iterdir())


@pytest.fixture(scope="module")
def scans(phantom_folder, tmp_path_factory):
    """Three patients as slices, a volume, and an invalid file between them by name."""

    def make(folder):
        for source in sorted(path for path in phantom_folder.iterdir() if path.is_dir())[:3]:
            shutil.copytree(source, folder / "in" / source.name)
        values = np.random.default_rng(0).integers(0, 900, (20, 24, 5)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / "in" / "A_volume.nii.gz")
        (folder / "in" / "TCGA_PA_0002_bad.nii").write_text("no volume")

    return once(tmp_path_factory, "shards", make) / "in"


@pytest.fixture(scope="module")
def whole(scans, trained_run, tmp_path_factory):
    """All scans, in one process."""

    def make(folder):
        with pytest.raises(PartlyDone, match="1 of 5 scans"):
            call_predict(trained_run[0], scans, folder / "out", wanted=WANTED)

    return once(tmp_path_factory, "shares_whole", make) / "out"


@pytest.fixture
def shards(scans, trained_run, tmp_path_factory, tmp_path):
    """Both of two shards, in this process; a copy that a test may change."""

    def make(folder):
        predict_shard(trained_run[0], scans, folder / "out", Shard(0, 2))
        with pytest.raises(PartlyDone, match="1 of 2 scans"):
            predict_shard(trained_run[0], scans, folder / "out", Shard(1, 2))

    return shutil.copytree(once(tmp_path_factory, "shares_both", make) / "out", tmp_path / "out")


def test_two_processes_write_what_one_writes(scans, trained_run, whole, tmp_path):
    output = tmp_path / "out"
    base = [sys.executable, "-m", "brainseg_jax.predict", f"--output={output}"]
    given = [f"--run={trained_run[0]}", f"--input={scans}", "--probabilities", "--overlays"]
    running = [subprocess.Popen([*base, *given, f"--shard={index}/2"], stdout=subprocess.PIPE) for index in range(2)]
    said = [process.communicate()[0].decode() for process in running]
    assert [process.returncode for process in running] == [0, 5]
    assert "shard 0/2: 3 of 5 cases\n" in said[0] and not (output / "predictions.csv").exists()
    merged = subprocess.run([*base, "--merge"], capture_output=True, text=True, check=False)
    assert merged.returncode == 5 and "1 of 5 scans could not be predicted; the others are done:\n" in merged.stderr
    assert "Traceback" not in merged.stderr and "2 shards, 4 scans: " in merged.stdout
    assert files_of(output) == files_of(whole) and len(files_of(output)) == 2 + 3 + 3 * (2 * 16 + 1)
    assert not [name for name in files_of(whole) if not filecmp.cmp(whole / name, output / name, shallow=False)]


def test_a_done_shard_is_not_done_again(scans, trained_run, shards, capsys):
    written = (shards / "A_volume_pred.nii.gz").stat().st_mtime_ns
    assert predict_shard(trained_run[0], scans, shards, Shard(0, 2)).scans == []
    assert f"shard 0/2 is done: {shards}/shards/predict-0-of-2.jsonl; --overwrite" in capsys.readouterr().out
    assert (shards / "A_volume_pred.nii.gz").stat().st_mtime_ns == written
    assert predict_shard(trained_run[0], scans, shards, Shard(0, 2), overwrite=True).scans_done == 3
    assert (shards / "A_volume_pred.nii.gz").stat().st_mtime_ns > written


def stop_after(monkeypatch, count):
    """Presses Ctrl-C while scan `count` + 1 is written; returns the names of all written files."""
    write, written = stream.write_results, []

    def write_or_stop(source, *args):
        if len(written) == count:
            raise KeyboardInterrupt
        written.append(source.name)
        return write(source, *args)

    monkeypatch.setattr(stream, "write_results", write_or_stop)
    return written


def test_a_stopped_shard_goes_on(scans, trained_run, whole, tmp_path, monkeypatch):
    output = tmp_path / "out"
    stopped = stop_after(monkeypatch, 2)
    with pytest.raises(
        KeyboardInterrupt, match="2 cases of shard 0/2 are done; the same command continues with the ot"
    ):
        predict_shard(trained_run[0], scans, output, Shard(0, 2))
    monkeypatch.undo()
    with pytest.raises(PartlyDone):
        predict_shard(trained_run[0], scans, output, Shard(1, 2))
    with pytest.raises(InputError, match=r"shard 0/2 is not done; wait for it, or run it again if it was stopped$"):
        merge_shards(output, overwrite=False)
    (output / "A_volume_pred.nii.gz").unlink()  # what is gone is predicted again
    written = stop_after(monkeypatch, -1)
    predict_shard(trained_run[0], scans, output, Shard(0, 2))
    assert stopped[0] == "A_volume" and len(stopped) == len(written) == 2 and written[0] == "A_volume"
    assert stopped[1] not in written
    with pytest.raises(PartlyDone):
        merge_shards(output, overwrite=False)
    assert files_of(output) == files_of(whole)
    assert not [name for name in files_of(whole) if not filecmp.cmp(whole / name, output / name, shallow=False)]


def test_a_shard_that_was_cut_off_goes_on(scans, trained_run, shards, monkeypatch):
    """Header, three cases and the end; a kill leaves half of the third case's line."""
    path = shards / "shards" / "predict-0-of-2.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    written = stop_after(monkeypatch, -1)
    predict_shard(trained_run[0], scans, shards, Shard(0, 2))
    assert path.read_bytes() == content and len(lines) == 5 and written == [json.loads(lines[3])["case"]]


def test_a_done_shard_whose_files_are_gone_is_done_again(scans, trained_run, shards):
    (shards / "A_volume_pred.nii.gz").unlink()
    assert predict_shard(trained_run[0], scans, shards, Shard(0, 2)).scans_done == 1
    assert (shards / "A_volume_pred.nii.gz").exists()


def test_scans_that_changed_are_refused(scans, trained_run, shards, tmp_path):
    changed = tmp_path / "in"
    shutil.copytree(scans, changed)
    output = tmp_path / "changed"
    predict_shard(trained_run[0], changed, output, Shard(0, 2), wanted=Wanted())
    values = np.zeros((20, 24, 5), np.int16)
    nib.save(nib.Nifti1Image(values, np.eye(4)), changed / "A_volume.nii.gz")
    words = r"predict-0-of-2\.jsonl: the files of A_volume changed after they were predicted; give --overwrite"
    with pytest.raises(InputError, match=words):
        predict_shard(trained_run[0], changed, output, Shard(0, 2), wanted=Wanted())


def test_a_scan_that_could_not_be_predicted_is_tried_again(scans, trained_run, shards, tmp_path):
    """A damaged scan is reported again; once repaired, the same command predicts only this scan."""
    damaged = tmp_path / "in"
    shutil.copytree(scans, damaged)
    output = tmp_path / "tried"
    good = (damaged / "A_volume.nii.gz").read_bytes()
    (damaged / "A_volume.nii.gz").write_bytes(good[: len(good) // 2])
    for _ in range(2):
        with pytest.raises(PartlyDone, match="A_volume"):
            predict_shard(trained_run[0], damaged, output, Shard(0, 2), wanted=Wanted())
    (damaged / "A_volume.nii.gz").write_bytes(good)
    assert predict_shard(trained_run[0], damaged, output, Shard(0, 2), wanted=Wanted()).scans_done == 1
    assert predict_shard(trained_run[0], damaged, output, Shard(0, 2), wanted=Wanted()).scans_done == 0


def edit_header(output, change):
    """Turns shard 0/2 into shard 1/2."""
    header, *lines = (output / "shards" / "predict-0-of-2.jsonl").read_text().splitlines(keepends=True)
    content = json.loads(header)
    change(content)
    (output / "shards" / "predict-1-of-2.jsonl").write_text("".join([json.dumps(content) + "\n", *lines]))


def test_other_sequences_are_another_command(tmp_path):
    for name in ("P_a.nii.gz", "P_b.nii.gz"):
        nib.save(nib.Nifti1Image(np.ones((4, 4, 3), np.int16), np.eye(4)), tmp_path / name)
    found = [find_scans(tmp_path, read_patterns(text)).sources for text in ("flair=*_a,pre=*_b", "flair=*_a,post=*_b")]
    (first,), (second,) = found
    assert digest_of_channels(first, tmp_path) != digest_of_channels(second, tmp_path)
    assert digest_of_channels(first, tmp_path) == digest_of_channels(first, tmp_path)


def test_interrupted_tables_leave_none(shards, monkeypatch):
    """Ctrl-C between the two tables; repeating the merge works."""

    def stop(path, rows):
        if "slice" in rows[0]:
            raise KeyboardInterrupt
        write_table(path, rows)

    monkeypatch.setattr(results, "write_table", stop)
    before = files_of(shards)
    with pytest.raises(KeyboardInterrupt):
        merge_shards(shards, overwrite=False)
    assert files_of(shards) == before
    monkeypatch.undo()
    with pytest.raises(PartlyDone):
        merge_shards(shards, overwrite=False)
    assert (shards / "predictions.csv").exists() and (shards / "areas.csv").exists()


def test_a_shard_looks_at_its_own_files_only(scans, trained_run, whole, tmp_path):
    """The folder has the tables of another prediction and the masks of a case of the other shard."""
    output = shutil.copytree(whole, tmp_path / "out")
    for name in files_of(output):
        if "PA_0001" not in name and not name.endswith(".csv"):
            (output / name).unlink()
    with pytest.raises(
        InputError, match=r"PA_0001_20000101_1_probability.tif and \d+ more of the results already exist"
    ):
        predict_shard(trained_run[0], scans, output, Shard(1, 5))
    assert predict_shard(trained_run[0], scans, output, Shard(0, 2)).scans_done == 3
    assert parts_of(output) == ["predict-0-of-2.jsonl"]


def test_more_shards_than_cases(scans, trained_run, tmp_path):
    output = tmp_path / "out"
    assert predict_shard(trained_run[0], scans / "A_volume.nii.gz", output, Shard(1, 2)).scans == []
    predict_shard(trained_run[0], scans / "A_volume.nii.gz", output, Shard(0, 2))
    merge_shards(output, overwrite=False)
    assert (output / "predictions.csv").read_text().count("A_volume") == 1 and not (output / "shards").exists()


def test_a_shard_of_another_command_is_refused(scans, trained_run, shards):
    words = r"predict-0-of-2.jsonl: already exists, written by a different command .*\(--input: .*; cases: 5 and 1; "
    with pytest.raises(InputError, match=words):
        predict_shard(trained_run[0], scans / "A_volume.nii.gz", shards, Shard(0, 2))
    edit(shards, 1, lambda lines: lines[0]["command"].update(files=["pred", "uncertainty"]))
    words = (
        "predict-1-of-2.jsonl: from a different command or input than predict-0-of-2.jsonl (files: pred, uncertainty"
    )
    assert words in refusal(shards)


def edit(output, index, change):
    """Changes the lines of a shard: its header, three or one cases, its end."""
    path = output / "shards" / f"predict-{index}-of-2.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def refusal(output):
    before = files_of(output)
    with pytest.raises(InputError) as refused:
        merge_shards(output, overwrite=False)
    assert files_of(output) == before
    return str(refused.value).replace(f"{output}/shards/", "").replace(f"{output}/shards", "shards")


def test_all_that_keeps_shards_apart_is_listed(shards):
    path = shards / "shards" / "predict-0-of-2.jsonl"
    content = path.read_text()
    edit(shards, 1, lambda lines: lines.pop())
    path.rename(shards / "kept")
    assert refusal(shards).splitlines()[1:] == [
        "  shards: shard 0/2 is missing; run predict with --shard=0/2",
        "  predict-1-of-2.jsonl: shard 1/2 is not done; wait for it, or run it again if it was stopped",
    ]
    (shards / "kept").rename(path)
    edit(shards, 1, lambda lines: lines.append(json.loads(content.splitlines()[1])))
    assert "  predict-1-of-2.jsonl: damaged (cases of another shard: A_volume); run shard 1/2 with" in refusal(shards)
    (shards / "shards" / "predict-1-of-3.jsonl").write_text(content)
    assert (
        "different numbers of shards: 2 and 3 (predict-0-of-2.jsonl, predict-1-of-2.jsonl, predict-1-of-3"
        in refusal(shards)
    )


@pytest.mark.parametrize(
    "content", ["\n", "{}\n", "[]\n", '{"shard": "0/2"}\n', "\udcff\n", "[" * 99999 + "\n", "moved", "a case less"]
)
def test_a_damaged_shard_is_named(shards, content):
    path = shards / "shards" / "predict-0-of-2.jsonl"
    if content == "moved":
        content = path.with_name("predict-1-of-2.jsonl").read_text()
    elif content == "a case less":
        content = "".join(line for line in path.read_text().splitlines(keepends=True) if '{"case": "A_vol' not in line)
    path.write_text(content, errors="surrogateescape")
    assert refusal(shards).splitlines()[1].startswith("  predict-0-of-2.jsonl: damaged (")


def test_a_merge_replaces_tables_only_on_request(shards):
    (shards / "predictions.csv").write_text("before")
    assert "predictions.csv already exists; give another --output, or --overwrite" in refusal(shards)
    with pytest.raises(PartlyDone):
        merge_shards(shards, overwrite=True)
    assert (shards / "predictions.csv").read_text().startswith("case,slices")
    with pytest.raises(InputError, match="no shard of predict in"):
        merge_shards(shards, overwrite=True)


def test_flags_that_a_merge_does_not_take(tmp_path):
    # A separate process: two commands with a flag `--run` cannot be imported into one.
    given = ["--merge", f"--output={tmp_path}", "--run=r", "--overlays", "--shard=0/2"]
    command = [sys.executable, "-m", "brainseg_jax.predict", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "leave out --run, --overlays, --shard" in done.stderr


def test_shards_with_other_flags_of_unusual_scans_do_not_meet(scans, trained_run, tmp_path):
    """The run gets its `training_scans.json` between the first and the second shard."""
    run = tmp_path / "run"
    shutil.copytree(trained_run[0], run)
    predict_shard(run, scans, tmp_path / "flags", Shard(0, 2), wanted=Wanted())
    shutil.copy(PRETRAINED / "training_scans.json", run)
    with pytest.raises(InputError, match=r"different command .*\(training scans: None and [0-9a-f]{12}\)"):
        predict_shard(run, scans, tmp_path / "flags", Shard(0, 2), wanted=Wanted())
