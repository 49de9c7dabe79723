"""Run modules without leaving a trace in them, or in the random streams."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def untouched(*roots: nn.Module) -> Iterator[None]:
    """Run modules inside; attributes, buffers and random streams come back as they were."""
    with state_untouched(*roots), streams_untouched():
        yield


@contextmanager
def state_untouched(*roots: nn.Module) -> Iterator[None]:
    """Run modules inside on copies of their buffers; attributes and buffers come back as they were."""
    modules = [module for root in roots for module in root.modules()]
    saved = [SavedAttributes(module) for module in modules]
    copies: dict[torch.Tensor, torch.Tensor] = {}
    for module in modules:
        module.__dict__["_buffers"] = {
            name: buffer if buffer is None else copies.setdefault(buffer, buffer.detach().clone())
            for name, buffer in module._buffers.items()
        }
    try:
        yield
    finally:
        for attributes in saved:
            attributes.restore()


@contextmanager
def restored_on_failure(module: nn.Module) -> Iterator[None]:
    """Change a module inside; if that fails it comes back as it was, weights included."""
    saved = [SavedAttributes(m) for m in module.modules()]
    data = [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers())]
    try:
        yield
    except BaseException:
        for attributes in saved:
            attributes.restore()
        for tensor, before in data:
            tensor.data = before
        raise


@contextmanager
def streams_untouched() -> Iterator[None]:
    """Put the global random streams back afterwards. On the main thread only: they are the process's."""
    python_state = random.getstate()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)


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


def _holds(value: Any) -> bool:
    return type(value) in (list, dict, set, OrderedDict)


def _items(value: Any) -> list[int]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [id(part) for item in items for part in (item if isinstance(value, dict) else item[1:])]
