"""The public names and their signatures: a change of one is seen here, and belongs into CHANGELOG.md.

``FXGRAFT_REGENERATE_GOLDEN=1 pytest tests/test_public_api.py`` writes ``tests/public_api.txt`` anew.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "public_api.txt"
MODULES = [
    "fxgraft",
    "fxgraft.averaging",
    "fxgraft.blueprints",
    "fxgraft.commands",
    "fxgraft.config",
    "fxgraft.controllers",
    "fxgraft.cost",
    "fxgraft.errors",
    "fxgraft.explore",
    "fxgraft.explore.presets",
    "fxgraft.gates",
    "fxgraft.integrations.accelerate",
    "fxgraft.integrations.hugging_face",
    "fxgraft.integrations.lightning",
    "fxgraft.integrations.peft",
    "fxgraft.report",
    "fxgraft.report.page",
    "fxgraft.schedules",
    "fxgraft.telemetry",
    "fxgraft.testing",
    "fxgraft.training",
    "fxgraft_passes",
]


def public(module: Any) -> list[str]:
    """What the module says is public, or what it defines and does not hide."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    )


def lines_of(name: str, value: Any) -> Iterator[str]:
    """The name, and below a class its public methods and properties."""
    if inspect.isclass(value):
        yield f"class {name}{signature(value)}"
        for member, found in sorted(vars(value).items()):
            if not member.startswith("_"):
                is_callable = callable(found) or isinstance(found, (classmethod, staticmethod))
                yield f"    {member}{signature(getattr(value, member)) if is_callable else ''}"
    elif callable(value):
        yield f"def {name}{signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


def signature(value: Any) -> str:
    """Names, kinds and defaults of the parameters; not their annotations, which may be said better."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    text = str(found.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    return text if " at 0x" not in text else "(...)"


def the_api() -> str:
    parts = []
    for module in map(importlib.import_module, MODULES):
        parts.append(f"# {module.__name__}")
        for name in public(module):
            parts += lines_of(name, getattr(module, name))
        parts.append("")
    return "\n".join(parts)


def test_no_public_name_changes_unannounced() -> None:
    if os.environ.get("FXGRAFT_REGENERATE_GOLDEN"):
        GOLDEN.write_text(the_api(), encoding="utf-8")
    assert the_api() == GOLDEN.read_text(encoding="utf-8"), "say it in CHANGELOG.md, then regenerate"
