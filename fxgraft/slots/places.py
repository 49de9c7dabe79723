"""Places for seeds that are not in the table of slots, as they are found by what they are to another.

    "relu->fc2"     the value of ``relu`` as ``fc2`` reads it; a seed there does not affect its other readers
    "->fc2"         the input of ``fc2``: the one value that it reads
    "lstm[0]"       element 0 of what ``lstm`` returns (another name for the slot behind that element)
    "fc@*"          all calls of the module that is called at ``fc``, with one seed for all
    "h.0@"          what the module ``h.0``, whose code has no graph, returns, inside of its boundary
    "h.0@x"         the argument ``x`` of the module ``h.0``, inside of it: in front of an inserted block

The names between these signs are names of slots, or of places that are none (`Host.rejected`).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import torch.fx as fx

from fxgraft.capture import trace_operators
from fxgraft.capture.region import Region
from fxgraft.errors import SlotError
from fxgraft.slots._gradient_terms import regrouped
from fxgraft_passes import Slot
from fxgraft_passes.find_slots import slot_behind
from fxgraft_passes.metadata import metadata
from fxgraft_passes.observe import observation_of

_ELEMENT = re.compile(r"(.+)\[(\d+)\]")
ALL_CALLS = "@*"
ANOTHER = "Choose another of host.slots; print(host.slots) shows them"
"""What to do about a name that is no slot."""


def place(name: str, slots: Mapping[str, Slot], regions: Mapping[str, Region]) -> Slot | None:
    """The place of that name; None for a name without one of the signs.

    Raises:
        SlotError: there is no such place, or no seed may go there; with the reason.
    """
    places = _Places(slots, regions)
    if "->" in name:
        return places.edge(name)
    if element := _ELEMENT.fullmatch(name):
        return places.element(element[1], int(element[2]))
    if name.endswith(ALL_CALLS):
        return places.all_calls(name)
    return places.argument(*name.rsplit("@", 1)) if "@" in name else None


class _Places:
    def __init__(self, slots: Mapping[str, Slot], regions: Mapping[str, Region]):
        self._slots = slots
        self._regions = regions

    @cached_property
    def _names(self) -> dict[fx.Node, str]:
        return {slot.node: slot.name for slot in self._slots.values()}

    def edge(self, name: str) -> Slot:
        """One reader of a value."""
        left, _, right = (part.strip() for part in name.partition("->"))
        region, reader = self._find(right)
        read = [node for node in reader.all_input_nodes if node.op != "get_attr"]
        if left:
            _, value = self._find(left)
            if value not in read:
                readers = ", ".join(repr(self._name(node)) for node in value.users) or "none"
                raise SlotError(
                    f"{name!r}: {right!r} does not read {left!r}; it is read by {readers}. Name a reader"
                )
        else:
            value = self._only(name, [node for node in read if _is_tensor(node)])
        found = slot_behind(value, name, region, reader)
        if isinstance(found, str):
            raise SlotError(f"{name!r} is no slot: the value {found}. {ANOTHER}")
        if found.copy:
            raise SlotError(
                f"{name!r} is no slot: the value is changed in place later, for all its readers. {ANOTHER}"
            )
        if (other := regrouped(value, reader, self._regions[region], self._regions)) is not None:
            raise SlotError(
                f"{name!r} is no slot: {right!r} may use the value several times, and {other} reads it "
                f"later: with a graft in between its gradients would be summed up in another order. {ANOTHER}"
            )
        return found

    def element(self, name: str, index: int) -> Slot:
        """One element of a value that is a tuple or a list."""
        _, node = self._find(name)
        taken = [
            user
            for user in node.users
            if user.target is operator.getitem and user.args[0] is node and user.args[1] == index
        ]
        slots = [self._slots[self._names[user]] for user in taken if user in self._names]
        if len(slots) == 1:
            return slots[0]
        if not slots:
            why = metadata(taken[0])["no_slot"] if taken else "is not read"
            raise SlotError(f"'{name}[{index}]' is no slot: the element {why}. {ANOTHER}")
        raise SlotError(
            f"'{name}[{index}]' is read at several places; expected one of {', '.join(s.name for s in slots)}"
        )

    def all_calls(self, name: str) -> Slot:
        """All calls of one module."""
        region, node = self._find(name.removesuffix(ALL_CALLS))
        if node.op != "call_module":
            raise SlotError(f"{name!r}: expected a call of a module; got {node.target}")
        module = self._regions[region].module.get_submodule(str(node.target))
        calls = [
            (where, call)
            for where, known in self._regions.items()
            for call in known.base.find_nodes(op="call_module")
            if known.module.get_submodule(str(call.target)) is module
        ]
        if any(where != region for where, _ in calls):
            raise SlotError(
                f"{name!r}: its calls are in several regions, {sorted({w for w, _ in calls})}. Choose one "
                f"call by its own name"
            )
        none = next((call for _, call in calls if call not in self._names), None)
        if none is not None:
            raise SlotError(
                f"{name!r}: the call {self._name(none)!r} is no slot: it {metadata(none)['no_slot']}. "
                f"Choose one call by its own name"
            )
        first, *others = (self._slots[self._names[call]] for _, call in calls)
        if any((other.shape, other.dtype) != (first.shape, first.dtype) for other in others):
            shapes = ", ".join(str(tuple(slot.shape)) for slot in (first, *others))
            raise SlotError(f"{name!r}: expected calls with one shape and dtype; got {shapes}")
        copies = any(slot.copy for slot in (first, *others))
        return replace(first, name=name, copy=copies, others=tuple(slot.node for slot in others))

    def argument(self, module: str, parameter: str) -> Slot:
        """An argument of a module, for what stands in front of that module."""
        region = self._regions.get(module)
        inputs = () if region is None else region.form.inputs
        name = next((known.name for known in inputs if known.expression == parameter), None)
        node = None
        if region is not None and region.is_boundary and not parameter:
            node = next((n for n in region.base.nodes if n.target is trace_operators.run), None)
        elif region is not None:
            node = next((n for n in region.base.nodes if n.op == "placeholder" and n.target == name), None)
        seen = None if node is None else observation_of(node)
        if node is None or seen is None or not _is_tensor(node):
            raise SlotError(
                f"'{module}@{parameter}': expected a module with a graph, and an argument that is a tensor"
            )
        return Slot(
            f"{module}@{parameter}",
            node,
            seen.shape,
            seen.dtype,
            seen.device,
            seen.channels_last,
            seen.written_later,
            module,
        )

    def _find(self, name: str) -> tuple[str, fx.Node]:
        """The region and the node of a slot, or of a place that is none."""
        if name in self._slots:
            return self._slots[name].region, self._slots[name].node
        for region in self._regions.values():
            for node in region.base.nodes:
                if metadata(node).get("qualified_name") == name:
                    return region.name, node
        raise SlotError(f"there is no {name!r} in the host; host.slots and host.rejected name what there is")

    def _name(self, node: fx.Node) -> str:
        return self._names.get(node) or metadata(node).get("qualified_name") or node.name

    def _only(self, name: str, values: list[fx.Node]) -> fx.Node:
        if len(values) == 1:
            return values[0]
        edges = ", ".join(repr(f"{self._name(node)}{name}") for node in values) or "none"
        raise SlotError(f"{name!r}: expected a place that reads one tensor; it reads {edges}")


def _is_tensor(node: fx.Node) -> bool:
    seen = observation_of(node)
    return seen is not None and seen.kind == "Tensor" and seen.dtype.is_floating_point
