"""The sources that tests read, parsed once."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax of a source file. It is shared: do not change it."""
    return ast.parse(path.read_text(encoding="utf-8"))
