"""What the figures of a run rest on, in words for the report."""

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
    """What the figures of a run rest on, by label.

    Args:
      config: content of the run's `config.json`.
      evaluation: of the run.
      part: val or test, whose patients are scored.
      posts: make the masks, one for each target.
      chose_posts: whether they were chosen on the validation patients.
      parameters: of the network, their number.
      step: of the checkpoint.
    """
    split, parts, model = config["split"], evaluation.split, config["model"]
    cohort, data = evaluation.cohort, config["data"]
    train, val, test = (len(cohort.patients_of(getattr(parts, part))) for part in PARTS)
    dealt = f"by patient, {train} to train, {val} to validate, {test} to test; "
    stratified = f"stratified by {'group' if cohort.grades is None else 'institution'}, " if any(cohort.groups) else ""
    if split["file"]:
        dealt += "taken from a file"
    elif split["folds"]:
        dealt += f"fold {split['fold']} of {split['folds']}, {stratified}seed {split['seed']}"
    else:
        dealt += f"{stratified}seed {split['seed']}"
    return {
        "Data": f"{'/'.join(cohort.folder.parts[-3:-1])}, fingerprint {cohort.fingerprint[:12]}",
        "Scored": _scored_on(part, config, evaluation.kept, chose_posts=chose_posts),
        "Split": dealt,
        "Network": f"{model['name']}, {model['features']} features, depth {model['depth']}, {parameters:,} parameters",
        "Training": f"{config['loss']['name']} loss, {_pixels(data)}, seed {config['seed']}",
        "Checkpoint": f"step {step:,}, "
        + ("the last" if evaluation.kept == "last" else "the best on the validation patients"),
        "Mask": _masks(posts, evaluation, config),
    }


def _pixels(data: dict) -> str:
    spacing, view = data.get("pixel_spacing"), data.get("view", "axial")  # not in older runs
    words = f"{data['image_size']} pixels"
    words += f" of {spacing:g} mm" if spacing else ""
    return words + {"axial": "", "all": ", axial, coronal and sagittal slices"}.get(view, f", {view} slices")


def _masks(posts: tuple[PostProcess, ...], evaluation: Evaluation, config: dict) -> str:
    words = []
    for post in posts:
        mask = f"probability of at least {post.threshold:g}"
        mask += ", averaged over left-right mirror images" if config["eval"].get("mirror") else ""  # not in older runs
        mask += ", largest 3-D part alone" if post.largest_component else ""
        mask += f", parts of {post.min_voxels} voxels or more" if post.min_voxels > 1 else ""
        words.append(mask)
    if len(set(words)) == 1:
        return words[0]
    names = evaluation.cohort.description.names
    return "; ".join(f"{name}: {mask}" for name, mask in zip(names, words, strict=True))


def _scored_on(part: str, config: dict, kept: str, *, chose_posts: bool) -> str:
    """Which patients are scored, and what was decided on them, which makes their scores too good."""
    if part == "test":
        return "test patients: the run made no choice on them"
    chosen = ["the checkpoint"] * (kept == "best") + ["the post-processing"] * chose_posts
    if chosen:
        were = "were" if len(chosen) > 1 else "was"
        return f"validation patients: {' and '.join(chosen)} {were} chosen on them, so these scores are too good"
    words = "validation patients: neither checkpoint nor post-processing was chosen on them"
    decided = ["when the learning rate fell"] * (config["optimizer"]["schedule"] == "plateau")
    decided += ["when to stop early"] * (config["train"]["early_stop_patience"] > 0)
    return f"{words}, but they decided {' and '.join(decided)}" if decided else words
