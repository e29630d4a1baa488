"""Finds and reads the cases to predict, and compares them with the training scans."""

import dataclasses
from pathlib import Path

from brainseg_jax.data.formats import ALL, CaseFiles, Files, list_images
from brainseg_jax.data.formats.listing import paths_of
from brainseg_jax.data.labelled import read_case
from brainseg_jax.errors import InputError
from brainseg_jax.inference.training_scans import TrainingScans
from brainseg_jax.scans.description import LGG, Description
from brainseg_jax.scans.find import Found, find_scans
from brainseg_jax.scans.images import SUFFIXES
from brainseg_jax.scans.nifti_file import open_nifti, stem
from brainseg_jax.scans.patterns import Patterns
from brainseg_jax.scans.scan import Scan, Source
from brainseg_jax.scans.slices import SliceScan, slice_outputs
from brainseg_jax.scans.volumes import VolumeScan, result_suffix


def has_lgg_channels(description: Description) -> bool:
    """Whether the channels are those of the LGG set. File names and DICOM headers identify them by sequence."""
    return (description.channels, description.stand_in) == (LGG.channels, LGG.stand_in)


def find_cases(path: Path, description: Description, sequences: Patterns | None) -> tuple[Found, tuple[str, ...]]:
    """Finds the cases in a file, or in a folder and its subfolders.

    Args:
      path: see `find_scans` for networks with the LGG channels, otherwise `list_images`.
      description: of the network.
      sequences: see `find_scans`.

    Returns:
      The cases, and notes on how they were recognized.

    Raises:
      InputError: there are no cases, names are ambiguous, or `sequences` does not apply to the network.
    """
    if has_lgg_channels(description):
        return find_scans(path, sequences), ()
    if sequences:
        raise InputError(
            f"--sequences is for networks with the channels {', '.join(LGG.channels)}; this network has "
            f"{', '.join(description.channels)}. Omit it and name the files as in the training set, or list the "
            "channels in a cohort.toml in the same folder"
        )
    listing = list_images(path, description)
    sources: list[Source] = [CaseSource.of(case, description) for case in listing.cases]
    return Found(sources, listing.passed_over), listing.notes


@dataclasses.dataclass(frozen=True)
class CaseSource(Source):
    """A case in one of the cohort formats.

    Attributes:
      case: its files.
      description: of the network.
    """

    case: CaseFiles
    description: Description

    @classmethod
    def of(cls, case: CaseFiles, description: Description) -> "CaseSource":
        """Creates the source of a case, with its channels and notes from the file names."""
        if ALL in case.images:
            shown = dict.fromkeys(description.channels, f"{paths_of(case.images[ALL])[0].name} *")
            missing = []
        else:
            shown = {channel: paths_of(files)[0].name for channel, files in case.images.items()}
            missing = [channel for channel in description.channels if channel not in case.images]
        notes = (f"no {', '.join(missing)}: replaced by {description.stand_in}",) if missing else ()
        name = Path(case.name)
        return cls(case.name, name.parent, case, description, notes=notes, channels=shown)

    @property
    def paths(self) -> tuple[Path, ...]:
        """See `Source.paths`."""
        return tuple(path for files in self.case.images.values() for path in paths_of(files))

    def read(self) -> Scan:
        """See `Source.read`. Channels are read in the same way as for training."""
        volume, notes = read_case(dataclasses.replace(self.case, labels=None), self.description)
        fields = volume.voxels, volume.spacing, volume.numbers, (*self.notes, *notes)
        if self._is_images:
            return SliceScan(*fields)
        nifti = open_nifti(self._reference)
        return VolumeScan(*fields, nifti.header, nifti.grid)

    def outputs(self, kind: str, description: Description) -> list[Path]:
        """See `Source.outputs`: one volume, or one file per slice if the case has images."""
        if not self._is_images:
            suffix = self._reference.name[len(stem(self._reference)) :]
            return [self.folder / f"{self.stem}_{kind}{result_suffix(suffix)}"]
        numbers = [1] if isinstance(self._files, Path) else [number for number, _ in self._files]
        names = [self.stem] if numbers == [1] else [f"{self.stem}_{number}" for number in numbers]
        return slice_outputs(self.folder, names, kind, description)

    @property
    def _files(self) -> Files:
        """Files of the first available channel. The other channels are reoriented to its grid."""
        return next(self.case.images[name] for name in (ALL, *self.description.channels) if name in self.case.images)

    @property
    def _reference(self) -> Path:
        return paths_of(self._files)[0]

    @property
    def _is_images(self) -> bool:
        return self._reference.suffix.lower() in SUFFIXES


@dataclasses.dataclass(frozen=True)
class ComparedSource(Source):
    """A case that is compared with the training scans when it is read. Flags are printed.

    Attributes:
      source: the case.
      training: statistics of the training scans of each run.
      shown: index of the compared channel, `Description.shown`.
    """

    source: Source
    training: tuple[TrainingScans, ...]
    shown: int

    @classmethod
    def of(cls, source: Source, training: tuple[TrainingScans, ...], description: Description) -> "ComparedSource":
        """Wraps a source."""
        return cls(
            source.name,
            source.folder,
            source,
            training,
            description.shown,
            notes=source.notes,
            channels=source.channels,
        )

    @property
    def stem(self) -> str:
        """See `Source.stem`."""
        return self.source.stem

    @property
    def paths(self) -> tuple[Path, ...]:
        """See `Source.paths`."""
        return self.source.paths

    def read(self) -> Scan:
        """See `Source.read`. The scan gets the flags of all runs, without repetition."""
        scan = self.source.read()
        flags = dict.fromkeys(flag for scans in self.training for flag in scans.flags(scan, self.shown))
        if flags:
            text = "; ".join(flags)
            print(f"note: {self.name}: unlike the training scans: {text}; check its mask before you use it", flush=True)
        return dataclasses.replace(scan, flags=tuple(flags))

    def outputs(self, kind: str, description: Description) -> list[Path]:
        """See `Source.outputs`."""
        return self.source.outputs(kind, description)
