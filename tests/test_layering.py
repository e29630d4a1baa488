"""The layers of the package: a file imports from its own layer and from layers below, never from layers above."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the lowest layer up; a row is a layer.
FLOORS = [
    {"errors", "files", "import_errors", "losses", "compilation", "shards"},
    {"ops", "metrics", "config", "config_files", "sharding"},
    {"models"},
    {"scans"},
    {"data"},
    {"inference"},
    {"evaluation"},
    {"training", "runs", "sharing", "prediction"},
    {"cli"},
    {"main", "evaluate", "predict", "export", "convert", "commands"},
]
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}
# Packages that a light file may import besides the standard library.
LIGHT = {"losses": {"jax"}, "metrics": {"jax", "numpy"}, "ops": {"jax", "flax"}, "errors": set()}
FILES = sorted((ROOT / "brainseg_jax").rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "brainseg_jax":
                yield from (f"brainseg_jax.{name.name}" for name in node.names)
            else:
                yield node.module


def room(path):
    return path.relative_to(ROOT / "brainseg_jax").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_upward_edge(path):
    own = room(path)
    if own == "__init__":
        assert not list(imports(path))
        return
    level = LEVEL["main"] if path.name == "prepare.py" else LEVEL[own]  # a command next to its subject
    for name in imports(path):
        if name.startswith("brainseg_jax."):
            assert LEVEL[name.split(".")[1]] <= level, f"{path} imports {name} from a floor above"
        assert not name.startswith(("configs", "experiments", "benchmarks", "tests", "tensorflow.")), f"{path}: {name}"
        assert name not in ("tensorflow", "clu"), f"{path} imports {name}, which costs 1.3 GB"
        if own in LIGHT and name.split(".")[0] not in {"brainseg_jax", *sys.stdlib_module_names}:
            assert name.split(".")[0] in LIGHT[own], f"{path} imports {name}"


def test_only_the_top_sees_the_config():
    seers = {room(p) for p in FILES if "ml_collections" in imports(p)}
    assert seers <= {"config", "training", "runs", "main"}
    assert {p.name for p in FILES if room(p) in ("training", "runs") and "ml_collections" in imports(p)} <= {
        "loop.py",
        "build.py",
        "data.py",
        "evaluation.py",
        "experiment.py",
        "kept.py",
        "plan.py",
        "run_folder.py",
        "trained.py",
    }


def test_nothing_is_long():
    long = [f"{p}: {n}" for p in FILES if (n := len(p.read_text().splitlines())) > 400]
    assert not long
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 100, f"{path}: {node.name}"


def test_each_program_of_a_run_is_compiled_with_the_options_of_its_backend():
    """Otherwise `deterministic` would not affect it. The check of a shared file is not a program of a run."""
    for path in FILES:
        if room(path) in ("ops", "sharing"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and any(
                isinstance(name, ast.Attribute) and ast.unparse(name) == "jax.jit" for name in (node.func, *node.args)
            ):
                assert any(keyword.arg == "compiler_options" for keyword in node.keywords), f"{path}: {node.lineno}"
            assert ast.unparse(node) != "@jax.jit" and not (
                isinstance(node, ast.FunctionDef) and any("jax.jit" in ast.unparse(d) for d in node.decorator_list)
            ), f"{path}: a decorator has no options"


def test_nothing_is_unpickled():
    """A pickle runs arbitrary code; checkpoints, splits and scans come from others."""
    for path in FILES:
        assert not {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"} & set(imports(path)), path
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.keyword) and node.arg == "allow_pickle"), f"{path}, line {node.lineno}"
