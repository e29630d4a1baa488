"""Shards of a prediction leave the files and tables of one process; shards that do not belong together are refused."""

import filecmp
import json
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from absl.testing import flagsaver
from conftest import call_predict, once

from brainseg_jax import predict as command
from brainseg_jax.errors import InputError, PartlyDone
from brainseg_jax.prediction import job
from brainseg_jax.prediction.results import Wanted
from brainseg_jax.prediction.shards import merge_shards
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
    """Three patients as slices, a volume, and a file that is none, between them by name."""

    def make(folder):
        for source in sorted(path for path in phantom_folder.iterdir() if path.is_dir())[:3]:
            shutil.copytree(source, folder / "in" / source.name)
        values = np.random.default_rng(0).integers(0, 900, (20, 24, 5)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / "in" / "A_volume.nii.gz")
        (folder / "in" / "TCGA_PA_0002_bad.nii").write_text("no volume")

    return once(tmp_path_factory, "shards", make) / "in"


@pytest.fixture(scope="module")
def whole(scans, trained_run, tmp_path_factory):
    """All of them, by one process."""

    def make(folder):
        with pytest.raises(PartlyDone, match="1 of 5 scans"):
            call_predict(trained_run[0], scans, folder / "out", wanted=WANTED)

    return once(tmp_path_factory, "shares_whole", make) / "out"


@pytest.fixture
def shards(scans, trained_run, tmp_path_factory, tmp_path):
    """Both shards of two, by this process; a copy that a test may change."""

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
    assert merged.returncode == 5 and "1 of 5 scans could not be predicted, the others are done:\n" in merged.stderr
    assert "Traceback" not in merged.stderr and "2 shards, 4 scans: " in merged.stdout
    assert files_of(output) == files_of(whole) and len(files_of(output)) == 2 + 3 + 3 * (2 * 16 + 1)
    assert not [name for name in files_of(whole) if not filecmp.cmp(whole / name, output / name, shallow=False)]


def test_a_done_shard_is_not_done_again(scans, trained_run, shards, capsys):
    written = (shards / "A_volume_pred.nii.gz").stat().st_mtime_ns
    assert predict_shard(trained_run[0], scans, shards, Shard(0, 2)).scans == []
    assert f"shard 0/2 is done: {shards}/shards/predict-0-of-2.json; --overwrite" in capsys.readouterr().out
    assert (shards / "A_volume_pred.nii.gz").stat().st_mtime_ns == written
    assert predict_shard(trained_run[0], scans, shards, Shard(0, 2), overwrite=True).scans_done == 3
    assert (shards / "A_volume_pred.nii.gz").stat().st_mtime_ns > written


def test_a_stopped_shard_refuses_the_merge_and_replaces_its_own_results(scans, trained_run, shards, whole, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "predict_scans", stop)
    with pytest.raises(KeyboardInterrupt, match="shard 0/2 is not done: the same command does it again"):
        predict_shard(trained_run[0], scans, shards, Shard(0, 2), overwrite=True)
    with pytest.raises(InputError, match=r"shard 0/2 is not done: wait for it or, if it was stopped, run it again$"):
        merge_shards(shards, overwrite=False)
    monkeypatch.undo()
    predict_shard(trained_run[0], scans, shards, Shard(0, 2))
    with pytest.raises(PartlyDone):
        merge_shards(shards, overwrite=False)
    assert filecmp.cmp(whole / "areas.csv", shards / "areas.csv", shallow=False)


def test_a_shard_looks_at_its_own_files_only(scans, trained_run, whole, tmp_path):
    """The tables of another prediction are there, and the masks of a case of the other shard."""
    output = shutil.copytree(whole, tmp_path / "out")
    for name in files_of(output):
        if "PA_0001" not in name and not name.endswith(".csv"):
            (output / name).unlink()
    with pytest.raises(
        InputError, match=r"PA_0001_20000101_1_probability.tif and \d+ more of the results:  already exists"
    ):
        predict_shard(trained_run[0], scans, output, Shard(1, 5))
    assert predict_shard(trained_run[0], scans, output, Shard(0, 2)).scans_done == 3
    assert parts_of(output) == ["predict-0-of-2.json"]


def test_more_shards_than_cases(scans, trained_run, tmp_path):
    output = tmp_path / "out"
    assert predict_shard(trained_run[0], scans / "A_volume.nii.gz", output, Shard(1, 2)).scans == []
    predict_shard(trained_run[0], scans / "A_volume.nii.gz", output, Shard(0, 2))
    merge_shards(output, overwrite=False)
    assert (output / "predictions.csv").read_text().count("A_volume") == 1 and not (output / "shards").exists()


def test_a_shard_of_another_command_is_refused(scans, trained_run, shards):
    with pytest.raises(InputError, match=r"predict-0-of-2.json: a shard of another command \(--input: .*; cases: 5 ag"):
        predict_shard(trained_run[0], scans / "A_volume.nii.gz", shards, Shard(0, 2))
    edit(shards, 1, lambda part: part["command"].update(files=["pred", "uncertainty"]))
    told = "predict-1-of-2.json: a shard of another command than predict-0-of-2.json (files: pred, uncertainty against "
    assert told in refusal(shards)


def edit(output, index, change):
    path = output / "shards" / f"predict-{index}-of-2.json"
    part = json.loads(path.read_text())
    change(part)
    path.write_text(json.dumps(part))


def refusal(output):
    before = files_of(output)
    with pytest.raises(InputError) as refused:
        merge_shards(output, overwrite=False)
    assert files_of(output) == before
    return str(refused.value).replace(f"{output}/shards/", "")


def test_all_that_keeps_shards_apart_is_listed(shards):
    path = shards / "shards" / "predict-0-of-2.json"
    edit(shards, 1, lambda part: part.update(done=False))
    path.rename(shards / "kept")
    assert refusal(shards).splitlines()[1:] == [
        "predict-0-of-2.json: missing; run predict with --shard=0/2",
        "predict-1-of-2.json: shard 1/2 is not done: wait for it or, if it was stopped, run it again",
    ]
    (shards / "kept").rename(path)
    edit(shards, 1, lambda part: part.update(done=True))
    first = json.loads(path.read_text())["scans"]
    edit(shards, 1, lambda part: part["scans"].extend(first[:1]))
    assert refusal(shards).splitlines()[1:] == ["A_volume: in 2 shards"]
    other = json.loads(path.read_text()) | {"shard": "1/3"}
    (shards / "shards" / "predict-1-of-3.json").write_text(json.dumps(other))
    assert "predict-1-of-3.json: one of 3 shards, and predict-0-of-2.json is one of 2" in refusal(shards)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"shard": "1/2"}', "\udcff", "[" * 99999, "moved"])
def test_a_damaged_shard_is_named(shards, content):
    path = shards / "shards" / "predict-0-of-2.json"
    if content == "moved":
        content = path.with_name("predict-1-of-2.json").read_text()
    path.write_text(content, errors="surrogateescape")
    assert refusal(shards).startswith("predict-0-of-2.json: not the file of a shard (")


def test_a_merge_replaces_tables_only_when_told(shards):
    (shards / "predictions.csv").write_text("before")
    assert "predictions.csv:  already exists; give another --output, or --overwrite" in refusal(shards)
    with pytest.raises(PartlyDone):
        merge_shards(shards, overwrite=True)
    assert (shards / "predictions.csv").read_text().startswith("case,slices")
    with pytest.raises(InputError, match="no shard of a prediction in it"):
        merge_shards(shards, overwrite=True)


def test_flags_that_a_merge_does_not_take(tmp_path):
    command.flags.FLAGS(["predict"], known_only=True)
    with flagsaver.flagsaver(), pytest.raises(InputError) as refused:
        command.flags.FLAGS(["predict", "--merge", f"--output={tmp_path}", "--run=r", "--overlays", "--shard=0/2"])
        command.main([])
    assert "leave out --run, --overlays, --shard" in str(refused.value)
