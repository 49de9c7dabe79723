r"""The slots of a host, and how to choose among them without spelling out each name.

    host.slots["layer1.0.relu"]                       one, by name
    host.slots.select("layer1.*")                     by glob; ``*`` crosses dots
    host.slots.select(re.compile(r"layer[12]\.\d+"))  by a regular expression that matches the whole name
    host.slots.select(["q_proj", "v_proj"])           by the ends of names, as PEFT's ``target_modules``
    host.slots.select(nn.Conv2d)                      behind the calls of modules of a type
    host.slots.select([F.linear, F.relu])             behind the last of a chain of operations
    host.slots.select(lambda s: s.shape[-1] > 64)     by a predicate

What is selected is again a table of slots, in execution order, and can be narrowed further. Nothing
selected is an error, with the nearest names.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.fx as fx
from torch import nn

from fxgraft.capture import trace_operators
from fxgraft.capture.region import Region
from fxgraft.errors import SlotError
from fxgraft.util.tables import TableMapping
from fxgraft_passes import Slot

Choice = str | re.Pattern[str] | type | Collection[Any] | Callable[[Slot], bool]
"""What `Slots.select` takes."""


NO_SLOTS = (
    "the host has no slots: none of the values inside of the model can be grown at. Trace a model of one "
    "layer as nn.Sequential(layer); host.explain() tells what became of each module"
)


class Slots(TableMapping[Slot]):
    """Name -> slot, in execution order; prints as a table.

    Args:
        slots: all of them, or those selected.
        regions: of the host, by name.
        rejected: the places of the host that are no slots, with the reason.
    """

    headers = ("slot", "value", "behind")

    def __init__(self, slots: Mapping[str, Slot], regions: Mapping[str, Region], rejected: Mapping[str, str]):
        super().__init__(slots)
        self._regions = regions
        self._rejected = rejected

    def _row(self, name: str, slot: Slot) -> tuple[object, ...]:
        value = f"{str(slot.dtype).removeprefix('torch.')} {tuple(slot.shape)}"
        return name, value, _at(self, slot)

    def select(self, choice: Choice) -> Slots:
        """The slots that ``choice`` names, in execution order.

        Args:
            choice:
                - a string: a name, or a glob as of ``fnmatch`` (``*`` matches dots too);
                - a compiled regular expression, which has to match the whole name;
                - strings: each a name or its end behind a dot, or that of the module which is called there
                  (so ``["fc"]`` takes the second call of ``block.fc`` too, whose slot is ``block.fc_1``);
                - a module class, or a tuple of some, as for `isinstance`: slots behind calls of such modules;
                - a list of operations, each a function, a module class, or the name of a method:
                  slots behind the last one, where it reads the one before, and so on. ``F.relu`` stands
                  for ``torch.relu``, ``Tensor.relu``, their in-place forms and ``nn.ReLU`` as well;
                - a predicate on slots.

        Raises:
            SlotError: nothing is selected; with the nearest names, or what there is.
            TypeError: ``choice`` is none of these, or a predicate that gives no truth value.
        """
        if not self:
            raise SlotError(NO_SLOTS)
        matches, near = self._reading_of(choice)
        found = {name: slot for name, slot in self.items() if matches(slot)}
        if not found:
            raise SlotError(f"no slot of {len(self)} is selected by {_shown(choice)}{near()}")
        return Slots(found, self._regions, self._rejected)

    def _reading_of(self, choice: Any) -> tuple[Callable[[Slot], bool], Callable[[], str]]:
        """Whether a slot matches ``choice``; and what to say where none does."""
        if isinstance(choice, str):
            if choice in self:
                return lambda slot: slot.name == choice, str
            return lambda slot: fnmatch.fnmatchcase(slot.name, choice), lambda: self._near([choice])
        if isinstance(choice, re.Pattern):
            return lambda slot: choice.fullmatch(slot.name) is not None, lambda: self._near([choice.pattern])
        if isinstance(choice, type) or (isinstance(choice, tuple) and _are_types(choice)):
            return lambda slot: isinstance(self.module_at(slot), choice), self._types
        if isinstance(choice, Collection) and choice:
            return self._reading_of_several(choice)
        if callable(choice):
            return lambda slot: _truth(choice, slot), str
        raise TypeError(
            f"choice: expected a name, a pattern, names, a module class, operations or a predicate; "
            f"got {choice!r}"
        )

    def _reading_of_several(
        self, choices: Collection[Any]
    ) -> tuple[Callable[[Slot], bool], Callable[[], str]]:
        if all(isinstance(choice, str) for choice in choices):
            return lambda slot: self._ends_in(slot, choices), lambda: self._near(choices)
        if not isinstance(choices, list) or not all(isinstance(c, str) or callable(c) for c in choices):
            raise TypeError(
                f"choice: expected names, a tuple of classes, or a list of operations; got {choices!r}"
            )
        return lambda slot: self._follows(slot.node, slot.region, choices), self._operations

    # What there is at a slot

    def module_at(self, slot: Slot) -> nn.Module | None:
        """The module whose call the slot is behind; None behind an operation."""
        region = self._regions[slot.region].module
        if slot.node.target is trace_operators.run:  # of a module that code without a graph calls
            return region
        return region.get_submodule(str(slot.node.target)) if slot.node.op == "call_module" else None

    def _ends_in(self, slot: Slot, ends: Collection[str]) -> bool:
        names = [slot.name]
        if slot.node.op == "call_module":
            names.append(f"{slot.region}.{slot.node.target}".lstrip("."))
        return any(name == end or name.endswith(f".{end}") for name in names for end in ends)

    def _follows(self, node: fx.Node, region: str, chain: list[Any]) -> bool:
        """Whether ``node`` is the last of a chain of operations."""
        *before, last = chain
        if not self._is_call_of(node, region, last):
            return False
        return not before or any(self._follows(n, region, before) for n in node.all_input_nodes)

    def _is_call_of(self, node: fx.Node, region: str, operation: Any) -> bool:
        if node.op == "call_module":
            module = self._regions[region].module.get_submodule(str(node.target))
            if isinstance(operation, type):
                return isinstance(module, operation)
            return _plain(type(module).__name__) == _plain(_name(operation))
        if node.op not in ("call_function", "call_method") or isinstance(operation, type):
            return False
        return node.target is operation or (
            _is_of_torch(operation) and _plain(_name(node.target)) == _plain(_name(operation))
        )

    # What to say where nothing was found

    def _near(self, asked: Collection[str]) -> str:
        refused = [
            f"{name!r} {reason}"
            for name, reason in self._rejected.items()
            if any(fnmatch.fnmatchcase(name, end) or name.endswith(f".{end}") for end in asked)
        ]
        if refused:
            return f"; what it names is no slot: {'; '.join(refused[:3])}"
        found: list[str] = []
        for text in (re.sub(r"[*?\\^$]+", "", text).strip(".") for text in asked):
            last = {name.rpartition(".")[2]: name for name in reversed(list(self))}
            names = {name: name for name in self} | ({} if "." in text else last)
            found += (names[near] for near in difflib.get_close_matches(text, names, n=3, cutoff=0.5))
        found = list(dict.fromkeys(found)) or list(self)
        return f"; did you mean {', '.join(map(repr, found[:3]))}?"

    def _types(self) -> str:
        modules = map(self.module_at, self.values())
        kinds = Counter(type(module).__name__ for module in modules if module is not None)
        return f"; there are slots behind {', '.join(kinds) or 'no module'}"

    def _operations(self) -> str:
        names = Counter(_at(self, slot) for slot in self.values())
        return f"; there are slots behind {', '.join(names)}"


def _are_types(choice: tuple[Any, ...]) -> bool:
    return bool(choice) and all(isinstance(item, type) for item in choice)


def _at(slots: Slots, slot: Slot) -> str:
    module = slots.module_at(slot)
    return type(module).__name__ if module is not None else _name(slot.node.target)


def _truth(predicate: Callable[[Slot], Any], slot: Slot) -> bool:
    verdict = None if _is_of_torch(predicate) else predicate(slot)
    if not isinstance(verdict, bool):
        raise TypeError(
            f"{_name(predicate)}: expected a predicate, which gives True or False for a slot; "
            f"for slots behind an operation pass a list, [{_name(predicate)}]"
        )
    return verdict


def _is_of_torch(operation: Any) -> bool:
    """Whether it means an operation in any form: one of torch, or the name of one."""
    if isinstance(operation, str):
        return True
    name = getattr(operation, "__name__", "")
    places = (torch, nn.functional, torch.Tensor)
    return any(getattr(place, name, None) is operation for place in places)


def _name(operation: Any) -> str:
    return operation if isinstance(operation, str) else getattr(operation, "__name__", repr(operation))


def _plain(name: str) -> str:
    """The same for ``relu``, ``relu_`` and ``ReLU``, for ``layer_norm`` and ``LayerNorm``."""
    return name.lower().replace("_", "")


def _shown(choice: Any) -> str:
    if isinstance(choice, re.Pattern):
        return f"the pattern {choice.pattern!r}"
    if isinstance(choice, (str, type)) or not isinstance(choice, Collection):
        return repr(choice) if isinstance(choice, str) else _name(choice)
    return f"[{', '.join(repr(c) if isinstance(c, str) else _name(c) for c in choice)}]"
