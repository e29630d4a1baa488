"""The benchmarks' computations on timings. The timings themselves run by hand, see benchmarks/README.md."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from benchmarks.growth import exponent
from benchmarks.growth_patients import STEP, THIS_MODULE, WORK, draw, measure
from benchmarks.on_paper import all_reduce_seconds
from benchmarks.profile_step import operators
from brainseg_jax import ops
from brainseg_jax.data import prepare_source
from brainseg_jax.data.prepared import read_summary


def test_exponent_of_growth():
    assert exponent(None, 64, 10.0) is None
    assert exponent((64, 10.0), 128, 40.0) == pytest.approx(2.0)  # twice as far, four times as long
    assert exponent((8, 12.0), 16, 12.0) == pytest.approx(0.0)


def test_files_of_growth_are_a_cohort(tmp_path):
    assert WORK["write files"](tmp_path, 3, 8, 32) == 0.0
    WORK["link files"](tmp_path / "2", 2, 8, 32)
    summary = read_summary(prepare_source.prepare(str(tmp_path / "2"), tmp_path / "data", progress=False))
    assert (summary.cases, summary.slices, [axis[1] for axis in summary.contents.sizes]) == (2, 16, [8, 32, 32])
    assert summary.description.names == ("whole tumor", "tumor core", "enhancing tumor")
    predicted, truth = (sorted(path.name for path in (tmp_path / "2" / f).iterdir()) for f in ("predicted", "labelsTr"))
    assert predicted == truth == ["synthetic-00000.nii.gz", "synthetic-00001.nii.gz"]


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_work_of_growth_on_records(tmp_path):
    seconds = [WORK[work](tmp_path, 5, 6, 32) for work in ("write records", "first start", "later start", STEP)]
    assert all(0 < each < 120 for each in seconds)
    assert (tmp_path / "slices").is_dir()  # residence=disk


def test_points_of_growth(tmp_path):
    flags = ("--work=link files", f"--folder={tmp_path / '2'}", "--patients=2")
    with pytest.raises(RuntimeError, match="No such file or directory"):  # of the files to link
        measure(2, THIS_MODULE, *flags)
    WORK["write files"](tmp_path, 2, 8, 32)
    point = measure(2, THIS_MODULE, *flags[:1], f"--folder={tmp_path / '3'}", flags[2])
    assert (point["at"], point["seconds"]) == (2, 0.0) and 10 < point["peak_mb"] < 2000
    lines = {"prepare files": [point | {"seconds_a_patient": 0.5}], STEP: [point | {"seconds_a_patient": 0.1}]}
    draw(lines, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 5000


def test_all_reduce_over_eight_cards():
    # 450 MB at 450 GB/s is 1 ms; a ring of eight sends 14/8 of it; 2 norms and the loss are 5 small ones of 15 us.
    assert all_reduce_seconds(450e6, norms=2) == pytest.approx(1.75e-3 + 75e-6)


def compiled_operators(channels, features):
    def step(x, kernel):
        return jax.grad(lambda *given: jnp.sum(ops.conv3x3(*given) ** 2), (0, 1))(x, kernel)

    shapes = jnp.zeros((1, 8, 8, channels)), jnp.zeros((3, 3, channels, features))
    return operators(jax.jit(step, compiler_options=ops.compiler_options()).lower(*shapes).compile().as_text())


def test_convolutions_of_a_compiled_step_are_distinguished():
    wide = Counter(operator.kind for operator in compiled_operators(32, 40).values())
    assert [wide[kind] for kind in ("convolution", "input gradient", "kernel gradient")] == [6, 6, 1]
    found = compiled_operators(2, 3)
    kinds = Counter(operator.kind for operator in found.values())
    assert [kinds[kind] for kind in ("convolution", "input gradient", "kernel gradient")] == [1, 1, 1]
    (forward,) = (operator for operator in found.values() if operator.kind == "convolution")
    assert forward.moved == 4 * (8 * 8 * 2 + 3 * 3 * 2 * 3 + 8 * 8 * 3)
