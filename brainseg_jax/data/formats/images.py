"""Lists the images for prediction, in the formats that networks can be trained on."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from brainseg_jax.data.formats import described as toml
from brainseg_jax.data.formats.bids import channel_of
from brainseg_jax.data.formats.listing import ALL, CaseFiles, Draft, Files, Listing, finish, paths_of
from brainseg_jax.data.formats.names import (
    SPELLINGS,
    images_of_mask,
    is_flat,
    is_image,
    is_volume,
    same_sequence,
    split_sequence,
    stem,
)
from brainseg_jax.data.formats.nnunet import CHANNEL_NUMBER, COLORS
from brainseg_jax.data.formats.pairs import Key, as_files, case_names, check_numbers, group_slices
from brainseg_jax.errors import InputError
from brainseg_jax.files import explain
from brainseg_jax.scans.description import Description
from brainseg_jax.scans.images import read_image
from brainseg_jax.scans.sequences import MASK, read_name
from brainseg_jax.scans.walk import new, walk

_MASKS = "masks and earlier results"
_MOST_NUMBERS = 20  # of channels; larger numbers belong to the names of cases


def list_images(path: Path, description: Description) -> Listing:
    """Lists the scans in a file or folder, with the channels of a network; ignores labels.

    A file is one channel if its name ends with a number of nnU-Net (`CASE_0001`) or with the name of a channel. Other
    spellings of a sequence (`CASE_t1ce` for the channel t1c) and BIDS names count too. Any other file is a case with
    all channels. In a folder with `imagesTs`, only that is listed, else `imagesTr` if it exists. Patterns in
    `cohort.toml` define the channels, as for `list_cohort`.

    Args:
      path: a folder, or a file; the other channels of its case are found beside it.
      description: channels of the network, and which of them can be replaced.

    Raises:
      InputError: there is no image, or lists all faults, such as missing or repeated channels.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give an image or a folder of images")
    root = path if path.is_dir() else path.parent
    settings = toml.read_cohort_toml(root) if path.is_dir() else toml.CohortToml()
    passed_over = new()
    if settings.patterns:
        draft = toml.list_by_patterns(root, walk(path, passed_over), passed_over, settings, labelled=False)
        draft.cases = [
            dataclasses.replace(
                case, images={name: case.images[name] for name in description.channels if name in case.images}
            )
            for case in draft.cases
        ]
    else:
        chosen = [root / name for name in ("imagesTs", "imagesTr") if path.is_dir() and (root / name).is_dir()]
        draft = Draft("images", chosen[0] if chosen else root, passed_over=passed_over)
        if chosen:
            draft.notes.append(
                f"{path}: only {chosen[0].name} is predicted; to predict other images, give their folder"
            )
    draft.channels, draft.targets = description.channels, description.targets
    draft.stand_in, draft.ignore, draft.painted = description.stand_in, description.ignore, description.painted
    if not settings.patterns:
        try:
            _list(draft, _files(path, draft))
        except OSError as error:
            raise InputError(f"{path}: {explain(error)}") from error
    if not draft.cases and not draft.faults:
        raise InputError(
            f"{path}: no image in it; give NIfTI volumes (.nii.gz), PNG or TIFF images, a file or a folder of them"
        )
    return finish(draft, labelled=False)


def _files(path: Path, draft: Draft) -> list[Path]:
    """The images of a folder; for a single file, the files of its case."""
    files = walk(draft.root, draft.passed_over) if path.is_dir() else sorted(path.parent.iterdir())
    if path.is_dir():
        images = []
        for file in files:
            if is_image(file) and not _is_mask(file) and "derivatives" not in file.relative_to(draft.root).parts:
                images.append(file)
            else:
                draft.passed_over[_MASKS if is_image(file) else "not an image by its name"].append(file)
        return images
    if not is_image(path):
        raise InputError(f"{path}: not an image by its name; give NIfTI (.nii.gz), PNG or TIFF")
    images = [file for file in files if file.is_file() and is_image(file) and not _is_mask(file)]
    case_and_channel = _make_classifier(images, draft)
    case, channel = case_and_channel(path)
    return [path] if channel == ALL else [file for file in images if case_and_channel(file)[0] == case]


def _is_mask(path: Path) -> bool:
    """Whether the file is a mask by its name or folder, or an earlier result such as `P1_probability`."""
    return bool(images_of_mask(path)) or read_name(stem(path)).sequence == MASK


def _list(draft: Draft, files: Sequence[Path]) -> None:
    case_and_channel = _make_classifier(files, draft)
    images: dict[Key, dict[str, Files]] = defaultdict(dict)
    all_channels: dict[Key, Path] = {}
    for path in files:
        case, channel = case_and_channel(path)
        folder = path.relative_to(draft.root).parent
        if channel is None:
            draft.passed_over[f"not a channel of the network ({', '.join(draft.channels)})"].append(path)
        elif channel == ALL:
            if (first := all_channels.setdefault((folder, stem(path)), path)) != path:
                draft.faults.append(f"{draft.short(path)}: a second file of this name, beside {first.name}; keep one")
        else:
            key = (folder, case) if case else (folder.parent, path.parent.absolute().name)
            file = as_files([(1, path)])
            if (earlier := images[key].setdefault(channel, file)) != file:
                draft.faults.append(
                    f"{draft.short(path)}: a second {channel} of {key[1]}, beside {draft.listed(earlier)}; keep one"
                )
    only = draft.channels[0] if len(draft.channels) == 1 else ALL
    slices = group_slices(draft.root, all_channels, True)
    names = case_names(sorted(images.keys() | slices.keys()))
    for key, name in names.items():
        if key in slices:
            draft.faults += check_numbers(draft, name, slices[key])
        case_images = _as_colors(images[key], draft.channels) if key in images else {only: as_files(slices[key])}
        draft.cases.append(CaseFiles(name, name, "", case_images, None))


def _as_colors(images: dict[str, Files], channels: Sequence[str]) -> dict[str, Files]:
    """Uses a color image `CASE_0000` as all three channels, as in training; see `nnunet.channels_by_case`."""
    if len(channels) != COLORS or set(images) != {channels[0]} or isinstance(images[channels[0]], Path):
        return images
    try:
        is_color = all(read_image(path).ndim == 3 for path in paths_of(images[channels[0]]))
    except InputError:  # reported later, when the case is read
        return images
    return {ALL: images[channels[0]]} if is_color else images


def _make_classifier(files: Sequence[Path], draft: Draft) -> Callable[[Path], tuple[str, str | None]]:
    """Makes a function from a file to its case and channel: `ALL` for a whole case, None for an unknown channel."""
    channels = draft.channels
    numbers: dict[tuple[Path, str], set[int]] = defaultdict(set)
    for path in files:
        if match := CHANNEL_NUMBER.fullmatch(stem(path)):
            numbers[path.parent, match["case"]].add(int(match["number"]))
    # In 2-D images, such numbers can also count slices. They are channels if none exceeds the number of channels.
    flat = {path.parent for path in files if is_flat(path)}
    numbered = {
        key
        for key, case_numbers in numbers.items()
        if 0 in case_numbers and max(case_numbers) < (len(channels) if key[0] in flat else _MOST_NUMBERS)
    }
    by_name = {channel.lower(): channel for channel in channels}
    by_sequence = {same_sequence(channel): channel for channel in channels}
    suffix = re.compile(rf"(?:(.+)[_.-])?({'|'.join(map(re.escape, sorted(by_name, key=len, reverse=True)))})", re.I)

    def case_and_channel(path: Path) -> tuple[str, str | None]:
        name = stem(path)
        if bids := channel_of(name):
            bids_case, channel = bids
            return bids_case, by_name.get(channel.lower()) or by_sequence.get(same_sequence(channel))
        match = CHANNEL_NUMBER.fullmatch(name)
        if match and (path.parent, match["case"]) in numbered:
            number = int(match["number"])
            if number >= len(channels):
                draft.faults.append(
                    f"{draft.short(path)}: its number is too large for the channels of the network "
                    f"({', '.join(channels)}); number these from 0000 in this order, and remove other files"
                )
            return match["case"], channels[number] if number < len(channels) else None
        if match := suffix.fullmatch(name):
            return match[1] or "", by_name[match[2].lower()]
        case, sequence = split_sequence(name) if is_volume(path) else (None, "")
        if case is None or not set(by_sequence) & set(SPELLINGS.values()):
            return name, ALL
        return case, by_sequence.get(same_sequence(sequence))

    return case_and_channel
