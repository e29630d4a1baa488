"""Which slices make the batch of a step: a pure function of the seed and the step, so resume has nothing to replay."""

import dataclasses
import functools

import numpy as np

from brainseg_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class BatchSampler:
    """Endless shuffled passes over the training slices, readable from any step.

    The passes follow one another without a seam: a batch may hold the end of one and the start of the next, so no slice
    is ever dropped. With `tumor_share` > 0 slices with tumor and slices without are two such streams.

    Attributes:
      slices: [M] int, indices into the cohort.
      has_tumor: [M] bool.
      batch_size: B.
      tumor_share: share of each batch drawn from slices with tumor, rounded to whole slices; 0: a single stream.
      seed: of the shuffling.
    """

    slices: np.ndarray
    has_tumor: np.ndarray
    batch_size: int
    tumor_share: float = 0.0
    seed: int = 0

    def __post_init__(self):
        """Refuses a share outside [0, 1] and an empty stream."""
        if not 0.0 <= self.tumor_share <= 1.0:
            raise InputError(f"data.tumor_sampling={self.tumor_share} must lie in [0, 1]")
        for name, pool, count in self._streams():
            if count and not len(pool):
                raise InputError(
                    f"data.tumor_sampling={self.tumor_share} draws {count} of {self.batch_size} slices from those "
                    f"{name}, but the training patients have none; set data.tumor_sampling=0"
                )

    def __call__(self, step: int) -> np.ndarray:
        """The cohort indices [B] int32 of a step, counted from 0."""
        parts = [
            _take(self.seed, stream, pool, step * count, count)
            for stream, (_, pool, count) in enumerate(self._streams())
        ]
        return np.concatenate(parts).astype(np.int32)

    def expected_mean(self, values: np.ndarray) -> float:
        """The mean over a batch, on average over the steps, of what `values` [M] says of each slice."""
        pools = self._streams(values)
        return float(sum(count * pool.mean() for _, pool, count in pools if count) / self.batch_size)

    def _streams(self, of_slices: np.ndarray | None = None) -> list[tuple[str, np.ndarray, int]]:
        """Name, pool and count a batch of each stream; a pool is of `slices`, or of other values of them [M]."""
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
    """Endless shuffled passes over the training patients, one slice of each, readable from any step.

    A patient of 20 slices counts as much as one of 80, as in the mean of the patients' scores. Buda et al. 2019 sample
    so in their code (github.com/mateuszbuda/brain-segmentation-pytorch), with `tumor_share` 1 / 1.1 and `area_power` 1.

    Attributes:
      slices: [M] int, indices into the cohort.
      patients: [M] int, whose slices they are.
      tumor_area: [M], pixels of tumor.
      batch_size: B.
      tumor_share: share of the draws that is of slices with tumor alone; the others are of any slice of the patient.
      area_power: those are drawn in proportion to their tumor's area to this power, 0: equally often.
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
        """The cohort indices [B] int32 of a step, counted from 0."""
        patients = _take(self.seed, 2, np.unique(self.patients), step * self.batch_size, self.batch_size)
        raw = np.random.Philox(key=self.seed, counter=[0, 0, 3, step]).random_raw(self.batch_size)
        return np.array([self._draw(*drawn) for drawn in zip(patients, raw * 2.0**-64, strict=True)], np.int32)

    def expected_mean(self, values: np.ndarray) -> float:
        """The mean over a batch, on average over the steps, of what `values` [M] says of each slice."""
        means = [
            probability @ values[self.patients == patient] for patient, (_, probability) in self.probabilities.items()
        ]
        return float(np.mean(means))

    @functools.cached_property
    def probabilities(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """The slices of each patient and how probable each is once the patient is drawn."""
        table = {}
        for patient in np.unique(self.patients):
            own = self.patients == patient
            area = self.tumor_area[own].astype(np.float64)
            weight = np.where(area > 0, np.maximum(area, 1) ** self.area_power, 0.0)
            share = self.tumor_share if weight.any() else 0.0
            of_tumor = weight / weight.sum() if share else weight
            table[int(patient)] = self.slices[own], share * of_tumor + (1 - share) / own.sum()
        return table

    def _draw(self, patient: int, uniform: float) -> int:
        slices, probability = self.probabilities[int(patient)]
        below = np.searchsorted(np.cumsum(probability), uniform, side="right")
        return slices[min(below, len(slices) - 1)]  # the sum can round to just below 1


def _take(seed: int, stream: int, pool: np.ndarray, start: int, count: int) -> np.ndarray:
    """Entries [start, start + count) of the endless stream of shuffled passes over `pool`."""
    positions = np.arange(start, start + count)
    passes, within = np.divmod(positions, max(1, len(pool)))
    orders = {p: _order(seed, stream, int(p), len(pool)) for p in np.unique(passes)}
    return pool[[orders[p][w] for p, w in zip(passes, within, strict=True)]] if count else pool[:0]


@functools.lru_cache(maxsize=8)
def _order(seed: int, stream: int, number: int, size: int) -> np.ndarray:
    """A permutation of range(size), the same under every numpy: raw Philox output is fixed, `Generator` is not."""
    raw = np.random.Philox(key=seed, counter=[0, 0, stream, number]).random_raw(size)
    return np.argsort(raw, kind="stable")
