"""The TFDS dataset `lgg_mri`, and `prepare`, which writes it from the user's source.

A prepared set is named by its content (`70_patients_4102a302`), so different sources never mix in one data folder. It
can be read with or without this project's code, and without TensorFlow:

    import brainseg_jax.data.lgg
    tfds.data_source("lgg_mri/70_patients_4102a302", split="slices", data_dir=...)
"""

import contextlib
import dataclasses
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from brainseg_jax.data import prepared, source_index
from brainseg_jax.data.download import HANDLE, PAGE, download
from brainseg_jax.data.phantom import write_phantom
from brainseg_jax.data.progress import slice_progress
from brainseg_jax.data.source import KaggleCase
from brainseg_jax.data.validation import SIZE, KaggleSource, read_slice, read_source
from brainseg_jax.errors import InputError
from brainseg_jax.files import explain, user_path

SPLIT = "slices"
PATIENTS_A_SHARD = 16
KAGGLE = "kaggle"
PHANTOM_SOURCE = re.compile(r"phantom(?::([1-9][0-9]*):([0-9]+))?")
DEFAULT_PHANTOM = (20, 0)  # patients, seed

_DESCRIPTION = """\
Brain MRI of patients with lower-grade glioma (TCGA-LGG collection of The Cancer Imaging Archive) with masks of the
FLAIR abnormality drawn by Buda, Saha and Mazurowski. One record is one axial slice; the channels are pre-contrast,
FLAIR and post-contrast, where FLAIR replaces a missing sequence. The slices of a patient are consecutive records,
in order. Missing clinical fields are -1.
"""
_PHANTOM_DESCRIPTION = """\
Synthetic, brain-like patients with synthetic tumors, drawn by `brainseg_jax.data.phantom` in the layout of `lgg_mri`.
No scan of a person is in it.
"""
_CITATION = """\
@article{buda2019association,
  title = {Association of genomic subtypes of lower-grade gliomas with shape features automatically extracted by a deep
           learning algorithm},
  author = {Buda, Mateusz and Saha, Ashirbani and Mazurowski, Maciej A.},
  journal = {Computers in Biology and Medicine},
  volume = {109},
  pages = {218--225},
  year = {2019},
  doi = {10.1016/j.compbiomed.2019.05.002},
}
"""
_LICENSE = "CC BY-NC-SA 4.0, as stated on the Kaggle page"


@dataclasses.dataclass(eq=False)
class LggMriConfig(tfds.core.BuilderConfig):
    """The set to write: its name, its cases, and its summary."""

    cases: tuple[KaggleCase, ...] = dataclasses.field(default=(), repr=False)
    summary: prepared.Summary | None = dataclasses.field(default=None, repr=False)
    on_slice: Callable[[], None] = dataclasses.field(default=lambda: None, repr=False)


class LggMri(tfds.core.ShardBasedBuilder):
    """Writes one record per slice, shard by shard, so that memory does not grow with the number of slices.

    The one split, `slices`, is not a training set. TFDS splits count records, so they can put slices of one patient
    into two splits, which leaks. Code that reads the records splits by patient (`brainseg_jax.data.splits`).
    """

    VERSION = tfds.core.Version(prepared.VERSIONS[prepared.DATASET])
    RELEASE_NOTES = {"1.0.0": "First release: the slices of Kaggle's version 2 and four clinical fields."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        summary = getattr(self.builder_config, "summary", None)
        synthetic = summary is not None and summary.source.startswith("phantom:")
        number = tfds.features.Scalar(np.int32)
        # encoding='bytes': reading is 2 to 10 times faster than with the default.
        pixels = partial(tfds.features.Tensor, dtype=np.uint8, encoding="bytes")
        return tfds.core.DatasetInfo(
            builder=self,
            description=_PHANTOM_DESCRIPTION if synthetic else _DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": pixels(shape=(SIZE, SIZE, 3), doc="pre-contrast, FLAIR, post-contrast"),
                    "mask": pixels(shape=(SIZE, SIZE, 1), doc="1 is tumor, 0 is not"),
                    "patient": tfds.features.Text(doc="the case id, such as TCGA_DU_5849_19950405"),
                    "institution": tfds.features.Text(doc="the two letters of the case id"),
                    "slice": number,
                    "grade": number,
                    "histological_type": number,
                    "age": number,
                    "gender": number,
                }
            ),
            supervised_keys=("image", "mask"),
            homepage=None if synthetic else PAGE,
            citation=None if synthetic else _CITATION,
            license=None if synthetic else _LICENSE,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(summary.to_metadata()) if summary else None,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[tuple[str, dict]]]]]:
        del dl_manager  # no downloads
        cases = getattr(self.builder_config, "cases", ())
        if not cases:
            raise InputError(
                "lgg_mri needs the name of a prepared set, as in lgg_mri/70_patients_4102a302. "
                "Prepare one with: python -m brainseg_jax.data.prepare --source=PATH"
            )
        shards = [cases[first : first + PATIENTS_A_SHARD] for first in range(0, len(cases), PATIENTS_A_SHARD)]
        return {SPLIT: [partial(self._records, shard) for shard in shards]}

    def _records(self, cases: tuple[KaggleCase, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
        for case in cases:
            for item in case.slices:
                image, mask = read_slice(item)
                record = {
                    "image": image,
                    "mask": mask,
                    "patient": case.name,
                    "institution": case.institution,
                    "slice": item.number,
                    **case.clinical._asdict(),
                }
                yield f"{case.name}_{item.number}", record
                record.clear()  # TFDS keeps all records of a shard until it is written
                self.builder_config.on_slice()


def prepare(source: str, data_dir: str | Path | None, *, progress: bool = True) -> Path:
    """Prepares a source as a TFDS dataset, unless the same content is already prepared.

    All checks run before anything is written. A set gets its name only when it is complete, so an interrupted run never
    leaves a set that looks complete. If two processes prepare the same content, one of them uses the result of the
    other.

    Args:
      source: a path (`kaggle_3m/`, a folder that contains it, Kaggle's zip), `kaggle` (the real set if it is prepared,
        otherwise a download), `phantom` or `phantom:PATIENTS:SEED` (synthetic patients; default: 20, seed 0).
      data_dir: the folder of TFDS datasets; None: the default of TFDS, `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      progress: whether to show a progress bar.

    Returns:
      The folder of the prepared set, `data_dir/lgg_mri/<config>/<version>`.

    Raises:
      InputError: unknown source, bad data (all faults are listed), no network, or a data folder that is not writable.
    """
    root = prepared.open_data_folder(data_dir)
    if match := PHANTOM_SOURCE.fullmatch(source):
        return _prepare_phantom(root, *_phantom_size(match), progress)
    if source == KAGGLE:
        return _find_kaggle(root) or _prepare_path(download(), root, HANDLE, progress)
    path = _existing_path(source)
    return _prepare_path(path, root, str(path.absolute()), progress)


def check(source: str, *, progress: bool = True) -> prepared.Summary:
    """Reads and checks a source as `prepare` does, but writes nothing. Downloads the source `kaggle`.

    Raises:
      InputError: as `prepare` does.
    """
    with contextlib.ExitStack() as stack:
        if match := PHANTOM_SOURCE.fullmatch(source):
            path, name = stack.enter_context(_temporary_phantom(*_phantom_size(match))), source
        elif source == KAGGLE:
            path, name = download(), HANDLE
        else:
            path = _existing_path(source)
            name = str(path.absolute())
        bar = stack.enter_context(slice_progress(shown=progress))
        return _summary(read_source(path, on_start=partial(bar.start, "checking"), on_slice=bar.advance), name)


def _existing_path(source: str) -> Path:
    path = user_path(source, "source")
    if source and path.exists():
        return path
    raise InputError(
        f"source {source!r}: no such file or folder. Give the path of kaggle_3m/, of a folder that contains it or of "
        "Kaggle's zip; a folder of labelled scans (nnU-Net, MSD, BraTS, BIDS, pairs of image and mask); kaggle "
        "(downloads the real set); or phantom or phantom:PATIENTS:SEED (synthetic patients)."
    )


def _phantom_size(match: re.Match[str]) -> tuple[int, int]:
    """Patients and seed of a phantom."""
    return (int(match[1]), int(match[2])) if match[1] else DEFAULT_PHANTOM


def _find_kaggle(root: Path) -> Path | None:
    """The real set that is prepared in `root`: the whole set, otherwise the only subset, otherwise None."""
    sets = {
        folder: summary
        for folder, summary in prepared.list_prepared(root, prepared.DATASET).items()
        if summary.has_published_groups
    }
    whole = {folder: summary for folder, summary in sets.items() if summary.is_whole}
    sets = whole or sets
    if len(sets) > 1:
        listed = "\n".join(f"  {folder.parent.name}, prepared from {sets[folder].source}" for folder in sets)
        raise InputError(
            f"source kaggle: {len(sets)} real sets are prepared in {root}:\n{listed}\n"
            "Select one by its source, --source=PATH (in main: --config.data.source=PATH), or delete the other folders."
        )
    for folder, summary in sets.items():
        log = logging.info if summary.is_whole else logging.warning
        log("source kaggle: using %s (%d patients), prepared from %s", folder, summary.patients, summary.source)
        return folder
    return None


def _prepare_phantom(root: Path, patients: int, seed: int, progress: bool) -> Path:
    name = f"phantom_{patients}_{seed}"
    folder = _folder(root, name)
    if prepared.is_prepared(folder):
        return folder
    logging.info("Drawing %d synthetic patients ...", patients)
    with _temporary_phantom(patients, seed) as path:
        return _prepare_path(path, root, f"phantom:{patients}:{seed}", progress, name=name)


@contextlib.contextmanager
def _temporary_phantom(patients: int, seed: int) -> Iterator[Path]:
    """Draws a phantom in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="phantom_") as folder:
        try:
            path = write_phantom(Path(folder), patients=patients, seed=seed)
        except OSError as error:
            raise InputError(f"{folder} cannot be written to ({explain(error, 'another TMPDIR')})") from error
        yield path


def _prepare_path(path: Path, root: Path, source_name: str, progress: bool, *, name: str | None = None) -> Path:
    signature = None if name else source_index.signature_of(path)
    if folder := source_index.find(root, path, signature):
        logging.info("%s: unchanged since it was prepared in %s", path, folder)
        return folder
    with slice_progress(shown=progress) as bar:
        source = read_source(path, on_start=partial(bar.start, "checking"), on_slice=bar.advance)
        folder = _folder(root, name or f"{len(source.cases)}_patients_{source.fingerprint[:8]}")
        if not prepared.is_prepared(folder):
            bar.start("writing ", source.slices)
            _write(source, root, folder, source_name, bar.advance)
    source_index.remember(root, path, signature, folder)
    return folder


def _folder(root: Path, name: str) -> Path:
    return root / prepared.DATASET / name / str(LggMri.VERSION)


def _summary(source: KaggleSource, source_name: str) -> prepared.Summary:
    return prepared.Summary(
        fingerprint=source.fingerprint,
        source=source_name,
        patients=len(source.cases),
        slices=source.slices,
        target_slices=source.tumor_slices,
        target_fraction=source.tumor_pixels / (source.slices * SIZE * SIZE),
        groups=dict(sorted(Counter(case.institution for case in source.cases).items())),
        cases=len(source.cases),
    )


def _write(source: KaggleSource, root: Path, folder: Path, source_name: str, on_slice: Callable[[], None]) -> None:
    summary = _summary(source, source_name)
    config = LggMriConfig(
        name=folder.parent.name,
        description=f"{summary.patients} patients, prepared from {source_name}",
        cases=source.cases,
        summary=summary,
        on_slice=on_slice,
    )
    prepared.write(LggMri, config, root, folder)
