"""Modules of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType


def lazy_modules(package: str, *names: str) -> tuple[Callable[[str], ModuleType], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package some of whose modules take time, or extras, to import.

    What importing such a module raises (an extra that is not installed) is raised where it is named.

    Args:
        package: its ``__name__``.
        *names: the names of these modules in it.
    """

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    def find(name: str) -> ModuleType:
        if name in names:
            return import_module(f"{package}.{name}")
        near = [] if name.startswith("_") else difflib.get_close_matches(name, list_names(), n=1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")

    return find, list_names
