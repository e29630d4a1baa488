"""The console commands. Each runs its module like `python -m`, with the same flags."""

import runpy


def prepare() -> None:
    """`brainseg-prepare`: checks a folder of scans and writes the dataset."""
    _run("data.prepare")


def train() -> None:
    """`brainseg-train`: trains a network and scores it."""
    _run("main")


def predict() -> None:
    """`brainseg-predict`: segments scans."""
    _run("predict")


def evaluate() -> None:
    """`brainseg-evaluate`: scores masks and writes a report."""
    _run("evaluate")


def export() -> None:
    """`brainseg-export`: writes a trained network to one file."""
    _run("export")


def convert() -> None:
    """`brainseg-convert`: creates a run folder from weights of the published PyTorch U-Net."""
    _run("convert")


def _run(module: str) -> None:
    # --help lists the flags of the main module, so the command has to be the main module.
    runpy.run_module(f"brainseg_jax.{module}", run_name="__main__", alter_sys=True)
