"""Describes for the report what the scores of a run depend on."""

from brainseg_jax.data.splits import PARTS
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.runs.evaluation import Evaluation


def facts(
    config: dict,
    evaluation: Evaluation,
    *,
    part: str,
    posts: tuple[PostProcess, ...],
    chose_posts: bool,
    parameters: int,
    step: int,
) -> dict[str, str]:
    """Describes what the scores of a run depend on.

    Args:
      config: content of the run's `config.json`.
      evaluation: evaluation of the run.
      part: scored patients, val or test.
      posts: post-processing, one for each target.
      chose_posts: whether the post-processing was chosen on the validation patients.
      parameters: number of parameters of the network.
      step: step of the checkpoint.

    Returns:
      A text for each label.
    """
    split, split_of_cases, model = config["split"], evaluation.split, config["model"]
    cohort, data = evaluation.cohort, config["data"]
    train, val, test = (len(cohort.patients_of(getattr(split_of_cases, part))) for part in PARTS)
    split_text = f"by patient, {train} to train, {val} to validate, {test} to test; "
    stratified = f"stratified by {'group' if cohort.grades is None else 'institution'}, " if any(cohort.groups) else ""
    if split["file"]:
        split_text += "read from a file"
    elif split["folds"]:
        split_text += f"fold {split['fold']} of {split['folds']}, {stratified}seed {split['seed']}"
    else:
        split_text += f"{stratified}seed {split['seed']}"
    return {
        "Data": f"{'/'.join(cohort.folder.parts[-3:-1])}, fingerprint {cohort.fingerprint[:12]}",
        "Scored": _scored_on(part, config, evaluation.kept, chose_posts=chose_posts),
        "Split": split_text,
        "Network": f"{model['name']}, {model['features']} features, depth {model['depth']}, {parameters:,} parameters",
        "Training": f"{config['loss']['name']} loss, {_pixels(data)}, seed {config['seed']}",
        "Checkpoint": f"step {step:,}, "
        + ("the last" if evaluation.kept == "last" else "the best on the validation patients"),
        "Mask": _masks(posts, evaluation, config),
    }


def _pixels(data: dict) -> str:
    spacing, view = data.get("pixel_spacing"), data.get("view", "axial")  # not in older runs
    text = f"{data['image_size']} pixels"
    text += f" of {spacing:g} mm" if spacing else ""
    return text + {"axial": "", "all": ", axial, coronal and sagittal slices"}.get(view, f", {view} slices")


def _masks(posts: tuple[PostProcess, ...], evaluation: Evaluation, config: dict) -> str:
    texts = []
    for post in posts:
        mask = f"probability of at least {post.threshold:g}"
        mask += ", averaged over left-right mirror images" if config["eval"].get("mirror") else ""  # not in older runs
        mask += ", only the largest 3-D component" if post.largest_component else ""
        mask += f", components of at least {post.min_voxels} voxels" if post.min_voxels > 1 else ""
        texts.append(mask)
    if len(set(texts)) == 1:
        return texts[0]
    names = evaluation.cohort.description.names
    return "; ".join(f"{name}: {mask}" for name, mask in zip(names, texts, strict=True))


def _scored_on(part: str, config: dict, kept: str, *, chose_posts: bool) -> str:
    """The scored patients, and the choices made on them, which make their scores too good."""
    if part == "test":
        return "test patients: no choice depends on them"
    choices = ["the checkpoint"] * (kept == "best") + ["the post-processing"] * chose_posts
    if choices:
        verb = "were" if len(choices) > 1 else "was"
        return f"validation patients: {' and '.join(choices)} {verb} chosen on them, so these scores are too good"
    text = "validation patients: neither checkpoint nor post-processing was chosen on them"
    decisions = ["when the learning rate fell"] * (config["optimizer"]["schedule"] == "plateau")
    decisions += ["when to stop early"] * (config["train"]["early_stop_patience"] > 0)
    return f"{text}, but they decided {' and '.join(decisions)}" if decisions else text
