"""Importing fxgraft imports nothing that only some users need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = [
    "accelerate", "dacite", "hypothesis", "jinja2", "lightning", "matplotlib", "mkdocs", "peft", "plotly",
    "pydot", "rich", "selenium", "sklearn", "tensorboard", "transformers", "typer", "wandb", "yaml",
]  # fmt: skip
HEAVY = ["networkx", "sympy", "torch._dynamo", "torch._inductor.compile_fx", "torch.distributed.fsdp"]


def imported(program: str) -> set[str]:
    """The modules that a program imports beyond those of ``import torch``, in a fresh interpreter."""
    code = f"import sys, json, torch; before = set(sys.modules); {program}"
    code += "; print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_is_light() -> None:
    found = imported("import fxgraft")
    assert "fxgraft.manager.manager" in found
    tops = {name.split(".")[0] for name in found}
    assert tops.isdisjoint(OPTIONAL), tops & set(OPTIONAL)
    assert found.isdisjoint(HEAVY), found & set(HEAVY)


@pytest.mark.parametrize(
    ("room", "needs"),
    [
        ("report", set()),
        ("config", set()),
        ("cost", set()),
        ("training", set()),
        ("controllers", set()),
        ("report.screen", {"rich"}),
        ("report.page", {"jinja2", "plotly"}),
        ("integrations.peft", {"peft", "transformers", "accelerate", "yaml", "jinja2"}),
    ],
)
def test_a_room_needs_its_extra_only(room: str, needs: set[str]) -> None:
    tops = {name.split(".")[0] for name in imported(f"import fxgraft.{room}")}
    assert tops & set(OPTIONAL) <= needs
