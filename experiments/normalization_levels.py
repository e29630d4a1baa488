"""Compares the FLAIR contrast between tumor and head after normalization with its variation from scan to scan.

    python experiments/normalization_levels.py PATH/kaggle_3m experiments/lgg_70_cpu/dev_split.json

For each training and validation patient of the split, the script takes two medians: of the tumor and of the rest of the
head. A network that relies on brightness needs a mean distance between them that is large against their spread.
"""

import json
import sys
from pathlib import Path

import numpy as np

from brainseg_jax.data.load_cohort import load_cohort
from brainseg_jax.data.normalization import normalize
from brainseg_jax.data.prepare_source import prepare

FLAIR = 1


def medians(source: str, patients: list[str], method: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the median level of the tumor and of the rest of the head, [patients] each."""
    cohort = load_cohort(prepare(source, None), image_size=128, normalization=method)
    tumor, rest = [], []
    for patient in patients:
        slices = cohort.slices_of([patient])
        constants = type(cohort.normalization)(*(c[cohort.cases.index(patient)] for c in cohort.normalization))
        levels = np.asarray(normalize(cohort.slices.images[slices], constants))[..., FLAIR]
        flair, mask = cohort.slices.images[slices][..., FLAIR], cohort.slices.target_bits[slices][..., 0] > 0
        tumor.append(np.median(levels[mask]))
        rest.append(np.median(levels[~mask & (flair > 0.2 * np.percentile(flair, 99))]))
    return np.array(tumor), np.array(rest)


if __name__ == "__main__":
    source, split_file = sys.argv[1:]
    split = json.loads(Path(split_file).read_text())
    patients = sorted(split["train"] + split["val"])
    for method in ("volume_zscore", "volume_median"):
        tumor, rest = medians(source, patients, method)
        distance, spread = (tumor - rest).mean(), np.hypot(tumor.std(), rest.std())
        print(
            f"{method}: {len(patients)} patients, distance {distance:.3f}, spread of the tumor {tumor.std():.3f}, ",
            end="",
        )
        print(f"of the rest {rest.std():.3f}, distance / combined spread {distance / spread:.2f}")
