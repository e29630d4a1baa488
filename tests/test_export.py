"""What is shared does what the network does here: normalization, resizing, threshold; the file, its card, refusals."""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharing_cases import KINDS, scans, small_trained

from brainseg_jax.data.cohort import resize_images
from brainseg_jax.data.normalization import METHODS, fit
from brainseg_jax.data.phantom import write_phantom
from brainseg_jax.errors import InputError
from brainseg_jax.evaluation.postprocess import PostProcess
from brainseg_jax.prediction.canvas import Canvas
from brainseg_jax.prediction.ensemble import Ensemble, combine
from brainseg_jax.scans.find import find_scans
from brainseg_jax.sharing.share import load_stablehlo, share
from brainseg_jax.sharing.whole import _fit, make_segmenter, resize_weights
from brainseg_jax.training.trained import load_trained

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(autouse=True)
def loose_ranks():
    """What is shared must work for a user, who has no strict ranks; so must `jax.export` of 8 fake devices' owner."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "scan"), list(scans()), ids=[name for name, _ in scans()])
def test_constants_are_those_of_the_histogram(method, name, scan):
    for ours, theirs in zip(_fit(jnp.asarray(scan, jnp.float32), method), fit(scan, method), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(256, 128), (64, 32), (64, 24), (64, 64), (32, 64), (50, 33)])
def test_resizing_is_that_of_training(sizes):
    given, wanted = sizes
    image = np.random.default_rng(1).integers(0, 256, (1, given, given, 3), np.uint8)
    weights = resize_weights(given, wanted)
    if weights is None:
        assert given == wanted
        return
    columns = np.floor(np.einsum("jw,shwc->shjc", weights, image.astype(np.float64)) + 0.5001)
    resized = np.floor(np.einsum("ih,shjc->sijc", weights, columns) + 0.5001)
    difference = np.abs(resized - resize_images(image, wanted))
    # Pillow rounds its weights to 22 bits, so where they are no eighths some ties fall to the other side.
    assert difference.max() <= (0 if given == 2 * wanted else 1) and (difference > 0).mean() < 0.02


def test_a_percentile_by_hand():
    # Channel 0: 3 zeros and a 200, so the 99th percentile lies at place 2.97: 0 + 0.97 * 200.
    scan = jnp.zeros((1, 2, 2, 3)).at[0, 0, 0, 0].set(200.0)
    constants = _fit(scan, "volume_zscore")
    np.testing.assert_allclose(constants.upper, [194.0, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(constants.mean, [194 / 4, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(constants.inverse_std, [1 / (194 * np.sqrt(3 / 16)), 0.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("mirror", [False, True])
def test_it_predicts_as_predict_does(trained_run, tmp_path, mirror):
    """A made-up patient through `predict`'s own path (numpy, Pillow, batches) and through the one function."""
    trained = load_trained(trained_run[0])
    object.__setattr__(trained, "mirror", mirror)
    (source, *_) = find_scans(write_phantom(tmp_path, patients=1, seed=5))
    scan = source.read()
    ensemble = Ensemble([trained], mirror=None)
    maps = combine(ensemble.predict(ensemble.prepare(scan), lambda: None), Canvas.around((256, 256), None))
    probability, mask = jax.jit(make_segmenter(trained, 256))(scan.voxels.astype(np.float32))
    # From 256 to 32 pixels one value in 2000 is resized to the next level of gray, see the test above.
    difference = np.abs(probability - maps.probability)
    assert np.median(difference) < 1e-6 and difference.mean() < 1e-4 and difference.max() < 0.02
    assert (np.asarray(mask) != (maps.probability >= trained.postprocess.threshold)).mean() < 1e-3


def test_a_file_for_jax_and_its_card(trained_run, tmp_path):
    made = share(trained_run[0], tmp_path / "to" / "net.stablehlo", file_format="stablehlo", size=64, overwrite=False)
    assert made.difference <= 1e-4 and made.path.name == "net.stablehlo"
    segment = load_stablehlo(made.path.read_bytes())
    expected = jax.jit(make_segmenter(load_trained(trained_run[0]), 64))
    for _, scan in list(scans(64))[:2]:  # of 5 slices, and of 1
        for ours, theirs in zip(segment(scan.astype(np.float32)), expected(scan.astype(np.float32)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    card = made.card.read_text()
    for words in ("not a medical\ndevice", "volume_median", "3-D Dice |", "test, 2 patients:", "net.stablehlo"):
        assert words in card, words
    with pytest.raises(InputError, match="there already"):
        share(trained_run[0], made.path, file_format="stablehlo", size=64, overwrite=False)
    # The code of the card works as it stands.
    code = card.split("```python\n")[1].split("```")[0].replace("net.stablehlo", str(made.path))
    names = {"scan": next(scans(64))[1]}
    exec(code, names)
    assert names["mask"].shape == (5, 64, 64)


def test_what_the_file_does_not_hold_is_said():
    from brainseg_jax.sharing.card import _outside

    post = SimpleNamespace(postprocess=PostProcess(largest_component=True, min_voxels=50))
    assert "largest" in _outside(post, 256) and "fewer than 50 voxels (26 neighbors)" in _outside(post, 256)
    assert "fewer than 200 voxels (50 on slices of 256 x 256" in _outside(post, 512)
    assert _outside(SimpleNamespace(postprocess=PostProcess()), 256).startswith("nothing")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output": "net.onnx"}, r"net\.onnx does not end with \.stablehlo"),
        ({"size": 8}, r"--size=8: give 16 to 4096"),
        ({"run": "nothing"}, "no run in it"),
    ],
)
def test_refusals(trained_run, tmp_path, options, words):
    run = tmp_path / options["run"] if "run" in options else trained_run[0]
    output = tmp_path / "out" / options.get("output", "")
    with pytest.raises(InputError, match=words):
        share(run, output, file_format="stablehlo", size=options.get("size", 64), overwrite=False)
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(trained_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'brainseg_jax\[export\]'"):
        share(trained_run[0], tmp_path / "out", file_format="onnx", size=64, overwrite=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_every_network_can_be_given_away(kind):
    trained = small_trained(kind, normalization="volume_zscore")
    (slices,) = jax.export.symbolic_shape("slices")
    shape = jax.ShapeDtypeStruct((slices, 64, 64, 3), jnp.float32)
    exported = jax.export.export(jax.jit(make_segmenter(trained, 64)), platforms=("cpu", "cuda", "tpu"))(shape)
    assert exported.platforms == ("cpu", "cuda", "tpu") and str(exported.out_avals[0].shape[0]) == "slices"
