"""What mkdocs adds to the pages of this folder: the reference, and pages that lie beside what they describe.

Pages are generated from `brainseg_jax/config.py`, from the flags of the commands and from the notebook. The model card,
`experiments/` and `benchmarks/` are included where they lie, with their pictures. A link to a file of the repository
that the site does not hold becomes its path.
"""

import ast
import base64
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {  # module: what it is for
    "brainseg_jax.data.prepare": "Prepare and check data",
    "brainseg_jax.main": "Train and score",
    "brainseg_jax.predict": "Segment scans",
    "brainseg_jax.evaluate": "Score masks",
    "brainseg_jax.export": "Share a network",
    "brainseg_jax.convert": "Convert published weights",
    "experiments.ablation": "Run a study",
}
SECTIONS = {  # of the config: their titles
    "": "Of the whole run",
    "model": "Network",
    "loss": "Loss",
    "data": "Data",
    "split": "Split",
    "augment": "Augmentation",
    "optimizer": "Optimizer",
    "train": "Training",
    "plan": "Limits of the plan",
    "eval": "Scoring and prediction",
}
INCLUDED = {  # pages that lie elsewhere in the repository: their places in the site
    "brainseg_jax/pretrained/lgg/README.md": "model-card.md",
    "benchmarks/README.md": "benchmarks/index.md",
    "experiments/README.md": "experiments/index.md",
    **{
        str(path.relative_to(ROOT)): f"experiments/{path.parent.name}/index.md"
        for path in sorted((ROOT / "experiments").glob("*/README.md"))
    },
}
NOTEBOOK = ROOT / "docs/notebooks/tour.ipynb"


class Flag(NamedTuple):
    """A flag of a command: its name, type, default and meaning, and the values of a choice."""

    name: str
    kind: str
    default: str
    meaning: str
    choices: tuple[str, ...]


# Commands have flags of equal names, so each one's are removed before the next is imported.
_LIST_FLAGS = """
import importlib, json, sys
from absl import flags
listed = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    own = list(flags.FLAGS.flags_by_module_dict()[name])
    kinds = [(flag, flag.flag_type(), flag.default_as_str or "", flag.help or "") for flag in own]
    listed[name] = [
        (flag.name, kind, default.strip("'"), meaning, list(getattr(flag.parser, "enum_values", None) or []))
        for flag, kind, default, meaning in kinds
    ]
    for flag in own:
        delattr(flags.FLAGS, flag.name)
print(json.dumps(listed))
"""


@functools.cache
def flags_by_command() -> dict[str, tuple[Flag, ...]]:
    """The flags that each command defines."""
    done = subprocess.run(
        [sys.executable, "-c", _LIST_FLAGS, *COMMANDS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise RuntimeError(f"the flags of {', '.join(COMMANDS)} cannot be listed:\n{done.stderr}")
    listed = json.loads(done.stdout.splitlines()[-1])
    return {name: tuple(Flag(*flag[:4], tuple(flag[4])) for flag in sorted(flags)) for name, flags in listed.items()}


def commands_page() -> str:
    """The reference of the commands, in Markdown."""
    lines = [
        "# Commands",
        "",
        "Each option is written `--name=value`. `--help` lists them on the command line. A misspelt option is refused.",
        "[Exit statuses](../how-to/faults.md#exit-statuses) are the same for all commands.",
    ]
    for module, title in COMMANDS.items():
        path = ROOT / (module.replace(".", "/") + ".py")
        summary = (ast.get_docstring(ast.parse(path.read_text())) or "").replace("\n    python", "\n\n    python")
        lines += ["", f"## {title}", "", f"`python -m {module}`", "", summary, ""]
        lines += ["| option | default | meaning |", "| --- | --- | --- |"]
        for flag in flags_by_command()[module]:
            meaning = re.sub(r"^<[^>]*>:\s*", "", flag.meaning) + (
                f" One of {', '.join(flag.choices)}." if flag.choices else ""
            )
            default = f"`{flag.default}`" if flag.default not in ("", "None") else ""
            lines.append(f"| `--{flag.name}` | {default} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def config_comments() -> dict[str, str]:
    """The comment of each key in `brainseg_jax/config.py`: those of the line above and of its own line."""
    path = ROOT / "brainseg_jax/config.py"
    with path.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    (function,) = (
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == "_paper"
    )
    lines = path.read_text().splitlines()
    meanings = {}
    for node in function.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("config."):
            above = lines[node.lineno - 2].lstrip()
            parts = [above.lstrip("# ")] if above.startswith("#") else []
            key = ast.unparse(node.targets[0]).removeprefix("config.")
            meanings[key] = " ".join([*parts, comments.get(node.lineno, "")]).strip()
    return meanings


def config_page() -> str:
    """The reference of the config keys, in Markdown."""
    from brainseg_jax import config as module
    from brainseg_jax.runs.run_folder import flatten

    scales = [flatten(module.default_config(scale).to_dict()) for scale in (None, "cpu", "quick")]
    meanings = config_comments()
    lines = [
        "# Config keys",
        "",
        "Set any key on the command line of a training, as in `--config.train.epochs=50`. A misspelt key is refused. A",
        "key that has no effect with the other settings is listed in a warning.",
        "[Configs and scales](../how-to/configure.md)",
        "explains `:cpu` and `:quick`; their values stand beside the default where they differ.",
    ]
    for section, title in SECTIONS.items():
        keys = [key for key in meanings if key in scales[0] and key.rpartition(".")[0] == section]
        lines += ["", f"## {title}", ""]
        if meanings.get(section):
            lines += [_cell(meanings[section]), ""]
        lines += ["| key | default | meaning | accepted |", "| --- | --- | --- | --- |"]
        for key in keys:
            values = [_value(scale[key]) for scale in scales]
            named = zip(("`:cpu`", "`:quick`"), values[1:], strict=True)
            shown = ", ".join([values[0], *(f"{name} {value}" for name, value in named if value != values[0])])
            used = module._USED.get(key)
            meaning = meanings[key] + (f". Has an effect only {used[0]}." if used else "")
            lines.append(f"| `{key}` | {shown} | {_cell(meaning)} | {_cell(_accepted(module, key))} |")
    lines += ["", "## Config files", ""]
    for path in sorted((ROOT / "configs").glob("*.py")):
        summary = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        lines.append(f"- `configs/{path.name}`: {summary}")
    return "\n".join(lines) + "\n"


def _accepted(module: object, key: str) -> str:
    if key in module._CHOICES:
        return ", ".join(module._CHOICES[key])
    if key in module._RANGES:
        low, high = (f"{value:g}" for value in module._RANGES[key])
        return f"at least {low}" if high == "inf" else f"{low} to {high}"
    return ""


def _value(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value).lower() if value in (True, False) else str(value)
    return f"`{text}`" if text else "empty"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def notebook_page(path: Path = NOTEBOOK) -> tuple[str, dict[str, bytes]]:
    """The notebook with its outputs in Markdown, and its pictures by name."""
    parts, pictures = [], {}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"tour_{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![output of the cell above]({name})")
            elif output["output_type"] != "display_data" and (text := _text_of(output)):  # progress bars are left out
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n", pictures


def _text_of(output: dict) -> str:
    return "".join(output.get("text", output.get("data", {}).get("text/plain", ""))).rstrip()


def on_files(files: object, config: object) -> object:
    """Adds the generated pages and those that lie elsewhere; mkdocs calls it."""
    from mkdocs.structure.files import File

    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    pages = {"reference/commands.md": commands_page(), "reference/config.md": config_page()}
    text, pictures = notebook_page()
    pages["notebooks/tour.md"] = text
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    for name, content in pictures.items():
        files.append(File.generated(config, f"notebooks/{name}", content=content))
    for source, uri in INCLUDED.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
        for asset in sorted((ROOT / source).parent.glob("*.png")) + sorted((ROOT / source).parent.glob("*.csv")):
            if uri != "model-card.md":
                asset_uri = f"{uri.rpartition('/')[0]}/{asset.name}"
                files.append(File.generated(config, asset_uri, abs_src_path=str(asset)))
    return files


def on_page_markdown(markdown: str, page: object, config: object, files: object) -> str:
    """Turns links into those of the site; mkdocs calls it."""
    source = {uri: ROOT / path for path, uri in INCLUDED.items()}.get(page.file.src_uri)
    source = source or ROOT / "docs" / page.file.src_uri
    return site_links(markdown, source, page.file.src_uri, {file.src_uri for file in files})


def site_links(markdown: str, source: Path, uri: str, held: set[str]) -> str:
    """The text with its links as the site has them.

    Args:
      markdown: of a page.
      source: its file in the repository, from which its relative links go.
      uri: its place in the site, from which they have to go.
      held: the places of all files of the site.

    Returns:
      the text. A link to a file that the site does not hold is replaced by its path; one to a file that does not exist
      stays as it is, so that mkdocs refuses it.
    """

    def link(match: re.Match) -> str:
        image, text, target = match.groups()
        path, mark, anchor = target.partition("#")
        if not path or ":" in path:
            return match.group()
        absolute = Path(os.path.normpath(source.parent / path))
        if absolute.is_dir() and (absolute / "README.md").exists():
            absolute /= "README.md"
        if not absolute.is_relative_to(ROOT) or not absolute.exists():
            return match.group()
        place = str(absolute.relative_to(ROOT))
        found = INCLUDED.get(place, place.removeprefix("docs/"))
        if place == str(NOTEBOOK.relative_to(ROOT)):
            found = "notebooks/tour.md"
        if found in held:
            return f"{image}[{text}]({os.path.relpath(found, os.path.dirname(uri) or '.')}{mark}{anchor})"
        return text if place.endswith(text.strip("`")) else f"{text} (`{place}`)"

    return "".join(
        part if in_code else re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, part) for part, in_code in _parts(markdown)
    )


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """The text in parts, and whether each is a fenced block of code."""
    for part in re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE):
        yield part, part.startswith("```")


def load_config(name: str) -> object:
    """The config that `--config=FILE:SCALE` names, of a file of the repository."""
    file, _, scale = name.partition(":")
    path = ROOT / file if "/" in file else ROOT / "configs" / file
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([scale] if scale else []))
