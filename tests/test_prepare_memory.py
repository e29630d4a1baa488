"""`prepare` has only a few cases in memory at a time, also within a shard of many."""

import weakref
from pathlib import Path

import numpy as np
from test_lgg import write_tree
from test_prepare_cohort import TWO, images_of, labels_of, save

from brainseg_jax.data import lgg, mri_cohort, prepare_source
from brainseg_jax.data.ahead import READERS
from brainseg_jax.data.cohort_check import check_cohort
from brainseg_jax.data.formats.listing import CaseFiles, Listing
from brainseg_jax.data.prepared_cases import read_cases

SHAPE = (12, 10, 5)


class Alive:
    """The number of tracked arrays in memory, and its maximum."""

    def __init__(self):
        self._arrays, self.most = [], 0

    def follow(self, array: np.ndarray) -> None:
        self._arrays = [each for each in self._arrays if each() is not None] + [weakref.ref(array)]
        self.most = max(self.most, len(self._arrays))


def many_cases(root: Path, count: int) -> Listing:
    cases = []
    for k in range(count):
        images = images_of(f"case {k}", SHAPE)
        files = {name: save(root / f"{k}_{name}.nii", images[..., i]) for i, name in enumerate(TWO.channels)}
        labels = save(root / f"{k}_seg.nii", labels_of(SHAPE))
        cases.append(CaseFiles(f"case_{k:02d}", f"patient_{k}", "", files, labels))
    return Listing("by hand", root, TWO, tuple(cases), (), {})


def test_volumes_of_a_cohort_are_let_go(tmp_path, monkeypatch):
    listing, alive, read_case = many_cases(tmp_path / "scans", 16), Alive(), mri_cohort.read_case

    def followed(*arguments):
        volume, notes = read_case(*arguments)
        alive.follow(volume.voxels)
        return volume, notes

    monkeypatch.setattr(mri_cohort, "read_case", followed)
    folder = mri_cohort.write(check_cohort(listing, "x"), tmp_path / "data")
    assert 1 <= alive.most <= READERS + 3  # the one that is written, those ahead, and one about to be let go
    assert len(list(folder.glob("*.array_record-*"))) == 1
    for case, read in zip(listing.cases, read_cases(folder), strict=True):
        np.testing.assert_array_equal(read.volume.voxels, read_case(case, TWO)[0].voxels)


def test_slices_of_the_lgg_data_are_let_go(tmp_path, monkeypatch):
    tree, alive, read_slice = write_tree(tmp_path / "kaggle_3m"), Alive(), lgg.read_slice

    def followed(item):
        image, mask = read_slice(item)
        alive.follow(image)
        return image, mask

    monkeypatch.setattr(lgg, "read_slice", followed)
    prepare_source.prepare(str(tree), tmp_path / "data", progress=False)
    assert 1 <= alive.most <= 3
