"""The package for its users: its metadata, and a wheel and source distribution in separate environments."""

import ast
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from brainseg_jax import commands
from brainseg_jax.config_files import config_names, find_config
from brainseg_jax.errors import InputError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
STORED = sorted(path.name for path in (ROOT / "brainseg_jax" / "pretrained" / "lgg").iterdir())
WHEEL_FILES = {
    *(f"brainseg_jax/configs/{name}" for name in CONFIGS),
    *(f"brainseg_jax/pretrained/lgg/{name}" for name in STORED),
    *(f"brainseg_jax/evaluation/templates/report.{ending}" for ending in ("html", "css", "js")),
    *(str(path.relative_to(ROOT)) for path in (ROOT / "brainseg_jax").rglob("*.py")),
    "brainseg_jax/py.typed",
}


def test_each_folder_with_code_is_a_package_of_the_wheel():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "brainseg_jax").rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages | {"brainseg_jax.configs"}


def test_each_command_has_an_entry_point():
    assert PROJECT["project"]["scripts"] == {
        f"brainseg-{name}": f"brainseg_jax.commands:{name}"
        for name in ("prepare", "train", "predict", "evaluate", "export", "convert")
    }
    for target in PROJECT["project"]["scripts"].values():
        assert callable(getattr(commands, target.partition(":")[2]))


def test_each_command_names_what_is_not_installed():
    for name in ("main", "predict", "evaluate", "export", "convert", "data/prepare", "cli"):
        tree = ast.parse((ROOT / "brainseg_jax" / f"{name}.py").read_text())
        first = next(node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
        assert isinstance(first, ast.Import) and first.names[0].name == "brainseg_jax.import_errors", name


def test_configs_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    assert config_names() == CONFIGS
    monkeypatch.chdir(tmp_path)
    shipped = str(ROOT / "configs" / "attn_dice.py")
    assert find_config("attn_dice.py") == find_config("attn_dice") == shipped
    assert find_config("attn_dice.py:cpu") == find_config("attn_dice:cpu") == f"{shipped}:cpu"
    Path("attn_dice").mkdir()  # a folder is no config file
    assert find_config("attn_dice:cpu") == f"{shipped}:cpu"
    Path("attn_dice.py").touch()
    assert find_config("attn_dice.py:cpu") == "attn_dice.py:cpu"  # a file at the path comes first
    assert find_config(f"{tmp_path}/attn_dice.py") == f"{tmp_path}/attn_dice.py"


@pytest.mark.parametrize("text", ["attn_dize.py:cpu", "configs/attn_dice.py", "/nowhere/attn_dice.py", ":cpu"])
def test_a_config_that_is_not_there_is_refused_with_those_that_are(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = text.partition(":")[0]
    with pytest.raises(InputError) as refused:
        find_config(text)
    assert str(refused.value).startswith(f"--config={text}: there is no file {file}; give the path")
    assert str(refused.value).endswith(", ".join(CONFIGS))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source distribution of the checkout, and a wheel of that source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    run = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


@pytest.mark.slow
def test_wheel_and_source_distribution_hold_everything(built):
    wheel, source = built
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    assert names == WHEEL_FILES
    with tarfile.open(source) as file:
        members = {name.partition("/")[2] for name in file.getnames()}
    assert members >= {name.replace("brainseg_jax/configs/", "configs/") for name in WHEEL_FILES} | {"pyproject.toml"}
    assert not any(name.startswith("tests") for name in members)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The command folder of an environment with the wheel and the libraries of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    done = call(*pip, "install", "--quiet", "--no-deps", "--no-index", built[0], cwd=folder)
    assert done.returncode == 0, done.stderr
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    # Paths only: Python does not read the .pth file of an editable installation in them.
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n")
    return folder / "bin"


def call(command, *arguments, cwd):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([command, *arguments], capture_output=True, text=True, check=False, cwd=cwd, env=environment)


@pytest.mark.slow
def test_the_commands_run_in_another_folder(installed, tmp_path):
    where = call(installed / "python", "-c", "import brainseg_jax; print(brainseg_jax.__file__)", cwd=tmp_path)
    assert where.stdout.startswith(str(installed.parent)), where
    trained = call(
        installed / "brainseg-train",
        "--config=unet_dice.py:quick",
        "--config.data.source=phantom:9:0",
        f"--config.data.dir={tmp_path}/data",
        "--config.model.features=2",
        "--config.train.epochs=1",
        "--config.train.steps_per_epoch=2",
        "--workdir=run",
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "report.html").exists()
    refused = call(installed / "brainseg-train", "--config=unet_dize.py", "--workdir=other", cwd=tmp_path)
    assert refused.returncode == 2
    assert (
        refused.stderr.startswith("error: --config=unet_dize.py: there is no file") and "unet_dice.py" in refused.stderr
    )
    shown = call(installed / "brainseg-convert", "--help", cwd=tmp_path)
    assert "--weights" in shown.stdout and "--output" in shown.stdout


@pytest.mark.slow
def test_predict_uses_the_network_in_the_wheel(installed, phantom_folder, tmp_path):
    scan = next(path for path in phantom_folder.iterdir() if path.is_dir())
    done = call(installed / "brainseg-predict", f"--input={scan}", "--output=masks", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "masks" / "predictions.csv").exists()


@pytest.mark.slow
def test_without_the_extra_losses_work_and_commands_say_what_to_install(built, tmp_path):
    """Only the wheel, jax and numpy are visible."""
    with zipfile.ZipFile(built[0]) as file:
        file.extractall(tmp_path / "site")
    allowed = {"brainseg_jax", "jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum"}  # jax and what it requires
    libraries = [Path(path) for path in sys.path if path.endswith("site-packages")]
    there = {entry.name.partition(".")[0] for folder in libraries for entry in folder.iterdir()}
    hide = f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {there - allowed!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
sys.path.insert(0, {str(tmp_path / "site")!r})
"""
    used = "import brainseg_jax.losses, brainseg_jax.metrics, jax.numpy as n\n"
    used += "loss = brainseg_jax.losses.dice_loss(n.zeros((1, 2, 2, 1)), n.ones((1, 2, 2, 1)), smooth=0.0)\n"
    used += "print(brainseg_jax.__file__, round(float(loss[0]), 6))\n"
    done = call(sys.executable, "-c", hide + used, cwd=tmp_path)
    # Dice of probability 1/2 and labels 1 in n pixels: the loss is 1 - 2 (n / 2) / (n / 2 + n) = 1/3.
    assert done.stdout.split() == [str(tmp_path / "site" / "brainseg_jax" / "__init__.py"), "0.333333"], done
    for name in ("prepare", "train", "predict", "evaluate", "export", "convert"):
        done = call(sys.executable, "-c", f"{hide}from brainseg_jax import commands; commands.{name}()", cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr == (
            "error: this command needs the package 'absl', which is not installed: pip install 'brainseg_jax[train]'\n"
        )
