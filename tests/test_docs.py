"""The examples in the README and in docs/ work: commands parse, code runs, links have targets.

`make docs` builds the pages; see tests/docs.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from brainseg_jax.config import check_config
from brainseg_jax.runs.run_folder import flatten
from brainseg_jax.sharing.share import share

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
hooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hooks)

CARD = ROOT / "brainseg_jax/pretrained/lgg/README.md"
PAGES = [ROOT / "README.md", CARD, *sorted((ROOT / "docs").rglob("*.md"))]
LINKING = [*PAGES, *(ROOT / path for path in hooks.INCLUDED)]
README_WORDS = ("license", "citation", "changelog", "pretrained", "nnU-Net", "five folds")
LANGUAGES = {"bash", "python", "toml", "text"}
# Programs that a page may call and this test does not look into.
OTHERS = {"source", "cd", "git"}


class Block(NamedTuple):
    """A fenced block of a page: its language, its text, and the comment `<!-- test: … -->` above it."""

    page: Path
    line: int
    language: str
    text: str
    mark: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page):
    text = page.read_text()
    for match in re.finditer(r"(?:<!-- test: (\w+) -->\n)?^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        mark, language, content = match.groups()
        yield Block(page, text[: match.start(2)].count("\n") + 1, language, content, mark or "")


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python" and block.mark != "run"]
SHELL = [block for block in BLOCKS if block.language == "bash"]


def commands_of(text):
    """Each command of a shell block as a list of words, without environment variables in front."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            yield words


def check_command(words):
    """Raises AssertionError if the command cannot be called as written."""
    program, *arguments = words
    if program == "python" and arguments[0] == "-m":
        if arguments[1] != "venv":
            check_flags(arguments[1], arguments[2:])
    elif program == "python":
        assert all((ROOT / path).exists() for path in arguments), words
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(targets), words
    elif program == "pip":
        check_install(arguments)
    elif program == "sbatch":
        (place,) = [k for k, word in enumerate(arguments) if word.endswith(".slurm")]
        assert (ROOT / arguments[place]).exists(), words
        if arguments[place] == "slurm/shards.slurm":
            check_flags(f"brainseg_jax.{arguments[place + 1]}", arguments[place + 2 :])
        else:
            assert not arguments[place + 1 :], words
    else:
        assert program in OTHERS, f"{program}: no test knows how to check this command"


def check_install(arguments):
    assert arguments[0] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in arguments:
        if extras := re.fullmatch(r"\.\[(.*)\]", word):
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"]), word
        if word.endswith(".txt"):
            assert (ROOT / word).exists(), word


def check_flags(module, arguments):
    """Checks that the command has these options and accepts the config keys and values."""
    if module not in hooks.COMMANDS:  # a script: its source names its options
        source = (ROOT / (module.replace(".", "/") + ".py")).read_text()
        names = [word.removeprefix("--").partition("=")[0] for word in arguments if word.startswith("--")]
        assert all(f'"{name}"' in source or f'"--{name}"' in source for name in names), (module, names)
        return
    flags = {flag.name: flag for flag in hooks.flags_by_command()[module]}
    config, overrides = None, {}
    for word in arguments:
        name, equals, value = word.removeprefix("--").partition("=")
        assert word.startswith("--"), f"{word}: options are written --name=value"
        if name.startswith("config."):
            overrides[name.removeprefix("config.")] = value
            continue
        assert name in flags, f"{module} has no --{name}"
        assert bool(equals) == (flags[name].kind != "bool"), word
        if flags[name].choices:
            assert value in flags[name].choices, word
        if name == "config":
            config = hooks.load_config(value)
    if config is not None:
        check_overrides(config, overrides)
    else:
        assert not overrides


def check_overrides(config, overrides):
    known = flatten(config.to_dict())
    for key, text in overrides.items():
        assert key in known, f"the config has no key {key}"
        section, _, name = key.rpartition(".")
        kind = type(known[key])
        if kind is bool:
            assert text in ("True", "False"), f"{key}={text}"
        (config[section] if section else config)[name] = text == "True" if kind is bool else kind(text)
    check_config(config)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_parse(block):
    commands = list(commands_of(block.text))
    assert commands
    for words in commands:
        check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_in_the_text_exist(page):
    text = page.read_text()
    known = flatten(hooks.load_config("configs/unet_dice.py").to_dict())
    assert set(re.findall(r"--config\.([\w.]*\w)", text)) <= set(known)
    for line in re.findall(r"`(python -m [^`…]+)`", text):
        check_command(shlex.split(line))


@pytest.mark.parametrize(
    "line",
    [
        "python -m brainseg_jax.main --config=configs/best.py:cpu --workdir=a --config.train.epoch=3",
        "python -m brainseg_jax.main --config=configs/best.py:cpu --workdir=a --config.train.keep=first",
        "python -m brainseg_jax.main --config=configs/best.py:huge --workdir=a",
        "python -m brainseg_jax.predict --inputs=SCANS --output=masks",
        "python -m brainseg_jax.export --run=a --output=b --format=onx",
        "make everything",
        "pip install -e '.[cuda11]'",
        "curl somewhere",
    ],
)
def test_a_wrong_command_is_seen(line):
    (words,) = commands_of(line)
    with pytest.raises(Exception):  # noqa: B017 of whichever check
        check_command(words)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_code_runs(block, capsys, tmp_path, monkeypatch, request):
    run = request.getfixturevalue("trained_run")[0] if block.mark == "onnx" else None
    monkeypatch.chdir(tmp_path)
    # As for a reader, without the strict promotion of the tests.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        if run is not None:
            share(run, tmp_path / "network.onnx", file_format="onnx", size=64, overwrite=False)
        exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    if block.page.name in ("losses.md", "README.md"):
        (value,) = re.findall(r"\d\.\d+", printed)
        assert 0.0 <= float(value) < 0.5  # what each of them prints at its end is a loss that fell


def test_losses_are_shown_with_optax_and_with_nnx():
    shown = [block.text for block in PYTHON if block.page.name == "losses.md"]
    assert len(shown) == 2 and "optax.adam" in shown[0] and "nnx.Optimizer" in shown[1]


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.mark == "run"}), ids=lambda p: p.name)
def test_a_page_runs_from_top_to_bottom(page, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": paths, "TFDS_DATA_DIR": str(tmp_path / "data")}
    for block in blocks_of(page):
        if block.mark == "run":
            command = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euc"]
            done = subprocess.run(
                [*command, block.text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
            )
            assert done.returncode == 0, f"{block}: {done.stderr}"
    assert list((tmp_path / "masks").rglob("*_pred.tif")) and (tmp_path / "scores/report.html").exists()
    assert (tmp_path / "runs/first/report.html").exists()


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Links into the repository; `mkdocs build --strict` checks the links of the site."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    generated = {ROOT / "docs" / path for path in ("reference/config.md", "reference/commands.md")}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path = target.partition("#")[0]
        if path and ":" not in path:
            place = Path(os.path.normpath(page.parent / path))
            assert place.exists() or place in generated, f"{page}: {target}"


def test_every_block_says_what_it_is():
    assert {block.language for block in BLOCKS} <= LANGUAGES
    assert {block.mark for block in BLOCKS} <= {"", "run", "onnx"}


def test_the_readme_is_short_and_has_what_a_stranger_looks_for():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    assert all(word.lower() in text.lower() for word in README_WORDS)
    best = [float(value) for value in re.findall(r"^\|[^|]+\|[^|]+\| \**(0\.\d+)\** \[", text, re.MULTILINE)]
    assert len(best) >= 3 and best[0] == max(best)


def test_figures_of_the_readme_stand_on_the_pages_that_it_names():
    for row in re.findall(r"^\|.*\]\(experiments/.*$", (ROOT / "README.md").read_text(), re.MULTILINE):
        page = (ROOT / re.search(r"\((experiments/[^)]+)\)", row)[1]).read_text()
        figures = re.findall(r"0\.\d{3}", row)
        assert len(figures) == 4 and all(figure in page for figure in figures), row


def test_peers_have_a_source_for_each_cell():
    text = (ROOT / "docs/explanation/peers.md").read_text()
    sources = set(re.findall(r"^- ([nmb]\d):", text, re.MULTILINE))
    rows = [line.split("|")[2:-1] for line in text.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) >= 10
    for cells in rows:
        for cell, letter in zip(cells[1:], "nmb", strict=True):
            keys = re.findall(r"\[([nmb]\d)\]", cell)
            assert keys or cell.strip() == "user's code", cells
            assert all(key[0] == letter and key in sources for key in keys), cell
    shown = (ROOT / "README.md").read_text()
    names = re.findall(r"^\| ([^|]+) \|", shown[shown.index("## Beside") :], re.MULTILINE)[1:]
    assert {name for name in names if "---" not in name} <= set(re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE))


def test_the_reference_has_every_key_and_every_option():
    config, commands = hooks.config_page(), hooks.commands_page()
    for key in flatten(hooks.load_config("configs/unet_dice.py").to_dict()):
        (row,) = [line for line in config.splitlines() if line.startswith(f"| `{key}` |")]
        assert row.replace("\\|", "").split("|")[3].strip(), f"{key} has no comment in config.py"
    # By hand, of config.py.
    assert "| `model.depth` | `4`, `:quick` `3` | number of 2x2 poolings | 1 to 8 |" in config
    assert "| `--part` | `test` | Patients of the runs to score. One of val, test. |" in commands
    assert commands.count("| `--overwrite` | `false` |") == 3


def test_links_of_a_page_are_those_of_the_site():
    held = {"explanation/splits.md", "experiments/leakage_cpu/index.md"}
    source = ROOT / "docs/explanation/splits.md"
    there = hooks.site_links("[a](../../experiments/leakage_cpu/README.md#x)", source, "explanation/splits.md", held)
    assert there == "[a](../experiments/leakage_cpu/index.md#x)"
    path = hooks.site_links("see [`config.py`](../../brainseg_jax/config.py)", source, "explanation/splits.md", held)
    assert path == "see `config.py`"
    broken = "[b](../../brainseg_jax/no.py) ```[a](splits.md)```"
    assert hooks.site_links(broken, source, "explanation/splits.md", held) == broken
