"""The synthetic cohort of the benchmarks is a valid prepared set."""

import numpy as np
import pytest

from benchmarks.synthetic_records import HEADS, SyntheticPatients, write_records
from brainseg_jax.data.cohort_check import digest_of
from brainseg_jax.data.load_cohort import load_cohort
from brainseg_jax.data.prepared import list_prepared, read_summary
from brainseg_jax.data.prepared_cases import read_cases
from brainseg_jax.errors import InputError

SHAPE = {"slices": 10, "side": 32, "channels": 2}


def test_records_come_back_and_the_summary_counts_them(tmp_path):
    folder = write_records(tmp_path, patients=2 * HEADS + 1, **SHAPE)
    cases, summary = list(read_cases(folder)), read_summary(folder)
    assert list_prepared(tmp_path) == {folder: summary}
    assert [case.name for case in cases] == [f"synthetic-{k:05d}" for k in range(9)]
    assert {case.volume.voxels.shape for case in cases} == {(10, 32, 32, 2)}
    assert {case.volume.spacing for case in cases} == {(1.0, 7.5, 7.5)}
    labels = np.stack([case.volume.labels for case in cases])
    assert (summary.patients, summary.cases, summary.slices) == (9, 9, 90)
    assert summary.target_slices == np.count_nonzero((labels > 0).any(axis=(2, 3)))
    assert summary.target_fraction == pytest.approx((labels > 0).mean())
    assert summary.groups == {"PA": 5, "PB": 4}
    assert summary.description.channels == ("t2w", "t2f")
    whole, core, enhancing = summary.contents.targets
    assert (whole.name, core.name, enhancing.name) == ("whole tumor", "tumor core", "enhancing tumor")
    assert whole.voxels == np.count_nonzero(labels)
    assert core.voxels == np.count_nonzero((labels == 1) | (labels == 3))
    assert enhancing.voxels == np.count_nonzero(labels == 3)
    assert whole.cases == 9
    assert whole.milliliters == pytest.approx(np.count_nonzero(labels) * 7.5**2 / 1000)


def test_patients_are_different_and_the_same_each_time():
    first, again = (SyntheticPatients(patients=12, **SHAPE) for _ in range(2))
    digests = [digest_of(first.volume(case)) for case in first.cases]
    assert len(set(digests)) == 12
    assert [digest_of(again.volume(case)) for case in again.cases] == digests
    plain, mirrored = (first.volume(first.cases[index]).labels for index in (1, 1 + HEADS))  # at one shift
    reach = 1  # 6 pixels of 128 are 1 of 32
    middle = [np.roll(each, (reach, reach), (1, 2)) for each in (plain, mirrored)]
    np.testing.assert_array_equal(middle[0], middle[1][:, :, ::-1])


def test_a_cohort_is_made_of_them(tmp_path):
    cohort = load_cohort(write_records(tmp_path, patients=3, **SHAPE), image_size=32, normalization="volume_median")
    assert cohort.shapes == ((10, 32, 32),) * 3


@pytest.mark.parametrize(
    "wrong", [{"patients": 0}, {"patients": 73}, {"slices": 0}, {"side": 8}, {"channels": 5}, {"seed": -1}]
)
def test_arguments_out_of_range(wrong, tmp_path):
    given = {"patients": 2, **SHAPE} | wrong
    # 4 heads, 2 mirrorings, 3 x 3 shifts.
    with pytest.raises(InputError, match="give 1 to 72 patients at this side" if wrong != {"side": 8} else "16"):
        write_records(tmp_path, **given)
    assert not list(tmp_path.iterdir())
