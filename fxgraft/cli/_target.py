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

from torch import Tensor, nn

from fxgraft.errors import FxGraftError


class TargetError(FxGraftError):
    """A target cannot be loaded; the message says what was expected and what was given."""


@dataclass(frozen=True)
class Target:
    """A model with one call of it, as `fxgraft.trace` takes them."""

    model: nn.Module
    example_args: tuple[Any, ...]
    example_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A model with what it learns.

    Attributes:
        model: the model.
        batches: inputs and targets to train on; inputs are a tensor, or a tuple of arguments.
        loss: of outputs and targets.
        held_out: batches to measure on.
    """

    model: nn.Module
    batches: list[tuple[Any, Any]]
    loss: Callable[[Any, Any], Any]
    held_out: list[tuple[Any, Any]]

    def loss_of(self, outputs: Any, targets: Any) -> Any:
        """The loss. Raises `TargetError` where it raises, or is no single number."""
        try:
            loss = self.loss(outputs, targets)
        except Exception as error:
            raise TargetError(
                f"target: the loss raised {type(error).__name__}: {error}. Expected a function of what the "
                f"model returns and of the targets; it was given {_form(outputs)} and {_form(targets)}"
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TargetError(
                f"target: expected the loss to return a tensor with one element; got {_form(loss)}"
            )
        return loss


def load_task(target: str) -> Task:
    """As `load`, of a callable that returns ``(model, batches, loss)``, or these and ``held_out`` batches.

    Raises:
        TargetError: as `load`.
    """
    made = _called(_found(target), target)
    is_task = isinstance(made, tuple) and 3 <= len(made) <= 4 and isinstance(made[0], nn.Module)
    if not is_task or not callable(made[2]):
        raise TargetError(
            f"target: expected {target} to return (model, batches, loss) or (model, batches, loss, "
            f"held_out): an nn.Module, pairs of inputs and targets, and a function of outputs and targets; "
            f"got {_form(made)}"
        )
    batches = list(made[1])
    held_out = list(made[3]) if len(made) == 4 else batches
    for name, given in (("batches", batches), ("held_out", held_out)):
        if not given or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in given):
            odd = next((one for one in given if not isinstance(one, (tuple, list)) or len(one) != 2), None)
            raise TargetError(
                f"target: {name} of {target}: expected one pair of inputs and targets at least, and nothing "
                f"else: [(inputs, targets), ...]; got {'none' if odd is None else _form(odd)}"
            )
    return Task(made[0], batches, made[2], held_out)


def load(target: str) -> Target:
    """Call what ``target`` names, ``module:callable`` or ``file.py:callable``, without arguments.

    The callable returns ``(model, example_args)`` or ``(model, example_args, example_kwargs)``. Modules are
    looked for from the working directory, too; a file's neighbours can be imported by it.

    Raises:
        TargetError: the target has another form, or cannot be imported, or raises, or returns other things.
    """
    made = _called(_found(target), target)
    kinds = (nn.Module, tuple, dict)
    is_made = isinstance(made, tuple) and 2 <= len(made) <= 3
    if not is_made or not all(isinstance(part, kind) for part, kind in zip(made, kinds, strict=False)):
        raise TargetError(
            f"target: expected {target} to return (model, example_args) or (model, example_args, "
            f"example_kwargs), an nn.Module, a tuple and a dict; got {_form(made)}"
        )
    return Target(*made)


def _found(target: str) -> Callable[[], Any]:
    """The callable that ``target`` names."""
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
        raise TargetError(f"target: expected {name} to be a callable; got {type(made).__name__}")
    return made  # type: ignore[no-any-return]


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
        raise TargetError(
            f"target: {place} cannot be imported: {type(error).__name__}: {error}. Expected module:callable "
            f"or file.py:callable that python can import from this folder"
        ) from error
    return module


def _look_in(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))


def _called(make: Callable[[], Any], target: str) -> Any:
    try:
        return make()
    except Exception as error:
        raise TargetError(
            f"target: {target} raised {type(error).__name__}: {error}. Expected a callable that runs without "
            f"arguments"
        ) from error


def _form(made: Any) -> str:
    if isinstance(made, Tensor):
        return f"a tensor {tuple(made.shape)} of {str(made.dtype).removeprefix('torch.')}"
    if isinstance(made, tuple):
        return f"({', '.join(type(part).__name__ for part in made)})"
    return type(made).__name__
