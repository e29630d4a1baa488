"""What a stored network refuses: folders that it must not overwrite, and damaged or unrelated files."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from brainseg_jax.errors import InputError, StorageError
from brainseg_jax.inference.training_scans import FILE as TRAINING_SCANS
from brainseg_jax.runs.stored import pack
from brainseg_jax.runs.trained import load_trained
from brainseg_jax.sharing.store import store

pytestmark = pytest.mark.usefixtures("optax_promotion")
KERNEL = "params/head/kernel"


@pytest.fixture(autouse=True)
def loose_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def whole(trained_run, tmp_path_factory) -> Path:
    """A stored network; tests must not change it."""
    folder = tmp_path_factory.mktemp("stored") / "whole"
    with jax.numpy_rank_promotion("allow"):
        store(trained_run[0], folder, dtype="float32", overwrite=False)
    return folder


@pytest.fixture
def stored(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "stored"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sign(folder: Path) -> None:
    """Checksums of the two files in their current state."""
    names = ("network.safetensors", "config.json")
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def rewrite(folder: Path, change=lambda arrays: arrays, metadata='{"format": "1", "step": 1}') -> None:
    path = folder / "network.safetensors"
    save_file(change(load_file(path)), path, metadata=None if metadata is None else {"brainseg_jax": metadata})
    sign(folder)


# Writing


@pytest.mark.parametrize("made", ["run", "running", "masks", "readme", "only a config", "folder of that name"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_stored_network_is_never_overwritten(trained_run, whole, tmp_path, made, linked):
    target = tmp_path / "target"
    if made == "run":
        shutil.copytree(trained_run[0], target)
    elif made == "folder of that name":
        shutil.copytree(whole, target)
        (target / "README.md").unlink()
        (target / "README.md").mkdir()
        (target / "README.md" / "kept").write_text("mine")
    else:
        target.mkdir()
        names = {"running": ["config.json", "split.json", "run.lock"], "masks": ["a_pred.tif"], "readme": ["README.md"]}
        for name in names.get(made, ["config.json"]):
            (target / name).write_text("mine")
    output = target
    if linked:
        output = tmp_path / "link"
        output.symlink_to(target)
    before = content(target)
    with pytest.raises(InputError, match=rf"--output={output} is not a stored network: it contains .*give a new"):
        store(trained_run[0], output, dtype="float16", overwrite=True)
    assert content(target) == before


def test_a_link_to_the_run_itself_or_to_nothing_is_refused(trained_run, whole, tmp_path):
    (tmp_path / "link").symlink_to(whole)
    with pytest.raises(InputError, match="is the run itself"):
        store(whole, tmp_path / "link", dtype="float16", overwrite=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"dangling is a link to .*nothing, which does not exist; remove the link"):
        store(trained_run[0], tmp_path / "dangling", dtype="float16", overwrite=False)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file is a file; a stored network is a folder"):
        store(trained_run[0], tmp_path / "file", dtype="float16", overwrite=True)


def test_a_link_to_a_stored_network_is_followed_and_linked_files_are_not(trained_run, stored, tmp_path):
    """As in a hub cache: the files are links to blobs, which other versions share."""
    blob = tmp_path / "blob"
    (stored / "network.safetensors").rename(blob)
    (stored / "network.safetensors").symlink_to(blob)
    (stored / ".gitattributes").write_text("mine")
    (tmp_path / "link").symlink_to(stored)
    before = blob.read_bytes()
    store(trained_run[0], tmp_path / "link", dtype="float16", overwrite=True)
    assert (tmp_path / "link").is_symlink() and not (stored / "network.safetensors").is_symlink()
    assert blob.read_bytes() == before and (stored / ".gitattributes").read_text() == "mine"
    assert load_trained(stored).step == load_trained(trained_run[0]).step
    assert (stored / "README.md").read_text().startswith("# link\n")


@pytest.mark.parametrize("fails", ["write", "rename", "remove"])
def test_a_write_that_fails_leaves_the_old_network_whole(trained_run, stored, monkeypatch, fails):
    """The old network has an `expected_dice.json`, the new one has none."""
    (stored / "expected_dice.json").write_text("of the old network")
    before, done = content(stored), []
    name = {"write": "write_bytes", "rename": "replace", "remove": "unlink"}[fails]
    original = getattr(Path, name)

    def count(self, *args, **kwargs):
        if fails == "remove" and self.name != "expected_dice.json":
            return original(self, *args, **kwargs)
        done.append(self)
        if len(done) == (1 if fails == "remove" else 3):
            raise OSError(28, "No space left on device")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, name, count)
    with pytest.raises(InputError, match=r"stored cannot be written to \(No space left on device; make room"):
        store(trained_run[0], stored, dtype="float16", overwrite=True)
    monkeypatch.undo()
    assert content(stored) == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_that_are_not_finite_are_not_stored(dtype, value):
    variables = {"params": {"head": {"kernel": np.array([[1.0, value]], np.float32)}}}
    with pytest.raises(InputError, match=rf"NaN or infinite values in {KERNEL}; export another run"):
        pack(variables, 0, dtype)


@pytest.mark.parametrize("results", [None, "{}", '{"postprocess": {"threshold": "high"}}', '{"postprocess": 3}', "["])
def test_a_run_that_has_not_ended(trained_run, tmp_path, results):
    """Without results the card reports it; `expected_dice.json` of fewer epochs is not stored."""
    run, output = tmp_path / "run", tmp_path / "out"
    shutil.copytree(trained_run[0], run)
    (run / "expected_dice.json").write_text("of fewer epochs")
    (run / "results.json").unlink()
    if results is not None:
        (run / "results.json").write_text(results)
        with pytest.raises(InputError, match=r"results\.json.*restore a complete copy of the"):
            store(run, output, dtype="float16", overwrite=False)
        assert not output.exists()
        return
    store(run, output, dtype="float16", overwrite=False)
    assert sorted(path.name for path in output.iterdir()) == [
        *("README.md", "SHA256SUMS", "config.json", "network.safetensors", "split.json")
    ]
    assert "None: the run has not ended." in (output / "README.md").read_text()


def test_a_stored_network_without_results_has_ended_for_all_that_is_known(stored, tmp_path, caplog):
    (stored / "results.json").unlink()
    store(stored, tmp_path / "again", dtype="float16", overwrite=False)
    card = (tmp_path / "again" / "README.md").read_text()
    assert "None: the original stored network has no results.json." in card
    assert "not ended" not in card + caplog.text
    assert "stored has no results.json, so the chosen post-processing is unknown" in caplog.text


def test_results_without_scores_are_named(stored, tmp_path):
    results = json.loads((stored / "results.json").read_text())
    (stored / "results.json").write_text(json.dumps({"postprocess": results["postprocess"]}))
    with pytest.raises(InputError, match=r"results\.json: no scores of test patients in it \(KeyError: 'test'\)"):
        store(stored, tmp_path / "again", dtype="float16", overwrite=False)
    assert not (tmp_path / "again").exists()


# Reading


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "its metadata have no 'brainseg_jax', so another program wrote it"),
        ("no json", "brainseg_jax='no json' are not an object with format and step"),
        ("[]", "are not an object with format and step"),
        ("null", "are not an object with format and step"),
        ("[" * 100_000, "are not an object with format and step"),
        ('{"format": "1"}', "are not an object with format and step"),
        ('{"format": 1, "step": 1}', "format 1; this version of brainseg_jax reads format '1'"),
        ('{"format": "1", "step": -1}', "step -1 in its metadata is not a non-negative integer"),
        ('{"format": "1", "step": 1.5}', "step 1.5 in its metadata"),
        ('{"format": "1", "step": Infinity}', "step inf in its metadata"),
        ('{"format": "1", "step": true}', "step True in its metadata"),
    ],
)
def test_metadata_of_something_else(stored, metadata, words):
    rewrite(stored, metadata=metadata)
    with pytest.raises(InputError) as raised:
        load_trained(stored)
    assert words in str(raised.value) and str(raised.value).startswith(f"{stored}/network.safetensors cannot be used: ")
    assert str(raised.value).endswith("restore a complete copy of the folder, or export the network again")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays: arrays.pop(KERNEL), r"\['kernel'\]: none in the file, \(1, 1, 2, 1\) expected"),
        (
            lambda arrays: arrays.update({"params/more": np.ones(3, np.float32)}),
            r"\['more'\]: \(3,\) in the file, none",
        ),
        (lambda arrays: arrays.update({"other": np.ones(3, np.float32)}), r"\['other'\]: \(3,\) in the file, none"),
        (
            lambda arrays: arrays.update({KERNEL: arrays[KERNEL].T}),
            r"\(1, 2, 1, 1\) in the file, \(1, 1, 2, 1\) expected",
        ),
        (
            lambda arrays: arrays.update({KERNEL: arrays[KERNEL].astype(np.float64)}),
            r"but these are not: params/head/kernel \(F64\)",
        ),
        (
            lambda arrays: arrays.update({KERNEL: arrays[KERNEL].astype(np.int8)}),
            r"but these are not: params/head/kernel \(I8\)",
        ),
        (lambda arrays: arrays.update({KERNEL: arrays[KERNEL] * np.nan}), f"NaN or infinite values in {KERNEL}"),
        (
            lambda arrays: arrays.update({KERNEL: np.full_like(arrays[KERNEL], np.inf)}),
            f"NaN or infinite values in {KERNEL}",
        ),
        (
            lambda arrays: arrays.update({f"{KERNEL}/a": arrays[KERNEL]}),
            "has the name of a group of arrays, or is inside",
        ),
        (
            lambda arrays: arrays.update({"params/head": arrays[KERNEL]}),
            "has the name of a group of arrays, or is inside",
        ),
        (lambda arrays: arrays.clear(), "none in the file"),
    ],
)
def test_arrays_of_something_else(stored, change, words):
    def changed(arrays):
        change(arrays)
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    rewrite(stored, changed)
    with pytest.raises(InputError, match=rf"(?s){stored}/network.safetensors .*{words}") as raised:
        load_trained(stored)
    assert "restore a complete copy of the folder" in str(raised.value)


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_file_that_was_cut_and_signed_again(stored, cut):
    path = stored / "network.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    sign(stored)
    with pytest.raises(InputError, match=r"network\.safetensors cannot be used: .*restore a complete copy"):
        load_trained(stored)


@pytest.mark.parametrize("name", ["config.json", "results.json", "expected_dice.json", "training_scans.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, b"\xff\xfe"], ids=range(6))
def test_damaged_json_is_named(stored, name, text):
    (stored / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    sign(stored)
    with pytest.raises(InputError, match=rf"{stored}/{name} .*restore a complete copy"):
        load_trained(stored)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": None}, "from another version of this code"),
        ({"dataset": {"fingerprint": 5}}, r"dataset\.fingerprint=5 is not a string"),
        ({"model": {"name": "resnet"}}, r"model\.name='resnet': give one of"),
        ({"model": "unet"}, "from another version of this code"),
        ({"eval": {"threshold": 7.0}}, r"eval\.threshold=7\.0: give 0"),
    ],
)
def test_a_config_with_values_that_cannot_be_used_is_named(stored, changes, words):
    config = json.loads((stored / "config.json").read_text())
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) and key != "dataset" else value
    (stored / "config.json").write_text(json.dumps(config))
    sign(stored)
    with pytest.raises(InputError, match=rf"(?s){stored}/config\.json.*{words}"):
        load_trained(stored)


def test_what_the_training_scans_of_another_channel_look_like_is_refused(stored, tmp_path):
    from brainseg_jax.files import PRETRAINED

    other = json.loads((PRETRAINED / TRAINING_SCANS).read_text()) | {"channel": "T1w"}
    (stored / TRAINING_SCANS).write_text(json.dumps(other))
    with pytest.raises(
        InputError, match=r"training_scans\.json describes the channel T1w, but the network shows FLAIR"
    ):
        load_trained(stored)


@pytest.mark.parametrize("name", ["config.json", "network.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("how", ["missing", "folder"])
def test_a_missing_file_is_named(stored, name, how):
    (stored / name).unlink()
    if how == "folder":
        (stored / name).mkdir()
    with pytest.raises(InputError, match=rf"{stored}/{name} .*restore a complete copy of the folder"):
        load_trained(stored)


def test_a_folder_with_neither_network_nor_checksums_is_distinguished_from_a_run(stored):
    for name in ("network.safetensors", "SHA256SUMS"):
        (stored / name).unlink()
    with pytest.raises(InputError, match=r"has no checkpoint yet, and no network\.safetensors"):
        load_trained(stored)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "".join(f"{line[:64].upper()}{line[64:]}\n" for line in text.splitlines()),
        lambda text: text.replace("  ", " *"),  # of `sha256sum --binary`
        lambda text: f"\ufeff{text}\n\n",
    ],
    ids=["CRLF", "upper case", "binary", "byte order mark and empty lines"],
)
def test_checksums_as_other_programs_write_them(stored, change):
    path = stored / "SHA256SUMS"
    path.write_bytes(change(path.read_text()).encode())
    assert load_trained(stored).step > 0
    network = stored / "network.safetensors"
    network.write_bytes(network.read_bytes()[:-1] + b"\x00\x00")
    with pytest.raises(StorageError, match=r"network\.safetensors is damaged"):
        load_trained(stored)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "0" * 64 + "  weights.bin",
            r"weights\.bin cannot be read \(No such file or directory\), and SHA256SUMS lists it",
        ),
        ("0" * 63 + "  config.json", "the line '0*  config.json' is not a SHA-256 digest and a file name"),
        ("0" * 64 + "  ../config.json", "is not a SHA-256 digest and a file name"),
        ("0" * 64, "is not a SHA-256 digest and a file name"),
        ("0" * 64 + "  config.json", "it lists config.json twice, with different digests"),
    ],
)
def test_checksums_of_something_else(stored, line, words):
    with (stored / "SHA256SUMS").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError, match=rf"{words}.*restore a complete copy of the folder, or export"):
        load_trained(stored)


def test_checksums_that_leave_a_file_out(stored):
    (stored / "SHA256SUMS").write_text((stored / "SHA256SUMS").read_text().splitlines()[0])
    with pytest.raises(InputError, match=r"SHA256SUMS cannot be read \(it does not list config\.json\)"):
        load_trained(stored)


def test_other_files_are_compared_if_they_are_listed(stored):
    card = hashlib.sha256((stored / "README.md").read_bytes()).hexdigest()
    with (stored / "SHA256SUMS").open("a") as file:
        file.write(f"{card}  README.md\n")
    load_trained(stored)
    (stored / "README.md").write_text("changed")
    with pytest.raises(StorageError, match=r"README\.md is damaged"):
        load_trained(stored)
    assert os.listdir(stored)
