"""The examples run, from the first line to the last."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
SAYS = {
    "char_gpt.py": "bits per character",
    "digits_cnn.py": "grown at",
    "low_rank_and_peft.py": "PEFT LoRA",
}


def test_every_example_is_tested_and_told_of() -> None:
    assert {file.name for file in EXAMPLES} == set(SAYS)
    readme = (EXAMPLES[0].parent / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in SAYS)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_an_example_runs(file: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(file), "--quick"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[file.name] in done.stdout


# The notebooks are pages of the documentation, whose code tests/test_docs.py runs.

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {"tutorial.ipynb": "tutorial.md", "where_to_grow.ipynb": "guides/explore.md"}
SITE = "../docs"
"""Where the pages are, seen from a notebook."""


def notebook_of(page: str) -> dict[str, Any]:
    """A page of docs/ as a notebook: its Python blocks as code, the rest as text."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    folder = f"{SITE}/{page.rpartition('/')[0]}".rstrip("/")
    cells: list[dict[str, Any]] = []
    for i, part in enumerate(re.split(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)):
        source = part.strip("\n")
        if not i % 2:  # links and pictures are beside the page
            source = re.sub(r"\]\((?!https?:|#)([^)]+)\)(?:\{[^}]*\})?", rf"]({folder}/\1)", source)
        if source:
            kind = {"cell_type": "code", "execution_count": None, "outputs": []} if i % 2 else {}
            lines = source.splitlines(keepends=True)
            cells.append({"cell_type": "markdown", "id": f"cell-{i}", "metadata": {}, "source": lines} | kind)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_its_page(name: str) -> None:
    """``FXGRAFT_REGENERATE_GOLDEN=1 pytest tests/test_examples.py -k notebook`` writes it anew."""
    path, made = ROOT / "examples" / name, notebook_of(NOTEBOOKS[name])
    if os.environ.get("FXGRAFT_REGENERATE_GOLDEN"):
        path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == made, "the page has changed: see above"
    assert sum(cell["cell_type"] == "code" for cell in made["cells"]) > 2


def test_every_notebook_is_tested_and_listed() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.ipynb")} == set(NOTEBOOKS)
    readme = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in NOTEBOOKS)
