"""The prepared dataset: its content, its name, and the files after an interruption."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from brainseg_jax.data import download, lgg, prepared
from brainseg_jax.errors import InputError

CASES = {"TCGA_DU_0001_19990101": 11, "TCGA_HT_0002_20000202": 2}  # slices of each


def write_tree(tree: Path, *, cases: dict[str, int] = CASES, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for case, slices in cases.items():
        (tree / case).mkdir(parents=True)
        for number in range(1, slices + 1):
            image = rng.integers(0, 256, (256, 256, 3), np.uint8)
            mask = np.uint8(255) * (rng.random((256, 256)) < 0.01 * (number % 2))  # even slices are empty
            Image.fromarray(image).save(tree / case / f"{case}_{number}.tif")
            Image.fromarray(mask).save(tree / case / f"{case}_{number}_mask.tif")
    columns = "Patient,gender,age_at_initial_pathologic,histological_type,neoplasm_histologic_grade"
    (tree / "data.csv").write_text(f"{columns}\nTCGA_DU_0001,1,45,2,\n")
    return tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return write_tree(tmp_path_factory.mktemp("given") / "kaggle_3m")


def prepare(source: Path | str, data_dir: Path) -> Path:
    return lgg.prepare(str(source), data_dir, progress=False)


def leftovers(data_dir: Path) -> list[Path]:
    """All files that could be mistaken for a set or a part of one."""
    return [path for path in data_dir.glob("lgg_mri/*/*") if path.exists()]


@pytest.fixture(scope="module")
def folder(tree, tmp_path_factory) -> Path:
    return prepare(tree, tmp_path_factory.mktemp("data"))


def test_records_are_the_files(tree, folder):
    assert folder.parts[-3:-1] == ("lgg_mri", folder.parent.name)
    records = list(tfds.builder_from_directory(folder).as_data_source(split="slices"))
    expected = [(case, number) for case, slices in CASES.items() for number in range(1, slices + 1)]
    assert [(record["patient"].decode(), record["slice"]) for record in records] == expected
    for record, (case, number) in zip(records, expected, strict=True):
        image = np.asarray(Image.open(tree / case / f"{case}_{number}.tif"))
        mask = np.asarray(Image.open(tree / case / f"{case}_{number}_mask.tif"))
        assert record["image"].dtype == record["mask"].dtype == np.uint8
        np.testing.assert_array_equal(record["image"], image)
        np.testing.assert_array_equal(record["mask"], (mask == 255)[..., np.newaxis])
    keys = ("institution", "grade", "histological_type", "age", "gender")
    assert tuple(records[0][key] for key in keys) == (b"DU", -1, 2, 45, 1)
    assert tuple(records[-1][key] for key in keys) == (b"HT", -1, -1, -1, -1)


def test_metadata_and_citation_travel_with_the_set(tree, folder):
    summary = prepared.read_summary(folder)
    assert (summary.patients, summary.slices, summary.target_slices) == (2, 13, 7)
    assert summary.groups == {"DU": 1, "HT": 1}
    assert summary.source == str(tree)
    masks = [np.asarray(Image.open(file)) for file in tree.rglob("*_mask.tif")]
    assert summary.target_fraction == pytest.approx(np.mean([mask == 255 for mask in masks]))
    assert folder.parent.name == f"2_patients_{summary.fingerprint[:8]}"
    info = tfds.builder_from_directory(folder).info
    assert "10.1016/j.compbiomed.2019.05.002" in info.citation
    assert "CC BY-NC-SA 4.0" in str(info.redistribution_info)
    assert info.features["image"].np_dtype == np.uint8
    assert info.features["slice"].np_dtype == np.int32


def test_a_stranger_reads_it_by_name_and_no_tensorflow_is_imported(folder):
    program = (
        "import sys, brainseg_jax.data.lgg, tensorflow_datasets as tfds\n"
        "data = tfds.data_source(sys.argv[1], data_dir=sys.argv[2], split='slices')\n"
        "print(len(data), data[12]['image'].shape, 'tensorflow' in sys.modules)"
    )
    arguments = [f"lgg_mri/{folder.parent.name}", str(folder.parents[2])]
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[0] == "13 (256, 256, 3) False"


def test_patients_never_straddle_shards(tmp_path):
    cases = {f"TCGA_DU_{number:04d}_19990101": 2 for number in range(lgg.PATIENTS_A_SHARD + 1)}
    folder = prepare(write_tree(tmp_path / "kaggle_3m", cases=cases), tmp_path)
    split = tfds.builder_from_directory(folder).info.splits["slices"]
    assert split.shard_lengths == [2 * lgg.PATIENTS_A_SHARD, 2]


def test_the_same_content_is_written_once_and_other_content_beside_it(tree, tmp_path, monkeypatch):
    first = prepare(tree, tmp_path)
    other = prepare(write_tree(tmp_path / "other", seed=1), tmp_path)
    assert other != first
    assert prepared.is_prepared(first)
    monkeypatch.setattr(lgg, "_write", lambda *_: pytest.fail("written again"))
    assert prepare(tree.parent, tmp_path) == first


def test_the_default_data_folder_is_that_of_tfds(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert lgg.prepare(str(tree), None, progress=False).is_relative_to(tmp_path)


def test_kaggle_is_the_one_real_set(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(lgg, "download", lambda: pytest.fail("downloaded"))
    made_up = write_tree(tmp_path / "made_up", cases={"TCGA_PA_0001_20000101": 1})
    prepare(made_up, tmp_path)  # not real: no hospital of the Kaggle set
    first = prepare(tree, tmp_path)
    assert prepare("kaggle", tmp_path) == first
    other = write_tree(tmp_path / "other", seed=1)
    prepare(other, tmp_path)
    with pytest.raises(InputError) as caught:
        prepare("kaggle", tmp_path)
    for words in ("2 real sets", str(tree), str(other), "--source=PATH", "--config.data.source=PATH"):
        assert words in str(caught.value)


def test_kaggle_downloads_where_nothing_is_prepared(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(lgg, "download", lambda: tree.parent)
    assert prepared.read_summary(prepare("kaggle", tmp_path)).source == download.HANDLE


def test_the_whole_published_set_is_the_one_meant(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "PUBLISHED_PATIENTS", 2)
    monkeypatch.setattr(prepared, "PUBLISHED_SLICES", 13)
    monkeypatch.setattr(prepared, "PUBLISHED_TUMOR_SLICES", 7)
    whole = prepare(tree, tmp_path)
    subset = prepare(write_tree(tmp_path / "other", cases={"TCGA_DU_0009_19990101": 3}), tmp_path)
    assert prepare("kaggle", tmp_path) == whole
    (subset / "dataset_info.json").write_text("{")
    assert prepare("kaggle", tmp_path) == whole  # what cannot be read is left out, not in the way


def test_synthetic_patients_are_not_cited_as_scans(tmp_path):
    info = tfds.builder_from_directory(prepare("phantom:1:0", tmp_path)).info
    assert "Synthetic" in info.description and "TCGA-LGG" not in info.description
    assert "buda" not in info.citation.lower() and "CC BY" not in str(info.redistribution_info)


def test_phantom_is_drawn_once(tmp_path, monkeypatch):
    drawn = []

    def draw(folder, *, patients, seed):
        drawn.append((patients, seed))
        cases = {f"TCGA_PA_{index:04d}_20000101": 1 for index in range(patients)}
        return write_tree(folder / "kaggle_3m", cases=cases, seed=seed)

    monkeypatch.setattr(lgg, "write_phantom", draw)
    folders = [prepare(source, tmp_path) for source in ("phantom:2:3", "phantom:2:3", "phantom")]
    assert drawn == [(2, 3), (20, 0)]
    assert [folder.parent.name for folder in folders] == ["phantom_2_3", "phantom_2_3", "phantom_20_0"]


@pytest.mark.parametrize("source", ["kagle", "phantom:3", "phantom:0:1", "phantom:a:b", ""])
def test_an_unknown_source_is_refused_with_what_is_allowed(source, tmp_path):
    with pytest.raises(InputError) as caught:
        prepare(source, tmp_path)
    for words in (repr(source), "kaggle_3m/", "zip", "kaggle (", "phantom:PATIENTS:SEED"):
        assert words in str(caught.value)


def test_bad_data_writes_nothing(tmp_path):
    tree = write_tree(tmp_path / "kaggle_3m")
    next(tree.rglob("*_mask.tif")).write_bytes(b"")
    with pytest.raises(InputError, match="an empty file"):
        prepare(tree, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_killed_run_leaves_nothing_that_looks_finished(tree, tmp_path):
    program = (
        "import sys, time\n"
        "from brainseg_jax.data import lgg\n"
        "read, done = lgg.read_slice, []\n"
        "def slow(item):\n"
        "    done.append(item)\n"
        "    if len(done) == 8: print('half way', file=sys.stderr, flush=True); time.sleep(60)\n"
        "    return read(item)\n"
        "lgg.read_slice = slow\n"
        "lgg.prepare(sys.argv[1], sys.argv[2], progress=False)"
    )
    command = [sys.executable, "-c", program, str(tree), str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "half way\n"
        process.send_signal(signal.SIGKILL)
    unfinished = leftovers(tmp_path)
    assert [path.name.split(".")[0] for path in unfinished] == ["incomplete"]
    assert not prepared.list_prepared(tmp_path)
    assert prepared.read_summary(prepare(tree, tmp_path)).slices == 13
    assert unfinished[0].exists(), "a young folder can be that of a process at work"
    os.utime(unfinished[0], times=(time.time() - prepared.STALE - 60,) * 2)
    prepare(tree, tmp_path)
    assert not unfinished[0].exists()


@pytest.mark.parametrize(
    ("failure", "raised", "words"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(28, "No space left on device"), InputError, "No space left on device"),
        (
            RuntimeError("write() failed: No space left on device; at byte 1"),
            InputError,
            "make room, or give another data_dir",
        ),
    ],
)
def test_an_interrupted_run_leaves_nothing(failure, raised, words, tree, tmp_path, monkeypatch):
    def fail(item):
        raise failure

    monkeypatch.setattr(lgg, "read_slice", fail)
    with pytest.raises(raised, match=words):
        prepare(tree, tmp_path)
    assert not leftovers(tmp_path)


def test_a_full_disk_is_reported(tree, tmp_path):
    program = (
        "import resource, sys\n"
        "from brainseg_jax.data import lgg\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "lgg.prepare(sys.argv[1], sys.argv[2], progress=False)"
    )
    command = [sys.executable, "-c", program, str(tree), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert f"InputError: {tmp_path}: cannot be written to" in result.stderr
    assert not leftovers(tmp_path)


def test_the_slower_of_two_processes_uses_the_set_of_the_faster(tree, folder, tmp_path, monkeypatch):
    read, target = lgg.read_slice, tmp_path / folder.relative_to(folder.parents[2])

    def overtaken(item):
        if not target.exists():
            shutil.copytree(folder, target)
        return read(item)

    monkeypatch.setattr(lgg, "read_slice", overtaken)
    assert prepare(tree, tmp_path) == target
    assert leftovers(tmp_path) == [target]


def test_two_processes_at_once(tree, tmp_path):
    program = (
        "import sys\nfrom brainseg_jax.data import lgg\nprint(lgg.prepare(sys.argv[1], sys.argv[2], progress=False))"
    )
    command = [sys.executable, "-c", program, str(tree), str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert printed == {str(path) for path in leftovers(tmp_path)}
    assert len(list(tfds.builder_from_directory(printed.pop()).as_data_source(split="slices"))) == 13


def test_a_folder_that_was_damaged_later_is_named(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "metadata.json").write_text("{")
    with pytest.raises(InputError, match=r"copy: damaged .* prepare again"):
        prepared.read_summary(copy)


def test_the_cache_of_kagglehub_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    monkeypatch.setattr(download, "_why_unreachable", lambda *_: pytest.fail("asked the network"))
    folder = tmp_path / "datasets" / "mateuszbuda" / "lgg-mri-segmentation" / "versions" / "2"
    folder.mkdir(parents=True)
    marker = folder.parents[1] / "2.complete"
    marker.touch()
    assert download.download() == folder


def hang(*_: object, **__: object) -> None:
    time.sleep(5)
    raise OSError("no such name")


def test_a_hanging_connection_ends_soon_with_a_message(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", hang)
    monkeypatch.setattr(download, "PATIENCE", 0.3)
    begin = time.monotonic()
    with pytest.raises(InputError) as caught:
        download.download()
    assert time.monotonic() - begin < 4
    for words in ("no response", download.PAGE, "--source=", "--config=configs/attn_dice.py:quick"):
        assert words in str(caught.value)
    assert download.PATIENCE < 20
