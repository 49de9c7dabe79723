"""What the first call of a model sets once and for all.

A classifier of transformers sets ``config.problem_type`` in its first call with labels; a model of it that
returns what its parts compute installs hooks in its first call, and a flag that says so. Later calls find
both and set nothing: they are of another form than the first one. A trace is of that later form. The first
call of a host is the model's own, by its own code, so that it sets what it would have set; what grew runs
from the second call on. A run that goes on from a file has had its first call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxgraft_passes.snapshot import Snapshot

_PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class Completion:
    """What one run of the example call has set, of a model that had not run.

    Attributes:
        attributes: object, name and value of attributes that were missing or None.
        hooks: register of a module, and the entries that were added.
    """

    attributes: tuple[tuple[object, str, Any], ...] = ()
    hooks: tuple[tuple[dict[Any, Any], dict[Any, Any]], ...] = ()

    @classmethod
    def since(cls, root: nn.Module, before: Snapshot) -> Completion:
        """What was set in ``root`` since that snapshot."""
        attributes = tuple(before.set_since())
        if not attributes:  # hooks that no flag goes with come anew in each call
            return cls()
        registers = {id(register) for module in root.modules() for register in _hooks(module)}
        added = tuple((held, new) for held, new in before.added_since() if id(held) in registers)
        return cls(attributes, added)

    def apply(self) -> None:
        """Set it."""
        for holder, name, value in self.attributes:
            vars(holder)[name] = value
        for register, new in self.hooks:
            register.update(new)


class FirstCallState:
    """What is set once and for all in a host, by the paths of what holds it.

    Args:
        root: the traced model.
        found: what the example call has set.
    """

    def __init__(self, root: nn.Module | None = None, found: Completion | None = None):
        found = found or Completion()
        held = {(id(holder), name) for holder, name, _ in found.attributes}
        self._places: list[tuple[str, str, str]] = []
        for path, module in root.named_modules() if root is not None and held else ():
            for attribute, holder in [("", module), *vars(module).items()]:
                names = [name for known, name in held if known == id(holder)]
                self._places += [(path, attribute, name) for name in names]
                held -= {(id(holder), name) for name in names}
        self._hooks = found.hooks

    @property
    def names(self) -> frozenset[str]:
        """The names of the attributes that are set."""
        return frozenset(name for _, _, name in self._places)

    def awaited(self, root: nn.Module) -> frozenset[str]:
        """The names of those that are not set by now."""
        return frozenset(name for _, holder, name in self._holders(root) if vars(holder).get(name) is None)

    def values(self, root: nn.Module) -> dict[str, Any]:
        """What has been set by now: place -> value. Numbers and texts; a dtype by its name."""
        found: dict[str, Any] = {}
        for place, holder, name in self._holders(root):
            value = vars(holder).get(name)
            if isinstance(value, torch.dtype):
                found[place] = {"dtype": str(value).removeprefix("torch.")}
            elif isinstance(value, _PLAIN):
                found[place] = value
        return found

    def restore(self, undo: ExitStack, root: nn.Module, values: Mapping[str, Any]) -> None:
        """Put ``root`` into the state after its first call, which set those ``values``.

        Args:
            undo: gets the callbacks that revert it.
            root: the traced model.
            values: as `values` gave them.
        """
        for place, holder, name in self._holders(root):
            if place in values and vars(holder).get(name) is None:
                before = dict(vars(holder))
                undo.callback(_put_back, vars(holder), name, before)
                vars(holder)[name] = _value(values[place])
        for register, new in self._hooks if values else ():
            undo.callback(_put_back_all, register, dict(register))
            register.update(new)

    def _holders(self, root: nn.Module) -> Iterator[tuple[str, object, str]]:
        for path, attribute, name in self._places:
            module = root.get_submodule(path)
            holder = vars(module).get(attribute) if attribute else module
            if hasattr(holder, "__dict__"):
                yield ".".join(part for part in (path, attribute, name) if part), holder, name


def _value(saved: Any) -> Any:
    if isinstance(saved, dict):
        found = getattr(torch, str(saved["dtype"]))
        if not isinstance(found, torch.dtype):
            raise ValueError(f"expected the name of a dtype; got {saved['dtype']!r}")
        return found
    if not isinstance(saved, _PLAIN):
        raise ValueError(f"expected a number or a text; got {saved!r}")
    return saved


def _put_back(held: dict[str, Any], name: str, before: Mapping[str, Any]) -> None:
    if name in before:
        held[name] = before[name]
    else:
        held.pop(name, None)


def _put_back_all(register: dict[Any, Any], before: Mapping[Any, Any]) -> None:
    register.clear()
    register.update(before)


def _hooks(module: nn.Module) -> Iterator[dict[Any, Any]]:
    for name, register in vars(module).items():
        if "hook" in name and isinstance(register, dict):
            yield register
