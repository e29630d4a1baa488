"""The model card beside a shared file (Mitchell et al. 2019, "Model cards for model reporting"), in markdown."""

import jax

from brainseg_jax.data.splits import PARTS
from brainseg_jax.errors import InputError
from brainseg_jax.training.trained import Trained, read_json

STABLEHLO = """import jax
import numpy as np
from jax import export

with open("{name}", "rb") as file:
    segment = export.deserialize(bytearray(file.read())).call
probability, mask = segment(scan.astype(np.float32))"""
ONNX = """import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{name}")
probability, mask = session.run(["probability", "mask"], {{"scan": scan.astype(np.float32)}})"""
SCORES = {
    "dice": "3-D Dice",
    "iou": "3-D IoU",
    "precision": "precision",
    "recall": "recall",
    "surface_dice": "surface Dice",
    "hd95": "HD95",
}


def describe(trained: Trained, name: str, size: int, difference: float) -> str:
    """The card.

    Args:
      trained: the network in the file.
      name: of the file.
      size: height and width of its slices.
      difference: of its probabilities from those of this package, the largest found.
    """
    code = (ONNX if name.endswith(".onnx") else STABLEHLO).format(name=name)
    return f"""# {name}

Segments tumor (FLAIR abnormality of lower-grade glioma) on brain MRI, slice by slice. **Research code, not a medical
device:** no clinical use, and no decision about a patient may rest on it.

## How to use it

`scan` is all slices of one patient, `[slices, {size}, {size}, 3]`, axial, channels pre-contrast, FLAIR, post-contrast
(FLAIR in place of one that is missing), values 0 to 255 as in 8-bit images. Any number of slices, but all at
once: their brightness is normalized together.

```python
{code}
```

`probability` is float32 and `mask` uint8 (1 is tumor), both `[slices, {size}, {size}]`.

- In the file: {_inside(trained, size)}
- Not in the file: {_outside(trained, size)}

## The network

{_network(trained, difference)}

## Data and split

{_data(trained)}

## Scores

{_scores(trained)}

## Limits

- Trained for one disease, with masks of FLAIR abnormality. Other tumors, other sequences, scans with the skull removed,
  and scanners or protocols unlike the training data were not scored.
- Slices of another size, another orientation or pixels that are no squares must be brought to {size} x {size} first.
- A tumor can be missed whole, and healthy tissue can be marked. The probabilities are not calibrated for other data.
- Scans of the LGG set are under CC BY-NC-SA 4.0; whether that binds weights trained on them is for the user to judge.
"""


def _inside(trained: Trained, size: int) -> str:
    side = trained.image_size
    resizing = f"resizing to {side} x {side} and back, " if side != size else ""
    mirror = ", averaging with the left-right mirror image" if trained.mirror else ""
    return (
        f"{resizing}normalization (`{trained.normalization}`), the network{mirror}, the threshold "
        f"{trained.postprocess.threshold:g}."
    )


def _outside(trained: Trained, size: int) -> str:
    post, steps = trained.postprocess.on_grid((size, size)), []
    if post.largest_component:
        steps.append("keep the largest connected 3-D component alone")
    if post.min_voxels > 1:
        chosen = trained.postprocess.min_voxels
        grid = "" if post.min_voxels == chosen else f" ({chosen} on slices of 256 x 256: the same share of the image)"
        steps.append(f"take out connected 3-D components of fewer than {post.min_voxels} voxels{grid}")
    if not steps:
        return "nothing; this package makes the same mask."
    return f"what this package does with the mask besides: {', '.join(steps)} (26 neighbors). The scores are with it."


def _network(trained: Trained, difference: float) -> str:
    model = trained.config.model
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trained.variables["params"]))
    rounded = "" if model.dtype == "float32" else f" Trained in {model.dtype}; the file computes in float32."
    return (
        f"{model.name}, {model.features} features, depth {model.depth}, norm {model.norm}, {parameters:,} parameters, "
        f"step {trained.step:,} of run `{trained.folder.absolute().name}`.{rounded} On a made-up scan the "
        f"probabilities of the file and of this package differ by at most {difference:.1e}."
    )


def _data(trained: Trained) -> str:
    if not trained.fingerprint:
        return "Converted from weights of others: which patients they were trained on is not known here."
    data, split = (trained.results or {}).get("dataset", {}), read_json(trained.folder / "split.json")
    try:
        parts = {part: list(split[part]) for part in PARTS}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{trained.folder}/split.json is no split ({error}); put back a whole copy of the run"
        ) from error
    lines = [
        f"{data.get('name', trained.config.data.source)}, fingerprint `{trained.fingerprint}`. Split by patient:",
        "",
        *(f"- {part}, {len(patients)} patients: {', '.join(patients)}" for part, patients in parts.items()),
    ]
    return "\n".join(lines)


def _scores(trained: Trained) -> str:
    if not trained.results:
        return "None: " + ("the run has not ended." if trained.fingerprint else "not scored here.")
    test = trained.results["test"]
    interval = test["dice_mean_ci95"]
    known = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "none of so few patients"
    rows = [
        f"| {words} | {test[f'{key}_mean']:.3f} | {test[f'{key}_median']:.3f} |"
        for key, words in SCORES.items()
        if test.get(f"{key}_mean") is not None
    ]
    return "\n".join(
        [
            f"{test['patients']} test patients, on the native grid, by patient; distances in voxels. 95 % bootstrap "
            f"interval of the mean of 3-D Dice: {known}.",
            "",
            "| score | mean | median |",
            "| --- | --- | --- |",
            *rows,
        ]
    )
