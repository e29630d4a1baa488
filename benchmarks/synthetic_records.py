"""A prepared set of any number of synthetic patients: `python -m benchmarks.synthetic_records --output=FOLDER`.

A few heads are drawn. Every patient is one of them, mirrored, shifted and brightened in its own way, so that 1 251
patients of 155 slices of 128 x 128 pixels (the size of BraTS 2023) are written in minutes. The set is read, trained
on and counted as any other. To remove it, delete the folder.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from brainseg_jax.data import mri_cohort
from brainseg_jax.data.cohort_check import check_cohort
from brainseg_jax.data.formats.listing import ALL, CaseFiles, Listing
from brainseg_jax.data.labelled import Reading
from brainseg_jax.data.phantom_cohort import REGIONS, SEQUENCES, paint
from brainseg_jax.data.prepared import read_summary
from brainseg_jax.errors import InputError
from brainseg_jax.scans.description import Description, Target
from brainseg_jax.scans.intensity import to_8_bits
from brainseg_jax.scans.volume import Volume

PATIENTS, SLICES, SIDE = 1251, 155, 128  # of BraTS 2023, at half of its resolution
HEADS = 4  # that are drawn
_MOST_SHIFTED = 6  # pixels of 128, to each side
_DARKEST, _BRIGHTEST = 0.8, 1.0  # by which a patient is scaled
_HEIGHT = 240.0  # mm of an image


class SyntheticPatients:
    """Patients whose volumes are made when they are asked for.

    Attributes:
      cases: of each patient one, in order; they have no files.
      description: of channels and targets.
      source: the arguments, in words.
    """

    def __init__(self, *, patients: int, slices: int, side: int, channels: int, seed: int = 0) -> None:
        """Draws the heads.

        Args:
          patients: how many; at most as many as there are ways to mirror and shift a head, 1 352 at 128 pixels.
          slices: of each patient.
          side: height and width of a slice, at least 16.
          channels: the last so many of `SEQUENCES`; one is FLAIR.
          seed: of the heads.

        Raises:
          InputError: an argument is out of range.
        """
        self._reach = max(1, _MOST_SHIFTED * side // 128)
        ways = HEADS * 2 * (2 * self._reach + 1) ** 2
        if not (1 <= patients <= ways and slices >= 1 and side >= 16 and 1 <= channels <= len(SEQUENCES) and seed >= 0):
            raise InputError(
                f"synthetic records: patients={patients}, slices={slices}, side={side}, channels={channels}, "
                f"seed={seed}: give 1 to {ways} patients at this side, 1 slice or more, a side of at least 16, 1 to "
                f"{len(SEQUENCES)} channels and a seed of at least 0"
            )
        names = [f"synthetic-{index:05d}" for index in range(patients)]
        self.cases = tuple(
            CaseFiles(name, name, f"P{'AB'[index % 2]}", {ALL: Path(name)}, Path(name))
            for index, name in enumerate(names)
        )
        targets = tuple(Target(name, tuple(labels)) for name, labels in REGIONS.items())
        self.description = Description(SEQUENCES[-channels:], targets)
        self.source = f"synthetic records, {patients} patients, {slices} x {side} x {side} x {channels}, seed {seed}"
        self._heads = [_draw(index, (slices, side, side), channels, seed) for index in range(min(HEADS, patients))]

    def volume(self, case: CaseFiles) -> Volume:
        """The labelled volume of a case; no two have the same head, mirroring and shift."""
        index = int(case.name.rpartition("-")[2])
        rest, head = divmod(index, len(self._heads))
        rest, mirrored = divmod(rest, 2)
        shift = [each - self._reach for each in divmod(rest, 2 * self._reach + 1)]
        gain = np.random.default_rng([index, 1]).uniform(_DARKEST, _BRIGHTEST)
        brightened = np.rint(np.arange(256) * gain).astype(np.uint8)
        step = -1 if mirrored else 1
        voxels, labels = (np.roll(each[:, :, ::step], shift, (1, 2)) for each in self._heads[head])
        slices, side = labels.shape[:2]
        spacing = (1.0, _HEIGHT / side, _HEIGHT / side)
        return Volume(brightened[voxels], spacing, tuple(range(1, slices + 1)), labels=labels)

    def reading(self, case: CaseFiles) -> Reading:
        """The same, as `open_case` returns it."""
        volume = self.volume(case)
        ranges = {
            name: (float(channel.min()), float(channel.max()))
            for name, channel in zip(self.description.channels, np.moveaxis(volume.voxels, -1, 0), strict=True)
        }
        return Reading(volume, (), ranges, ())


def write_records(
    root: Path, *, patients: int, slices: int = SLICES, side: int = SIDE, channels: int = 1, seed: int = 0
) -> Path:
    """Writes a prepared set of `mri_cohort` with one case a patient, and returns its folder.

    Args:
      root: the data folder.
      patients: and the others: see `SyntheticPatients`.
      slices: of each patient.
      side: height and width of a slice, in pixels.
      channels: how many.
      seed: of the heads.

    Raises:
      InputError: an argument is out of range, or the folder cannot be written to.
    """
    drawn = SyntheticPatients(patients=patients, slices=slices, side=side, channels=channels, seed=seed)
    listing = Listing("synthetic records", root, drawn.description, drawn.cases, (), {})
    return mri_cohort.write(check_cohort(listing, drawn.source, read=drawn.reading), root, read=drawn.volume)


def _draw(index: int, shape: tuple[int, int, int], channels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [S, H, W, C] and labels [S, H, W], both uint8, of a head."""
    generators = [np.random.default_rng([seed, index, part]) for part in range(2)]
    scanned, labels = paint(*generators, shape)
    mapped = [to_8_bits(channel)[0] for channel in scanned[-channels:]]
    return np.stack(mapped, axis=-1), labels


def main() -> None:
    """Writes a set and prints where it lies, its size and how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="data folder")
    parser.add_argument("--patients", type=int, default=PATIENTS)
    parser.add_argument("--slices", type=int, default=SLICES)
    parser.add_argument("--side", type=int, default=SIDE, help="pixels")
    parser.add_argument("--channels", type=int, default=1)
    arguments = parser.parse_args()
    started = time.perf_counter()
    folder = write_records(
        arguments.output,
        patients=arguments.patients,
        slices=arguments.slices,
        side=arguments.side,
        channels=arguments.channels,
    )
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {read_summary(folder).slices} slices, {size / 1e6:.0f} MB, {seconds:.0f} s")


if __name__ == "__main__":
    main()
