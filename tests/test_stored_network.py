"""A stored network: written by export, read without Orbax, refused if damaged; the one in the package."""

import csv
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_models import random_variables

from brainseg_jax.data.phantom import write_phantom
from brainseg_jax.errors import InputError, StorageError
from brainseg_jax.files import PRETRAINED, network_path
from brainseg_jax.models import build_model
from brainseg_jax.runs.stored import pack, sums_of, unpack
from brainseg_jax.runs.trained import load_trained
from brainseg_jax.sharing.store import store

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(autouse=True)
def loose_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def stored(trained_run, tmp_path) -> Path:
    store(trained_run[0], tmp_path / "stored", dtype="float32", overwrite=False)
    return tmp_path / "stored"


def run_module(*arguments, check=True):
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, check=check)


def test_float32_is_the_run_to_the_bit(trained_run, stored):
    run, copy = load_trained(trained_run[0]), load_trained(stored)
    jax.tree.map(np.testing.assert_array_equal, run.network.variables, copy.network.variables)
    assert (copy.step, copy.posts, copy.fingerprint) == (run.step, run.posts, run.fingerprint)
    assert copy.results == run.results and (stored / "split.json").exists()
    again = pack(run.network.variables, run.step, "float32")
    assert (stored / "network.safetensors").read_bytes() == again  # the same bytes each time
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=stored, check=True, capture_output=True)


def test_float16_rounds_the_kernels_alone():
    variables = random_variables(build_model("unet", features=2, depth=2, norm="conv"), 0, jnp.zeros((1, 8, 8, 3)))
    rounded = unpack(pack(variables, 7, "float16"))
    for (path, array), other in zip(
        jax.tree_util.tree_leaves_with_path(variables), jax.tree.leaves(rounded), strict=True
    ):
        wanted = np.asarray(array, np.float16 if array.ndim > 1 else np.float32).astype(np.float32)
        np.testing.assert_array_equal(other, wanted, err_msg=str(path))


def test_what_float16_cannot_hold_is_refused():
    with pytest.raises(InputError, match=r"params/head/kernel has values above 65504"):
        pack({"params": {"head": {"kernel": np.full((1, 1), 1e5, np.float32)}}}, 0, "float16")


@pytest.mark.parametrize("ended", [True, False])
def test_no_folder_of_this_machine_is_given_away(trained_run, tmp_path, ended):
    run, stored = tmp_path / "run", tmp_path / "stored"
    shutil.copytree(trained_run[0], run)
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"source": str(tmp_path / "scans"), "dir": str(tmp_path)}
    (run / "config.json").write_text(json.dumps(config))
    if not ended:
        (run / "results.json").unlink()
    store(run, stored, dtype="float32", overwrite=False)
    text = "".join(path.read_text() for path in stored.iterdir() if path.suffix in (".json", ".md"))
    assert str(tmp_path) not in text and "/tmp" not in text
    assert json.loads((stored / "config.json").read_text())["data"]["dir"] == ""


def test_results_are_not_overwritten_unasked(trained_run, stored):
    with pytest.raises(InputError, match="exists; give another --output, or --overwrite"):
        store(trained_run[0], stored, dtype="float16", overwrite=False)
    (stored / "expected_dice.json").write_text("of another network")
    assert store(trained_run[0], stored, dtype="float16", overwrite=True).size < 60_000
    assert not (stored / "expected_dice.json").exists()
    with pytest.raises(InputError, match="is the run itself"):
        store(trained_run[0], trained_run[0], dtype="float16", overwrite=True)


def rewrite(folder: Path, **metadata: str) -> None:
    """Writes the same arrays with other metadata and the right checksum."""
    path = folder / "network.safetensors"
    save_file(load_file(path), path, metadata=metadata)
    contents = {name: (folder / name).read_bytes() for name in ("network.safetensors", "config.json")}
    (folder / "SHA256SUMS").write_text(sums_of(contents))


def test_damage_is_found(stored):
    path = stored / "network.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"network\.safetensors is damaged: its SHA-256 is [0-9a-f]{12}"):
        load_trained(stored)


def test_a_folder_without_checksums_or_of_another_format_is_refused(stored, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(stored, other)
    rewrite(other, brainseg_jax='{"format": "2", "step": 1}')
    with pytest.raises(InputError, match="format '2'; this version of brainseg_jax reads format '1'"):
        load_trained(other)
    rewrite(other)
    with pytest.raises(InputError, match="its metadata have no 'brainseg_jax', so another program wrote it"):
        load_trained(other)
    (stored / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match="SHA256SUMS cannot be read"):
        load_trained(stored)


def test_arrays_of_another_network_are_refused(stored):
    config = json.loads((stored / "config.json").read_text())
    config["model"]["features"] = 4
    (stored / "config.json").write_text(json.dumps(config))
    rewrite(stored, brainseg_jax='{"format": "1", "step": 1}')
    with pytest.raises(InputError, match=r"has another network than its config\.json"):
        load_trained(stored)


def test_predict_needs_neither_orbax_nor_tensorflow_datasets(tmp_path):
    """The command without --run: from a scan to its mask with the network in the package."""
    scan = next(write_phantom(tmp_path / "in", patients=1, seed=0).glob("TCGA*"))
    for mask in scan.glob("*_mask.tif"):
        mask.unlink()
    code = (
        "import runpy, sys; sys.argv[0] = 'predict'\n"
        "try: runpy.run_module('brainseg_jax.predict', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('loaded:', sorted(set(sys.modules) & {'orbax', 'tensorflow_datasets', 'matplotlib', 'optax'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"--input={scan}", f"--output={tmp_path / 'masks'}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "loaded: []" in done.stdout, done.stdout
    assert done.stdout.count("network: pretrained (lgg") == 1 and "not a medical device" in done.stdout
    assert str(PRETRAINED / "README.md") in done.stdout
    (row,) = csv.DictReader((tmp_path / "masks" / "predictions.csv").open())
    assert row["slices"] == "16" and (tmp_path / "masks" / f"{scan.name}_1_pred.tif").exists()


def test_the_network_in_the_package():
    content = (PRETRAINED / "network.safetensors").read_bytes()
    assert len(content) <= 8_000_000
    card = (PRETRAINED / "README.md").read_text()
    assert hashlib.sha256(content).hexdigest() in card
    for words in ("CC BY-NC-SA 4.0", "not a medical", "interval", "Limits"):
        assert words in card
    trained = load_trained(PRETRAINED)
    assert trained.expected_dice and trained.training_scans and f"{trained.parameters:,}" in card


def test_the_word_pretrained_names_it_and_a_path_does_not():
    assert network_path("pretrained", "--run") == PRETRAINED
    assert network_path("./pretrained", "--run") == Path("pretrained")


@pytest.mark.parametrize("name", ["plain_jax", "flax_nnx"])
def test_examples_compute_what_the_package_does(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    network = load_trained(PRETRAINED).network
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 48, 3)), jnp.float32)
    expected = network.model.apply(network.variables, images, train=False)
    loaded = example.load(PRETRAINED)
    found = loaded(images) if name == "flax_nnx" else example.unet(loaded, images)
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(jnp.abs(expected).max()))


def test_evaluate_on_other_scans_leaves_out_those_it_was_trained_on(trained_run, tmp_path, monkeypatch):
    """The run was trained on six of eight patients, so the command scores the other two."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    known = json.loads((trained_run[0] / "split.json").read_text())
    command = ["brainseg_jax.evaluate", f"--run={trained_run[0]}", "--source=phantom:8:0"]
    done = run_module(*command, f"--output={tmp_path / 'scores'}")
    assert "left out 6 cases, since the network used them" in done.stderr
    rows = list(csv.DictReader((tmp_path / "scores" / "per_patient.csv").open()))
    assert {row["patient"] for row in rows} == set(known["test"])
    with (trained_run[0] / "per_patient.csv").open() as file:
        scores = {row["patient"]: row["dice"] for row in csv.DictReader(file)}
    assert {row["patient"]: row["dice"] for row in rows} == scores


def test_evaluate_refuses_a_source_of_other_channels_or_without_a_run(trained_run, tmp_path):
    other = run_module("brainseg_jax.evaluate", "--source=phantom:8:0", f"--output={tmp_path / 'scores'}", check=False)
    assert other.returncode and "give --run=FOLDER" in other.stderr
