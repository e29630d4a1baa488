"""The site that `make docs` has built: nothing is fetched from elsewhere. And its notebook, which is run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build/site"
PAGES = (
    "index.html",
    "reference/config.html",
    "reference/commands.html",
    "reference/api/losses.html",
    "model-card.html",
)


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_there(name):
    assert (SITE / name).exists(), "build the site first: make docs"


def test_nothing_is_fetched_from_elsewhere():
    pages = sorted(SITE.rglob("*.html"))
    assert pages
    for page in pages:
        text = page.read_text()
        tags = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?([^\"'\s>]+)", text)
        tags += [
            re.search(r"\bhref=[\"']?([^\"'\s>]+)", tag)[1]
            for tag in re.findall(r"<link\b[^>]*>", text)
            if not re.search(r"rel=[\"']?(canonical|prev|next)", tag)
        ]
        assert not [url for url in tags if re.match(r"(https?:)?//", url)], page
    for style in SITE.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text()), style


def test_the_api_has_the_docstrings():
    text = (SITE / "reference/api/losses.html").read_text()
    assert "tversky_loss" in text and "Salehi" in text


def test_the_notebook_runs():
    nbclient, nbformat = (pytest.importorskip(name) for name in ("nbclient", "nbformat"))
    notebook = nbformat.read(ROOT / "docs/notebooks/tour.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if cell.outputs
    )
    values = [float(value) for value in re.findall(r"3-D Dice (0\.\d+|1\.0)", printed)]
    assert values and all(0.0 <= value <= 1.0 for value in values)
