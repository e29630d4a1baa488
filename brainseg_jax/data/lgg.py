"""The TFDS dataset `lgg_mri` and `prepare`, which writes it from what a user has.

A prepared set is named by its content (`70_patients_4102a302`), so that two sources never mix in one data folder. It is
read back without this project's code or with it, and without TensorFlow:

    import brainseg_jax.data.lgg
    tfds.data_source("lgg_mri/70_patients_4102a302", split="slices", data_dir=...)
"""

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

from brainseg_jax.data import prepared
from brainseg_jax.data.download import HANDLE, PAGE, download
from brainseg_jax.data.phantom import write_phantom
from brainseg_jax.data.progress import slice_progress
from brainseg_jax.data.source import Case
from brainseg_jax.data.validation import SIZE, Source, read_slice, read_source
from brainseg_jax.errors import InputError
from brainseg_jax.files import explain, user_path

SPLIT = "slices"
PATIENTS_A_SHARD = 16
PHANTOM_SOURCE = re.compile(r"phantom(?::([1-9][0-9]*):([0-9]+))?")
DEFAULT_PHANTOM = (20, 0)  # patients, seed

_DESCRIPTION = """\
Brain MRI of patients with lower-grade glioma (TCGA-LGG collection of The Cancer Imaging Archive) with masks of the
FLAIR abnormality drawn by Buda, Saha and Mazurowski. One record is one axial slice; the channels are pre-contrast,
FLAIR and post-contrast, where FLAIR stands in for a missing sequence. The slices of a patient are consecutive records,
in order. Missing clinical fields are -1.
"""
_PHANTOM_DESCRIPTION = """\
Made-up, brain-like patients with made-up tumors, drawn by `brainseg_jax.data.phantom` in the layout of `lgg_mri`. No
scan of a person is in it.
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
    """A set to be written: its name, its cases, what is recorded beside it."""

    cases: tuple[Case, ...] = dataclasses.field(default=(), repr=False)
    summary: prepared.Summary | None = dataclasses.field(default=None, repr=False)
    on_slice: Callable[[], None] = dataclasses.field(default=lambda: None, repr=False)


class LggMri(tfds.core.ShardBasedBuilder):
    """Writes one record a slice, shard by shard, so that memory does not grow with the number of slices.

    There is one split, `slices`, and it is no training set: TFDS splits count records, and a split that parts the
    slices of one patient leaks. Splits by patient are made by who reads the records (`brainseg_jax.data.splits`).
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release: the slices of Kaggle's version 2 and four clinical fields."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        summary = getattr(self.builder_config, "summary", None)
        made_up = summary is not None and summary.source.startswith("phantom:")
        number = tfds.features.Scalar(np.int32)
        # encoding='bytes': the default one reads 2 to 10 times slower.
        pixels = partial(tfds.features.Tensor, dtype=np.uint8, encoding="bytes")
        return tfds.core.DatasetInfo(
            builder=self,
            description=_PHANTOM_DESCRIPTION if made_up else _DESCRIPTION,
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
            homepage=None if made_up else PAGE,
            citation=None if made_up else _CITATION,
            license=None if made_up else _LICENSE,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(dataclasses.asdict(summary)) if summary else None,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[tuple[str, dict]]]]]:
        del dl_manager  # nothing is fetched here
        cases = getattr(self.builder_config, "cases", ())
        if not cases:
            raise InputError(
                "lgg_mri needs the name of a prepared set, as in lgg_mri/70_patients_4102a302. "
                "Prepare one with: python -m brainseg_jax.data.prepare --source=PATH"
            )
        shards = [cases[first : first + PATIENTS_A_SHARD] for first in range(0, len(cases), PATIENTS_A_SHARD)]
        return {SPLIT: [partial(self._records, shard) for shard in shards]}

    def _records(self, cases: tuple[Case, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
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
                self.builder_config.on_slice()


def prepare(source: str, data_dir: str | Path | None, *, progress: bool = True) -> Path:
    """Prepares a source as a TFDS dataset, unless the same content already lies there.

    Everything is checked before anything is written, and a set gets its name only when it is whole: an interrupted run
    leaves nothing that looks finished, and of two processes that prepare the same content one uses the other's.

    Args:
      source: a path (`kaggle_3m/`, a folder that holds it, Kaggle's zip), `kaggle` (the real set prepared before,
          else a download), `phantom` or `phantom:PATIENTS:SEED` (made-up patients, 20 and seed 0 by default).
      data_dir: the folder of TFDS datasets; None is TFDS's own: `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      progress: whether to show a progress bar.

    Returns:
      The folder of the prepared set, `data_dir/lgg_mri/<config>/<version>`.

    Raises:
      InputError: an unknown source, bad data (all faults are listed), no network, or a data folder that cannot be
          written to.
    """
    root = _data_folder(data_dir)
    prepared.remove_stale(root)
    try:
        tempfile.gettempdir()  # TFDS and the phantom need it
    except OSError as error:
        raise InputError(f"{error.strerror}; set TMPDIR to a folder that can be written to") from error
    if match := PHANTOM_SOURCE.fullmatch(source):
        patients, seed = (int(match[1]), int(match[2])) if match[1] else DEFAULT_PHANTOM
        return _prepare_phantom(root, patients, seed, progress)
    if source == "kaggle":
        return _find_kaggle(root) or _prepare_path(download(), root, HANDLE, progress)
    path = user_path(source, "source")
    if not source or not path.exists():
        raise InputError(
            f"source {source!r}: no such file or folder. A source is the path of kaggle_3m/, of a folder that holds it "
            "or of Kaggle's zip; or kaggle (downloads the real set); or phantom or phantom:PATIENTS:SEED (made-up "
            "patients)."
        )
    return _prepare_path(path, root, str(path.absolute()), progress)


def _data_folder(given: str | Path | None) -> Path:
    if given:
        return user_path(str(given), "data_dir").absolute()
    default = tfds.core.constants.get_default_data_dir()
    try:
        return user_path(str(default), "TFDS_DATA_DIR").absolute()
    except InputError as error:
        raise InputError(
            f"the folder of prepared data is by default {default}, which cannot be used ({error}); name a folder with "
            "--data_dir (in main: --config.data.dir) or in the environment variable TFDS_DATA_DIR"
        ) from error


def _find_kaggle(root: Path) -> Path | None:
    """The real set that lies prepared in `root`, or None: the whole one, else the one subset; several are an error."""
    found = {
        folder: summary
        for folder, summary in prepared.list_prepared(root, str(LggMri.VERSION)).items()
        if summary.is_published
    }
    whole = {folder: summary for folder, summary in found.items() if summary.is_whole}
    found = whole or found
    if len(found) > 1:
        sets = "\n".join(f"  {folder.parent.name}, prepared from {found[folder].source}" for folder in found)
        raise InputError(
            f"source kaggle: {len(found)} real sets lie prepared in {root}:\n{sets}\n"
            "Name the one you mean by what it was prepared from, --source=PATH (in main: --config.data.source=PATH), "
            "or delete the folders of the others."
        )
    for folder, summary in found.items():
        tell = logging.info if summary.is_whole else logging.warning
        tell("source kaggle: using %s (%d patients), prepared from %s", folder, summary.patients, summary.source)
        return folder
    return None


def _prepare_phantom(root: Path, patients: int, seed: int, progress: bool) -> Path:
    name = f"phantom_{patients}_{seed}"
    folder = _folder(root, name)
    if prepared.is_prepared(folder):
        return folder
    logging.info("Drawing %d made-up patients ...", patients)
    with tempfile.TemporaryDirectory(prefix="phantom_") as drawn:
        try:
            path = write_phantom(Path(drawn), patients=patients, seed=seed)
        except OSError as error:
            raise InputError(f"{drawn} cannot be written to ({explain(error, 'another TMPDIR')})") from error
        return _prepare_path(path, root, f"phantom:{patients}:{seed}", progress, name=name)


def _prepare_path(path: Path, root: Path, given: str, progress: bool, *, name: str | None = None) -> Path:
    with slice_progress(shown=progress) as bar:
        source = read_source(path, on_start=partial(bar.start, "checking"), on_slice=bar.advance)
        folder = _folder(root, name or f"{len(source.cases)}_patients_{source.fingerprint[:8]}")
        if not prepared.is_prepared(folder):
            bar.start("writing ", source.slices)
            _write(source, root, folder, given, bar.advance)
    return folder


def _folder(root: Path, name: str) -> Path:
    return root / prepared.DATASET / name / str(LggMri.VERSION)


def _write(source: Source, root: Path, folder: Path, given: str, on_slice: Callable[[], None]) -> None:
    summary = prepared.Summary(
        fingerprint=source.fingerprint,
        source=given,
        patients=len(source.cases),
        slices=source.slices,
        tumor_slices=source.tumor_slices,
        tumor_fraction=source.tumor_pixels / (source.slices * SIZE * SIZE),
        institutions=dict(sorted(Counter(case.institution for case in source.cases).items())),
    )
    config = LggMriConfig(
        name=folder.parent.name,
        description=f"{summary.patients} patients, prepared from {given}",
        cases=source.cases,
        summary=summary,
        on_slice=on_slice,
    )
    try:
        with prepared.quiet_tfds():
            LggMri(data_dir=root, config=config).download_and_prepare(file_format="array_record")
    except (OSError, RuntimeError) as error:  # array_record reports what the disk does as a RuntimeError
        if prepared.is_prepared(folder):
            return  # another process finished the same content first
        raise InputError(f"{root}: cannot be written to ({explain(error, 'another data_dir')})") from error
    if not prepared.is_prepared(folder):
        raise InputError(f"{folder}: lies there but is not whole. Delete this folder and prepare again.")
