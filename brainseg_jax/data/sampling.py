"""Chooses the slices of the batch of each step.

This is a pure function of seed and step, so a resumed run continues at any step without repeating the earlier draws.
"""

import dataclasses
import functools

import numpy as np

from brainseg_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class BatchSampler:
    """Endless shuffled passes over the training slices, with access to any step.

    A batch may contain the end of one pass and the start of the next, so no slice is dropped. If `tumor_share` > 0,
    slices with and without tumor are two such streams.

    Attributes:
      slices: [M] int, indices in the cohort.
      has_tumor: [M] bool.
      batch_size: B.
      tumor_share: fraction of each batch from slices with tumor, rounded, at least one slice; 0: slices are drawn
        regardless of tumor.
      seed: of the shuffling.
    """

    slices: np.ndarray
    has_tumor: np.ndarray
    batch_size: int
    tumor_share: float = 0.0
    seed: int = 0

    def __post_init__(self):
        """Raises InputError for a share outside [0, 1] and for an empty stream."""
        if not 0.0 <= self.tumor_share <= 1.0:
            raise InputError(f"data.tumor_sampling={self.tumor_share} must be in [0, 1]")
        for name, pool, count in self._streams():
            if count and not len(pool):
                remedy = "; set data.tumor_sampling=0" if self.tumor_share else ""
                raise InputError(
                    f"data.tumor_sampling={self.tumor_share} draws {count} of {self.batch_size} slices from those "
                    f"{name}, but the training patients have none{remedy}"
                )

    def __call__(self, step: int) -> np.ndarray:
        """The cohort indices [B] int32 of a step; steps count from 0."""
        parts = [
            _take(self.seed, stream, pool, step * count, count)
            for stream, (_, pool, count) in enumerate(self._streams())
        ]
        return np.concatenate(parts).astype(np.int32)

    def expected_mean(self, values: np.ndarray) -> float:
        """Expected mean over a batch of `values` [M], one value per slice."""
        pools = self._streams(values)
        return float(sum(count * pool.mean() for _, pool, count in pools if count) / self.batch_size)

    def _streams(self, of_slices: np.ndarray | None = None) -> list[tuple[str, np.ndarray, int]]:
        """Name, pool and count per batch of each stream. A pool contains `slices`, or other values [M]."""
        pool = self.slices if of_slices is None else of_slices
        if self.tumor_share == 0.0:
            return [("of the split", pool, self.batch_size)]
        tumor_count = max(1, round(self.tumor_share * self.batch_size))
        return [
            ("with tumor", pool[self.has_tumor], tumor_count),
            ("without tumor", pool[~self.has_tumor], self.batch_size - tumor_count),
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class PatientSampler:
    """Endless shuffled passes over the training patients, one slice each, with access to any step.

    A patient with 20 slices has the same weight as one with 80, as in the mean of the patients' scores. Buda et al.
    2019 sample this way in their code (github.com/mateuszbuda/brain-segmentation-pytorch), with `tumor_share` 1 / 1.1
    and `area_power` 1.

    Attributes:
      slices: [M] int, indices in the cohort.
      patients: [M] int, patient of each slice.
      tumor_area: [M], number of tumor pixels.
      batch_size: B.
      tumor_share: probability of a draw from the patient's slices with tumor. The other draws, and those of patients
        without tumor, are from all slices of the patient.
      area_power: slices with tumor are drawn with probability proportional to their tumor area to this power. 0: all
        are equally likely.
      seed: of the shuffling and the draws.
    """

    slices: np.ndarray
    patients: np.ndarray
    tumor_area: np.ndarray
    batch_size: int
    tumor_share: float = 0.0
    area_power: float = 0.0
    seed: int = 0

    def __call__(self, step: int) -> np.ndarray:
        """The cohort indices [B] int32 of a step; steps count from 0."""
        # The third word of the counter keeps the streams independent: 0 and 1 in `BatchSampler`, 2 and 3 here.
        patients = _take(self.seed, 2, np.unique(self.patients), step * self.batch_size, self.batch_size)
        raw = np.random.Philox(key=self.seed, counter=[0, 0, 3, step]).random_raw(self.batch_size)
        return np.array([self._draw(*draw) for draw in zip(patients, raw * 2.0**-64, strict=True)], np.int32)

    def expected_mean(self, values: np.ndarray) -> float:
        """Expected mean over a batch of `values` [M], one value per slice."""
        means = [
            probability @ values[self.patients == patient] for patient, (_, probability) in self.probabilities.items()
        ]
        return float(np.mean(means))

    @functools.cached_property
    def probabilities(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Slices of each patient, and the probability of each slice given the patient."""
        table = {}
        for patient in np.unique(self.patients):
            is_patient = self.patients == patient
            area = self.tumor_area[is_patient].astype(np.float64)
            weight = np.where(area > 0, np.maximum(area, 1) ** self.area_power, 0.0)
            share = self.tumor_share if weight.any() else 0.0
            tumor_weight = weight / weight.sum() if share else weight
            table[int(patient)] = self.slices[is_patient], share * tumor_weight + (1 - share) / is_patient.sum()
        return table

    def _draw(self, patient: int, uniform: float) -> int:
        slices, probability = self.probabilities[int(patient)]
        below = int(np.searchsorted(np.cumsum(probability), uniform, side="right"))
        return slices[min(below, len(slices) - 1)]  # the sum can round to just below 1


def _take(seed: int, stream: int, pool: np.ndarray, start: int, count: int) -> np.ndarray:
    """Entries [start, start + count) of an endless stream of shuffled passes over `pool`."""
    positions = np.arange(start, start + count)
    passes, within = np.divmod(positions, max(1, len(pool)))
    orders = {p: _order(seed, stream, int(p), len(pool)) for p in np.unique(passes)}
    return pool[[orders[p][w] for p, w in zip(passes, within, strict=True)]] if count else pool[:0]


@functools.lru_cache(maxsize=8)
def _order(seed: int, stream: int, number: int, size: int) -> np.ndarray:
    """A permutation of range(size), from raw Philox output: `Generator` may change with the numpy version."""
    raw = np.random.Philox(key=seed, counter=[0, 0, stream, number]).random_raw(size)
    return np.argsort(raw, kind="stable")
