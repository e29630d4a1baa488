"""Networks as ONNX files in onnxruntime, against JAX.

`python -m pytest -s tests/interop/test_onnx.py` prints the largest differences.
"""

import jax
import numpy as np
import pytest
from sharing_cases import EXCLUSIVE, KINDS, NESTED, posts_for, scans, small_network

from brainseg_jax.data.normalization import METHODS

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.runs.trained import load_trained
from brainseg_jax.sharing.onnx_file import to_onnx
from brainseg_jax.sharing.share import load_onnx, share
from brainseg_jax.sharing.whole import BLOCK, make_segmenter

pytestmark = pytest.mark.usefixtures("optax_promotion")
CASES = [(kind, method, 64, False) for kind, method in zip(KINDS, [*METHODS, *METHODS], strict=True)]
CASES += [(KINDS[0], "volume_zscore", 24, False), (KINDS[4], "volume_median", 32, True)]


def largest_difference(segment, network, posts, size, given):
    expected = jax.jit(make_segmenter(network, posts, size))
    largest, voxels = 0.0, 0
    for _, scan in given:
        (p, m), (q, n) = segment(scan.astype(np.float32)), expected(scan.astype(np.float32))
        assert p.dtype == np.float32 and m.dtype == np.uint8 and m.shape == scan.shape[:3]
        assert p.shape == (m.shape if len(posts) == 1 else (*m.shape, len(posts)))
        largest, voxels = max(largest, float(np.abs(p - q).max())), voxels + int((m != n).sum())
    return largest, voxels


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, (*case[0], *case[1:]))))
def test_files_agree(case):
    kind, method, side, mirror = case
    network = small_network(kind, normalization=method, side=side, mirror=mirror)
    posts = posts_for(network)
    with jax.numpy_rank_promotion("allow"):
        largest, voxels = largest_difference(load_onnx(to_onnx(network, posts, 64)), network, posts, 64, scans())
    print(f"\n{case}: probabilities {largest:.1e}, {voxels} mask voxels")
    assert largest <= 1e-4


@pytest.mark.parametrize(
    ("description", "side", "context"), [(NESTED, 32, 0), (EXCLUSIVE, 64, 1)], ids=["nested", "exclusive"]
)
def test_files_of_several_targets_agree(description, side, context):
    """Four channels, three targets, each with a threshold of its own; the second sees the slices beside each."""
    options = {"normalization": "volume_zscore", "side": side, "mirror": True, "context": context}
    network = small_network(description=description, **options)
    posts = posts_for(network)
    with jax.numpy_rank_promotion("allow"):
        if description == NESTED:  # thresholds that most pixels of these random weights reach, so that all labels occur
            p, _ = make_segmenter(network, posts, 64)(next(scans(channels=4))[1].astype(np.float32))
            posts = tuple(PostProcess(float(np.quantile(p[..., k], 0.3)) + 1e-3) for k in range(3))
        segment = load_onnx(to_onnx(network, posts, 64))
        largest, voxels = largest_difference(segment, network, posts, 64, scans(channels=4))
        _, labels = segment(next(scans(channels=4))[1].astype(np.float32))
    print(f"\n{description.names}: probabilities {largest:.1e}, {voxels} voxels of the label map")
    assert largest <= 1e-4 and voxels <= 3 and set(np.unique(labels)) == {0, *description.painted}


def test_scans_of_several_blocks_agree():
    network = small_network(normalization="volume_zscore")
    scan = np.concatenate([next(scans())[1]] * 2)
    given = [(count, scan[:count]) for count in (BLOCK, 2 * BLOCK, 2 * BLOCK + 1)]
    with jax.numpy_rank_promotion("allow"):
        content = to_onnx(network, posts_for(network), 64)
        largest, voxels = largest_difference(load_onnx(content), network, posts_for(network), 64, given)
    assert largest <= 1e-4 and voxels <= 3


def test_a_run(trained_run, tmp_path):
    with jax.numpy_rank_promotion("allow"):
        made = share(trained_run[0], tmp_path, file_format="onnx", size=64, overwrite=False)
        segment = load_onnx(made.path.read_bytes())
        trained = load_trained(trained_run[0])
        largest, _ = largest_difference(segment, trained.network, trained.posts, 64, scans())
    assert largest <= 1e-4 and made.path == tmp_path / "run.onnx"
    code = made.card.read_text().split("```python\n")[1].split("```")[0].replace("run.onnx", str(made.path))
    names = {"scan": next(scans(64))[1]}
    exec(code, names)
    assert names["mask"].shape == (5, 64, 64)
