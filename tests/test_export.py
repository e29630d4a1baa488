"""A shared network gives the same masks as here: normalization, resizing, threshold; the file, its card, refusals."""

import dataclasses
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharing_cases import EXCLUSIVE, KINDS, NESTED, POSTS, posts_for, scans, small_network
from test_models import random_variables

from brainseg_jax.data.canvas import resize_images
from brainseg_jax.data.normalization import METHODS, fit
from brainseg_jax.data.phantom import write_phantom
from brainseg_jax.errors import InputError
from brainseg_jax.inference.ensemble import Ensemble, combine
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.models import build_model
from brainseg_jax.runs.trained import load_trained
from brainseg_jax.scans.description import LGG
from brainseg_jax.scans.find import find_scans
from brainseg_jax.scans.volume import Volume
from brainseg_jax.sharing import share as share_module
from brainseg_jax.sharing.share import load_stablehlo, share
from brainseg_jax.sharing.whole import BLOCK, _fit, make_segmenter, resize_weights

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(autouse=True)
def loose_ranks():
    """Allows rank promotion, as for a user; shared networks and `jax.export` must work without strict ranks."""
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
    """Compares `predict` (numpy, Pillow, batches) with the exported function on a synthetic patient."""
    trained = load_trained(trained_run[0])
    network = dataclasses.replace(trained.network, mirror=mirror)
    (source, *_) = find_scans(write_phantom(tmp_path, patients=1, seed=5))
    scan = source.read()
    ensemble = Ensemble([network], trained.posts, mirror=None)
    maps = combine(ensemble.predict(ensemble.prepare(scan)))
    probability, mask = jax.jit(make_segmenter(network, trained.posts, 256))(scan.voxels.astype(np.float32))
    # From 256 to 32 pixels one value in 2000 is resized to the next level of gray, see the test above.
    expected = maps.probability[..., 0]
    difference = np.abs(probability - expected)
    assert np.median(difference) < 1e-6 and difference.mean() < 1e-4 and difference.max() < 0.02
    assert (np.asarray(mask) != (expected >= trained.posts[0].threshold)).mean() < 1e-3


def test_a_file_for_jax_and_its_card(trained_run, tmp_path):
    made = share(trained_run[0], tmp_path / "to" / "net.stablehlo", file_format="stablehlo", size=64, overwrite=False)
    assert made.difference <= 1e-4 and made.path.name == "net.stablehlo"
    segment = load_stablehlo(made.path.read_bytes())
    trained = load_trained(trained_run[0])
    expected = jax.jit(make_segmenter(trained.network, trained.posts, 64))
    for _, scan in list(scans(64))[:2]:  # of 5 slices, and of 1
        for ours, theirs in zip(segment(scan.astype(np.float32)), expected(scan.astype(np.float32)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    card = made.card.read_text()
    for words in ("not a medical\ndevice", "volume_median", "3-D Dice |", "test, 2 cases:", "net.stablehlo"):
        assert words in card, words
    with pytest.raises(InputError, match="exists; give another --output"):
        share(trained_run[0], made.path, file_format="stablehlo", size=64, overwrite=False)
    # The code of the card works unchanged.
    code = card.split("```python\n")[1].split("```")[0].replace("net.stablehlo", str(made.path))
    names = {"scan": next(scans(64))[1]}
    exec(code, names)
    assert names["mask"].shape == (5, 64, 64)


def test_what_the_file_lacks_is_reported():
    from brainseg_jax.sharing.card import _outside

    def outside(description, posts, size, views=1):
        return _outside(SimpleNamespace(description=description, views=views), posts, size)

    posts = (PostProcess(largest_component=True, min_voxels=50),)
    assert "largest" in outside(LGG, posts, 256) and "fewer than 50 voxels (26 neighbors)" in outside(LGG, posts, 256)
    assert "fewer than 200 voxels (50 on slices of 256 x 256" in outside(LGG, posts, 512)
    assert outside(LGG, (PostProcess(),), 256).startswith("nothing")
    assert "with those of coronal and sagittal ones" in outside(LGG, (PostProcess(),), 256, views=3)
    of_one = outside(NESTED, (PostProcess(), *posts, PostProcess()), 256)
    assert (
        "keep only the largest connected 3-D component of tumor core, remove connected 3-D components of tu" in of_one
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output": "net.onnx"}, r"net\.onnx does not end with \.stablehlo"),
        ({"size": 8}, r"--size=8: give 16 to 4096"),
        ({"run": "nothing"}, "not a run folder"),
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


@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 1])
def test_each_slice_of_a_block_is_its_own(count):
    """Without volume normalization and neighbors, a single slice gives the same result."""
    network = small_network()
    segment = jax.jit(make_segmenter(network, posts_for(network), 64))
    scan = np.concatenate([next(scans())[1]] * 2)[:count].astype(np.float32)
    probability, mask = segment(scan)
    assert probability.shape == mask.shape == (count, 64, 64)
    for index in range(count):
        alone, mask_alone = segment(scan[index : index + 1])
        np.testing.assert_allclose(probability[index], alone[0], atol=1e-6)
        np.testing.assert_array_equal(mask[index], mask_alone[0])


def test_memory_beside_input_and_output_does_not_grow_with_the_slices():
    network = small_network(normalization="volume_zscore")
    segment = jax.jit(make_segmenter(network, posts_for(network), 64))
    few, many = (
        segment.lower(jax.ShapeDtypeStruct((count, 64, 64, 3), jnp.float32)).compile().memory_analysis()
        for count in (2 * BLOCK, 20 * BLOCK)
    )
    outputs = 64 * 64 * 18 * BLOCK * (4 + 1)  # bytes more, which the loop may hold once
    assert many.temp_size_in_bytes - few.temp_size_in_bytes <= 1.1 * outputs


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_every_network_can_be_given_away(kind):
    network = small_network(kind, normalization="volume_zscore")
    (slices,) = jax.export.symbolic_shape("slices")
    shape = jax.ShapeDtypeStruct((slices, 64, 64, 3), jnp.float32)
    exported = jax.export.export(
        jax.jit(make_segmenter(network, posts_for(network), 64)), platforms=("cpu", "cuda", "tpu")
    )(shape)
    assert exported.platforms == ("cpu", "cuda", "tpu") and str(exported.out_avals[0].shape[0]) == "slices"


def lowered(segment, *platforms):
    scan = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    return jax.export.export(segment, platforms=platforms)(scan).mlir_module()


def test_each_platform_gets_its_formulation_and_exact_products():
    """32 input and output channels, so that a CPU uses Winograd's six products per convolution."""
    network = small_network()
    model = build_model("unet", features=32, depth=1, dtype="bfloat16")
    network = dataclasses.replace(
        network, model=model, variables=random_variables(model, 0, jnp.zeros((1, 32, 32, 3), jnp.float32))
    )
    segment = jax.jit(make_segmenter(network, posts_for(network), 64))
    on_cpu, on_gpu, both = (lowered(segment, *platforms) for platforms in (("cpu",), ("cuda",), ("cpu", "cuda")))
    # 3 blocks of two convolutions, a transposed one and the head. Of the first one the input has few channels.
    assert on_gpu.count("stablehlo.convolution") == 2 * 3 + 1 + 1
    assert on_cpu.count("stablehlo.convolution") == 1 + 5 * 6 + 1
    assert "1x3x32x32xf32" in on_cpu and "1x3x32x32xf32" not in on_gpu
    products = [line for line in on_gpu.splitlines() if "stablehlo.convolution" in line or "dot_general" in line]
    assert all("HIGHEST" in line or "f32" not in line for line in products)
    # Both formulations are in one file, and the weights once.
    assert "1x3x32x32xf32" in both and len(both) < 1.5 * max(len(on_cpu), len(on_gpu))


@pytest.mark.parametrize("side", [32, 64])
def test_nested_targets_are_painted_in_order(side):
    """Core 1 within whole 2, enhancing 3 within the core: computed from the probabilities with numpy."""
    network = small_network(side=side, description=NESTED)
    scan = next(scans(channels=4))[1].astype(np.float32)
    p = np.asarray(make_segmenter(network, POSTS, 64)(scan)[0])
    # Thresholds that most pixels of these random weights reach, so that all labels occur.
    thresholds = [float(np.quantile(p[..., k], 0.3)) for k in range(3)]
    probability, labels = make_segmenter(network, [PostProcess(threshold) for threshold in thresholds], 64)(scan)
    assert probability.shape == (5, 64, 64, 3) and labels.shape == (5, 64, 64) and labels.dtype == np.uint8
    whole, core, enhancing = (p[..., k] >= np.float32(threshold) for k, threshold in enumerate(thresholds))
    expected = np.where(whole, np.where(core, np.where(enhancing, 3, 1), 2), 0)
    np.testing.assert_array_equal(labels, expected)
    assert set(np.unique(expected)) == {0, 1, 2, 3} and (core & ~whole).any() and (enhancing & ~core).any()


def test_the_most_probable_of_exclusive_targets_wins():
    """Only targets above their thresholds count: 0.45 (threshold 0.4) beats 0.55 (threshold 0.6)."""
    network = small_network(description=EXCLUSIVE)
    probability, labels = make_segmenter(network, POSTS, 64)(next(scans(channels=4))[1].astype(np.float32))
    probability = np.asarray(probability)
    expected, beaten = np.zeros(labels.shape, int), 0
    for index in np.ndindex(labels.shape):
        p = probability[index]
        reached = [(p[k], value) for k, (value, least) in enumerate(((2, 0.4), (1, 0.5), (4, 0.6))) if p[k] >= least]
        expected[index] = max(reached)[1] if reached else 0
        beaten += bool(reached) and max(reached)[0] < p.max()
    np.testing.assert_array_equal(labels, expected)
    assert set(np.unique(expected)) == {0, 1, 2, 4} and beaten > 0


def synthetic_run(folder, network, posts, results=None):
    """A run as `load_trained` gives it."""
    model = {"name": "unet", "features": 2, "depth": 2, "norm": "block", "dtype": "float32"}
    config = SimpleNamespace(model=SimpleNamespace(**model), data=SimpleNamespace(source="made"))
    return SimpleNamespace(
        folder=folder,
        config=config,
        network=network,
        posts=posts,
        step=7,
        fingerprint=None,
        results=results,
        parameters=1959,
    )


def test_a_card_of_several_targets(tmp_path, monkeypatch):
    """A network trained at 1.5 mm: its file takes only slices of the network's size."""
    block = {"patients": 4, "dice_mean_ci95": (0.5, 0.9)}
    of_targets = {name: block | {"dice_mean": 0.1 * k, "dice_median": 0.2} for k, name in enumerate(NESTED.names)}
    results = {"test": {"mean": block | {"dice_mean": 0.7, "dice_median": 0.8}, "targets": of_targets}}
    network = small_network(description=NESTED, pixel_spacing=1.5, context=1)
    monkeypatch.setattr(share_module, "load_trained", lambda folder: synthetic_run(folder, network, POSTS, results))
    with pytest.raises(InputError, match=r"--size=64: this network takes slices of 32 x 32 pixels of 1.5 mm"):
        share(tmp_path, tmp_path / "out", file_format="stablehlo", size=64, overwrite=False)
    made = share(tmp_path, tmp_path / "net.stablehlo", file_format="stablehlo", size=None, overwrite=False)
    card = " ".join(made.card.read_text().split())
    for words in (
        "Segments whole tumor, tumor core, enhancing tumor on images of t1n, t1c, t2w, t2f, slice by slice.",
        "`[slices, 32, 32, 4]`, axial, pixels of 1.5 mm, channels t1n, t1c, t2w, t2f, values 0 to 255",
        "`[slices, 32, 32, 3]`; the last axis is whole tumor, tumor core, enhancing tumor.",
        "0 background, 2 whole tumor, 1 tumor core, 3 enhancing tumor. A target counts only inside the targets",
        "the thresholds 0.4 (whole tumor), 0.5 (tumor core), 0.6 (enhancing tumor), the label map.",
        "| 3-D Dice | 0.700 | 0.800 | 0.000 | 0.200 | 0.100 | 0.200 | 0.200 | 0.200 |",
        "4 test patients",
        "all slices of one patient, in anatomical order, `[slices",
        "normalization (`rescale`), stacking with neighboring slices (1 on either side), the network",
    ):
        assert words in card, words
    for words in ("glioma", "FLAIR", "CC BY", "resizing"):
        assert words not in card, words
    code = made.card.read_text().split("```python\n")[1].split("```")[0].replace("net.stablehlo", str(made.path))
    names = {"scan": next(scans(32, channels=4))[1]}
    exec(code, names)
    assert names["labels"].shape == (5, 32, 32) and names["probability"].shape == (5, 32, 32, 3)


@pytest.mark.parametrize(("description", "context"), [(NESTED, 2), (EXCLUSIVE, 0)], ids=["nested", "exclusive"])
def test_label_maps_are_those_of_predict(description, context):
    options = {"normalization": "volume_zscore", "side": 64, "mirror": True, "context": context}
    network = small_network(description=description, **options)
    voxels = next(scans(channels=4))[1]
    ensemble = Ensemble([network], POSTS, mirror=None)
    members = ensemble.predict(ensemble.prepare(Volume(voxels, None, tuple(range(5)))))
    maps = combine(members)
    expected = description.label_map(ensemble.masks(maps.probability, members[0].canvas))
    probability, labels = jax.jit(make_segmenter(network, POSTS, 64))(voxels.astype(np.float32))
    np.testing.assert_allclose(probability, maps.probability, atol=1e-5)
    assert (np.asarray(labels) != expected).sum() <= 3 and set(np.unique(expected)) == {0, *description.painted}
