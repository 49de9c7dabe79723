"""The pictures in the docs show what the code is."""

from __future__ import annotations

import html
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from fxgraft import Stage

DOCS = Path(__file__).parent.parent / "docs"
EDGE = re.compile(r"<title>([\w.]+)->([\w.]+)</title>")


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "pictures" / f"{name}.py"))


@pytest.mark.parametrize("stage", Stage)
def test_the_picture_of_a_stage_is_what_the_script_draws(stage: Stage) -> None:
    committed = (DOCS / "images" / "stages" / f"{stage.name.lower()}.svg").read_text(encoding="utf-8")
    assert committed == script("stages")["draw"](stage), "run: python docs/pictures/stages.py"


def test_the_picture_of_the_architecture_has_the_imports_of_the_code() -> None:
    drawn = html.unescape((DOCS / "images" / "architecture.svg").read_text(encoding="utf-8"))
    packages = script("architecture")["packages"]()
    assert set(EDGE.findall(drawn)) == set(packages.edges), "run: python docs/pictures/architecture.py"
