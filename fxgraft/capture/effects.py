"""What a module's code does beside computing its result, and a graph would not do.

A trace that met any of it is right in the example run only, and must be refused.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from fxgraft_passes.errors import FxGraftError


class SideEffectError(FxGraftError):
    """The code does what a graph cannot; the message says what, as in "the module <message>"."""


class Effects:
    """Watches the code of one module, from one operation to the next."""

    def __init__(self, module: nn.Module):
        self._attributes = SavedAttributes(module)
        self._contexts = _contexts()
        self.resume()

    def check(self, draws: bool = True) -> None:
        """Raise `SideEffectError` if the code did anything since `resume`; look at random ``draws`` too?"""
        for (what, before), (_, now) in zip(self._contexts, _contexts(), strict=True):
            if before != now:
                raise SideEffectError(f"switches {what} in its forward")
        if draws and random.getstate() != self._random:
            raise SideEffectError("draws from Python's random module in its forward")
        if draws and not _same_numpy(self._numpy, np.random.get_state()):
            raise SideEffectError("draws from NumPy's global random stream in its forward")

    def resume(self) -> None:
        """From here on it is the module's own code that runs."""
        self._random = random.getstate()
        self._numpy = np.random.get_state()

    def check_attributes(self) -> None:
        """Raise `SideEffectError` if the code changed an attribute of its module."""
        if name := self._attributes.changed():
            raise SideEffectError(f"changes its attribute {name!r} in its forward")

    def undo(self) -> None:
        """Take back what the code did to the attributes of its module."""
        self._attributes.restore()


class SavedAttributes:
    """The attributes of a module, with what is in those that are containers."""

    def __init__(self, module: nn.Module):
        self._module = module
        self._state = dict(module.__dict__)
        self._contents = {name: value.copy() for name, value in self._state.items() if _holds(value)}

    def changed(self) -> str | None:
        """The name of an attribute that is not what it was, or None."""
        now = self._module.__dict__
        for name in {**self._state, **now}:
            if name not in self._state or name not in now or now[name] is not self._state[name]:
                return name
            if name in self._contents and _items(now[name]) != _items(self._contents[name]):
                return next(self._changed_items(name), name)
        return None

    def _changed_items(self, name: str) -> Iterator[str]:
        """The names of parameters, buffers and modules that changed: they are in one dictionary each."""
        before, now = self._contents[name], self._state[name]
        if name in ("_parameters", "_buffers", "_modules"):
            yield from (key for key in {**before, **now} if before.get(key) is not now.get(key))

    def restore(self) -> None:
        """Put everything back."""
        self._module.__dict__.clear()
        self._module.__dict__.update(self._state)
        for name, items in self._contents.items():
            container = self._state[name]
            if isinstance(container, list):
                container[:] = items
            else:
                container.clear()
                container.update(items)


@contextmanager
def effects_undone(root: nn.Module) -> Iterator[None]:
    """Run modules inside; what their code kept in containers, or drew from NumPy, is taken back."""
    saved = [SavedAttributes(module) for module in root.modules()]
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
        for attributes in saved:
            attributes.restore()


def _holds(value: Any) -> bool:
    return type(value) in (list, dict, set, OrderedDict)


def _items(value: Any) -> list[int]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [id(part) for item in items for part in (item if isinstance(value, dict) else item[1:])]


def _contexts() -> tuple[tuple[str, Any], ...]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (
        ("autocast", tuple(map(torch.is_autocast_enabled, ("cpu", device)))),
        ("the autocast dtype", tuple(map(torch.get_autocast_dtype, ("cpu", device)))),
        ("inference mode", torch.is_inference_mode_enabled()),
        ("the default dtype", torch.get_default_dtype()),
    )


def _same_numpy(a: Any, b: Any) -> bool:
    return a[2:] == b[2:] and bool((a[1] == b[1]).all())
