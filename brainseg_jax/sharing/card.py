"""Writes the model card of a shared file in markdown (Mitchell et al. 2019, "Model cards for model reporting")."""

import textwrap
from pathlib import Path

from brainseg_jax.data.splits import PARTS
from brainseg_jax.errors import InputError
from brainseg_jax.inference.network import Network
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.runs.stored import is_stored
from brainseg_jax.runs.trained import Trained, cases_of_training, read_json
from brainseg_jax.scans.description import LGG, Description

STABLEHLO = """import jax
import numpy as np
from jax import export

with open("{name}", "rb") as file:
    segment = export.deserialize(bytearray(file.read())).call
probability, {map_name} = segment(scan.astype(np.float32))"""
ONNX = """import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{name}")
probability, {map_name} = session.run(["probability", "{map_name}"], {{"scan": scan.astype(np.float32)}})"""
SCORES = {
    "dice": "3-D Dice",
    "iou": "3-D IoU",
    "precision": "precision",
    "recall": "recall",
    "surface_dice": "surface Dice",
    "hd95": "HD95",
}


def describe(trained: Trained, name: str, size: int, difference: float) -> str:
    """The model card of a shared file.

    Args:
      trained: network in the file.
      name: name of the file.
      size: height and width of its slices, in pixels.
      difference: maximum difference between its probabilities and those of this package.
    """
    network, posts = trained.network, trained.posts
    description = network.description
    map_name = "mask" if len(posts) == 1 else "labels"
    code = (ONNX if name.endswith(".onnx") else STABLEHLO).format(name=name, map_name=map_name)
    return f"""# {name}

{_purpose(description)} **Research code, not a medical
device:** no clinical use, and no decision about a patient may rest on it.

## How to use it

{_input(network, size)}

```python
{code}
```

{_output(description, size)}

- In the file: {_inside(network, posts, size)}
- Not in the file: {_outside(network, posts, size)}

## The network

{_network(trained)}{_rounding(trained, difference)}

## Data and split

{_data(trained)}

## Scores

{_scores(trained, description)}

## Limits

{_limits(network, size)}
"""


STORED = """python -m brainseg_jax.predict --run={name} --input=SCANS --output=masks"""


def describe_stored(
    trained: Trained, name: str, *, size: int, digest: str, dtype: str, difference: float, voxels: int
) -> str:
    """The model card of a stored network.

    Args:
      trained: network in it.
      name: name of its folder.
      size: size of `network.safetensors` in bytes.
      digest: SHA-256 of that file.
      dtype: dtype of its kernels.
      difference: maximum difference of its probabilities from those of the run in float32, on a synthetic scan.
      voxels: number of voxels of the masks of that scan that differ.
    """
    network = trained.network
    description = network.description
    masks = ", ".join(post_in_words(post) for post in dict.fromkeys(trained.posts))
    return f"""# {name}

{_purpose(description)} **Research code, not a medical
device:** no clinical use, and no decision about a patient may rest on it.

## How to use it

```bash
{STORED.format(name=name)}
```

`export --run`, `evaluate --run` and `--config.train.init_from` take this folder too. `network.safetensors` holds the
arrays by the names that Flax gives them, such as `params/encoder_0/Conv_0/kernel`; `config.json` holds the rest.

## The network

{_network(trained)}

{
        _wrapped(
            f"Images of {network.image_size} x {network.image_size} pixels, {network.view} slices, channels "
            f"{', '.join(description.channels)}, normalization `{network.normalization}`. Masks: {masks}."
        )
    }

{
        _wrapped(
            f"Stored with kernels in {dtype}: {size:,} bytes, SHA-256 `{digest}`. On a synthetic scan its "
            f"probabilities differ from those in float32 by at most {difference:.1e}; {voxels} voxels of its mask "
            "differ."
        )
    }

## Data and split

{_data(trained)}

## Scores

{_scores(trained, description)}

## Limits

{_limits(network)}
"""


def post_in_words(post: PostProcess) -> str:
    """Describes the post-processing."""
    parts = [f"probability of at least {post.threshold:g}"]
    parts += ["only the largest connected 3-D component"] if post.largest_component else []
    parts += [f"components of at least {post.min_voxels} voxels"] if post.min_voxels > 1 else []
    return ", ".join(parts)


def _purpose(description: Description) -> str:
    if description == LGG:
        return "Segments tumor (FLAIR abnormality of lower-grade glioma) on brain MRI, slice by slice."
    return f"Segments {', '.join(description.names)} on images of {', '.join(description.channels)}, slice by slice."


def _input(network: Network, size: int) -> str:
    description = network.description
    stand_in = f" (a missing one is replaced by {description.stand_in})" if description.stand_in else ""
    in_order = ", in anatomical order" if network.context else ""
    view = "axial" if network.views > 1 else network.view
    pixels = f"pixels of {network.pixel_spacing:g} mm, " if network.pixel_spacing else ""
    return _wrapped(
        f"`scan` is all slices of one patient{in_order}, `[slices, {size}, {size}, {len(description.channels)}]`, "
        f"{view}, {pixels}channels {', '.join(description.channels)}{stand_in}, values 0 to 255 as in 8-bit "
        "images. Any number of slices; pass all slices of a patient together, since they are normalized together."
    )


def _output(description: Description, size: int) -> str:
    grid = f"slices, {size}, {size}"
    if len(description.targets) == 1:
        return f"`probability` is float32 and `mask` uint8 (1 is {description.names[0]}), both `[{grid}]`."
    names = ", ".join(description.names)
    values = ", ".join(f"{value} {name}" for value, name in zip(description.painted, description.names, strict=True))
    rule = (
        "A voxel gets the target with the highest probability among those that reach their threshold."
        if description.exclusive
        else "A target counts only inside the targets that contain it; a later target overwrites an earlier one."
    )
    return _wrapped(
        f"`probability` is float32, `[{grid}, {len(description.targets)}]`; the last axis is {names}. `labels` is "
        f"uint8, `[{grid}]`: 0 background, {values}. {rule}"
    )


def _inside(network: Network, posts: tuple[PostProcess, ...], size: int) -> str:
    image_size, description = network.image_size, network.description
    neighbors = f"stacking with neighboring slices ({network.context} on either side), " if network.context else ""
    resizing = f"resizing to {image_size} x {image_size} and back, " if image_size != size else ""
    mirror = ", averaging with the left-right mirror image" if network.mirror else ""
    if len(posts) == 1:
        thresholds = f"the threshold {posts[0].threshold:g}"
    else:
        listed = (f"{post.threshold:g} ({name})" for name, post in zip(description.names, posts, strict=True))
        thresholds = f"the thresholds {', '.join(listed)}, the label map"
    return f"{resizing}normalization (`{network.normalization}`), {neighbors}the network{mirror}, {thresholds}."


def _outside(network: Network, posts: tuple[PostProcess, ...], size: int) -> str:
    description, steps = network.description, []
    if network.views > 1:
        steps.append("average the probabilities of axial slices with those of coronal and sagittal ones")
    for name, original in zip(description.names, posts, strict=True):
        post = original.on_grid((size, size))
        of_target = f" of {name}" if len(posts) > 1 else ""
        if post.largest_component:
            steps.append(f"keep only the largest connected 3-D component{of_target}")
        if post.min_voxels > 1:
            grid = ""
            if post.min_voxels != original.min_voxels:
                grid = f" ({original.min_voxels} on slices of 256 x 256: the same fraction of the image)"
            steps.append(f"remove connected 3-D components{of_target} of fewer than {post.min_voxels} voxels{grid}")
    if not steps:
        return "nothing; the mask of this package is the same."
    return f"further post-processing of this package: {', '.join(steps)} (26 neighbors). The scores include it."


def _network(trained: Trained) -> str:
    model = trained.config.model
    run = trained.folder.absolute().name
    return (
        f"{model.name}, {model.features} features, depth {model.depth}, norm {model.norm}, {trained.parameters:,} "
        f"parameters, step {trained.step:,} of run `{run}`."
    )


def _rounding(trained: Trained, difference: float) -> str:
    dtype = trained.config.model.dtype
    rounded = "" if dtype == "float32" else f" Trained in {dtype}; the file computes in float32."
    return (
        f"{rounded} On a synthetic scan the probabilities of the file and of this package differ by at most "
        f"{difference:.1e}."
    )


def _limits(network: Network, size: int | None = None) -> str:
    """`size`: slice size of a file; None for a stored network, since this package resizes its slices."""
    lgg, spacing = network.description == LGG, network.pixel_spacing
    lines = [
        "Trained for one disease, with masks of FLAIR abnormality. Other tumors, other sequences, skull-stripped "
        "scans, and other scanners or protocols than in the training data were not scored."
        if lgg
        else "Trained on one cohort. Other diseases, sequences, scanners and protocols than in the training data "
        "were not scored.",
        f"A {'tumor' if lgg else 'target'} can be missed completely, and healthy tissue can be marked. The "
        "probabilities are not calibrated for other data.",
    ]
    if size:
        lines.insert(
            1,
            f"This package resamples slices to pixels of {spacing:g} mm, but the file does not: give it slices "
            f"with such pixels, in the same orientation, cropped or padded to {size} x {size}."
            if spacing
            else "Resample slices with another size, another orientation or non-square pixels to "
            f"{size} x {size} first.",
        )
    if lgg:
        lines.append(
            "The license of the LGG scans is CC BY-NC-SA 4.0. The user must judge whether it applies to weights "
            "trained on them."
        )
    return "\n".join(_wrapped(f"- {line}", indent="  ") for line in lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _data(trained: Trained) -> str:
    if not trained.fingerprint:
        return "Converted from published weights; their training patients are unknown."
    if cases_of_training(trained.folder) is None:
        raise InputError(
            f"{trained.folder}/split.json is missing, so the training patients are unknown; restore a "
            "complete copy of the folder"
        )
    data, split = (trained.results or {}).get("dataset"), read_json(trained.folder / "split.json")
    data = data if isinstance(data, dict) else {}
    parts = {part: list(split[part]) for part in PARTS}
    name = data.get("name", Path(trained.config.data.source).name)
    lines = [
        f"{name}, fingerprint `{trained.fingerprint}`. Split by patient:",
        "",
        *(f"- {part}, {len(cases)} cases: {', '.join(cases)}" for part, cases in parts.items()),
    ]
    return "\n".join(lines)


def _scores(trained: Trained, description: Description) -> str:
    if trained.results is None:
        if not trained.fingerprint:
            return "None: not scored here."
        if is_stored(trained.folder):
            return "None: the original stored network has no results.json."
        return "None: the run has not ended."
    try:
        return _table_of_scores(trained.results["test"], description)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration, IndexError) as error:
        raise InputError(
            f"{trained.folder / 'results.json'}: no scores of test patients in it ({type(error).__name__}: {error}); "
            "restore a complete copy of the folder, or delete this file to share the network without scores"
        ) from error


def _table_of_scores(test: dict, description: Description) -> str:
    blocks = {"": test} if "targets" not in test else {"mean over targets": test["mean"], **test["targets"]}
    first = next(iter(blocks.values()))
    unit = "in voxels" if description == LGG else "in mm where the voxel size is known, else in voxels"
    interval = first["dice_mean_ci95"]
    interval_text = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "none, too few patients"
    of_targets = ", of the mean over targets" if len(blocks) > 1 else ""
    columns = [" ".join(filter(None, (name, kind))) for name in blocks for kind in ("mean", "median")]
    rows = []
    for key, label in SCORES.items():
        cells = [block.get(f"{key}_{kind}") for block in blocks.values() for kind in ("mean", "median")]
        if any(cell is not None for cell in cells):
            listed = " | ".join("-" if cell is None else f"{cell:.3f}" for cell in cells)
            rows.append(f"| {label} | {listed} |")
    return "\n".join(
        [
            f"{first['patients']} test patients, on the native grid, by patient; distances {unit}. 95 % bootstrap "
            f"interval of the mean of 3-D Dice{of_targets}: {interval_text}.",
            "",
            f"| score | {' | '.join(columns)} |",
            f"| --- |{' --- |' * len(columns)}",
            *rows,
        ]
    )
