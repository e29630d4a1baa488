"""Writes a prepared set of any number of synthetic patients: `python -m benchmarks.synthetic_records --output=FOLDER`.

The program draws a few heads. Each patient is one of them, mirrored, shifted and scaled in brightness. So 1 251
patients of 155 slices of 128 x 128 pixels (the number of BraTS 2023) take minutes. The package reads and trains on the
set like on any other. To remove it, delete the folder.
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

PATIENTS, SLICES, SIDE = 1251, 155, 128  # of BraTS 2023, at half its resolution
HEADS = 4  # number of different heads
_MAX_SHIFT = 6  # pixels of 128, in each direction
_DARKEST, _BRIGHTEST = 0.8, 1.0  # factors of a patient's voxels
_HEIGHT = 240.0  # mm, of an image


class SyntheticPatients:
    """Patients with volumes that are generated on request.

    Attributes:
      cases: one per patient, in order; they have no files.
      description: of channels and targets.
      source: the arguments, as text.
    """

    def __init__(self, *, patients: int, slices: int, side: int, channels: int, seed: int = 0) -> None:
        """Draws the heads.

        Args:
          patients: number of patients; at most the number of ways to mirror and shift a head, 1 352 at 128 pixels.
          slices: of each patient.
          side: height and width of a slice, at least 16.
          channels: number of channels: the last ones of `SEQUENCES`; one is FLAIR.
          seed: of the heads.

        Raises:
          InputError: an argument is out of range.
        """
        self._max_shift = max(1, _MAX_SHIFT * side // 128)
        ways = HEADS * 2 * (2 * self._max_shift + 1) ** 2
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
        """Returns the labelled volume of a case. No two have the same head, mirroring and shift."""
        index = int(case.name.rpartition("-")[2])
        remainder, head = divmod(index, len(self._heads))
        remainder, mirrored = divmod(remainder, 2)
        shift = [value - self._max_shift for value in divmod(remainder, 2 * self._max_shift + 1)]
        gain = np.random.default_rng([index, 1]).uniform(_DARKEST, _BRIGHTEST)
        brightened = np.rint(np.arange(256) * gain).astype(np.uint8)
        step = -1 if mirrored else 1
        voxels, labels = (np.roll(value[:, :, ::step], shift, (1, 2)) for value in self._heads[head])
        slices, side = labels.shape[:2]
        spacing = (1.0, _HEIGHT / side, _HEIGHT / side)
        return Volume(brightened[voxels], spacing, tuple(range(1, slices + 1)), labels=labels)

    def reading(self, case: CaseFiles) -> Reading:
        """Returns the same volume in the form of `open_case`."""
        volume = self.volume(case)
        ranges = {
            name: (float(channel.min()), float(channel.max()))
            for name, channel in zip(self.description.channels, np.moveaxis(volume.voxels, -1, 0), strict=True)
        }
        return Reading(volume, (), ranges, ())


def write_records(
    root: Path, *, patients: int, slices: int = SLICES, side: int = SIDE, channels: int = 1, seed: int = 0
) -> Path:
    """Writes a prepared set of `mri_cohort` with one case per patient, and returns its folder.

    Args:
      root: the data folder.
      patients: see `SyntheticPatients`, also for the others.
      slices: of each patient.
      side: height and width of a slice, in pixels.
      channels: number of channels.
      seed: of the heads.

    Raises:
      InputError: an argument is out of range, or the folder is not writable.
    """
    synthetic = SyntheticPatients(patients=patients, slices=slices, side=side, channels=channels, seed=seed)
    listing = Listing("synthetic records", root, synthetic.description, synthetic.cases, (), {})
    return mri_cohort.write(
        check_cohort(listing, synthetic.source, read=synthetic.reading), root, read=synthetic.volume
    )


def _draw(index: int, shape: tuple[int, int, int], channels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns voxels [S, H, W, C] and labels [S, H, W] of a head, both uint8."""
    generators = [np.random.default_rng([seed, index, part]) for part in range(2)]
    channels_drawn, labels = paint(*generators, shape)
    as_8_bits = [to_8_bits(channel)[0] for channel in channels_drawn[-channels:]]
    return np.stack(as_8_bits, axis=-1), labels


def main() -> None:
    """Writes a set; prints its folder, its size and the time."""
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
