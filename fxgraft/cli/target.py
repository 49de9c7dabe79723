"""What a command of the command line works on: a callable that makes a model and an example call."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fxgraft.errors import FxGraftError


class TargetError(FxGraftError):
    """A target cannot be loaded; the message says what was expected and what was given."""


@dataclass(frozen=True)
class Target:
    """A model with one call of it, as `fxgraft.trace` takes them."""

    model: nn.Module
    example_args: tuple[Any, ...]
    example_kwargs: dict[str, Any] = field(default_factory=dict)


def load(target: str) -> Target:
    """Call what ``target`` names, ``module:callable`` or ``file.py:callable``, without arguments.

    The callable returns ``(model, example_args)`` or ``(model, example_args, example_kwargs)``. Modules are
    looked for from the working directory, too; a file's neighbours can be imported by it.

    Raises:
        TargetError: the target has another form, or cannot be imported, or raises, or returns other things.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise TargetError(f"target: expected module:callable or file.py:callable; got {target!r}")
    module = _imported(place)
    made: Any = module
    try:
        for part in name.split("."):
            made = getattr(made, part)
    except AttributeError:
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise TargetError(f"target: {place} has no {name!r}; it has: {', '.join(there) or 'none'}") from None
    if not callable(made):
        raise TargetError(f"target: expected {name} to be a callable; it is a {type(made).__name__}")
    return _called(made, target)


def _imported(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            _look_in(Path.cwd())
            return importlib.import_module(place)
        path = Path(place).resolve()
        _look_in(path.parent)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:
        raise TargetError(f"target: {place} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _look_in(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))


def _called(make: Callable[[], Any], target: str) -> Target:
    try:
        made = make()
    except Exception as error:
        raise TargetError(f"target: {target} raised {type(error).__name__}: {error}") from error
    kinds = (nn.Module, tuple, dict)
    is_made = isinstance(made, tuple) and 2 <= len(made) <= 3
    if not is_made or not all(isinstance(part, kind) for part, kind in zip(made, kinds, strict=False)):
        given = f"({', '.join(type(part).__name__ for part in made)})" if is_made else type(made).__name__
        raise TargetError(
            f"target: expected {target} to return (model, example_args) or (model, example_args, "
            f"example_kwargs), an nn.Module, a tuple and a dict; got {given}"
        )
    return Target(*made)
