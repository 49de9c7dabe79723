"""What became of each module of a model: traced or not and why, its slots, its guards, its fallbacks.

`Host.explain` gives an `Explanation`: print it for a tree, or take its ``to_dict()``::

    Model: 12 slots; 3 of 4 modules with code of their own are traced; 0 calls fell back
    Model: traced, 5 slots, 1 value is none
    ├─ encoder (Encoder): traced, 4 slots
    │     guards: mask is None, scale == 0.5
    │  └─ 0 … 2 (Linear, 3 alike): a node of the graph around it
    └─ gate (Gate): not traced: branches on gt, which depends on the input
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from fxgraft.host._explanation_text import tree

if TYPE_CHECKING:
    from fxgraft.host.host import Host


@dataclass(frozen=True)
class ModuleReport:
    """What is known of one module.

    Attributes:
        name: qualified; ``""`` is the root.
        kind: its class.
        status: ``"traced"``: its code is a graph. ``"boundary"``: its result is a slot, and its code has
            no graph or is torch's own. ``"left out"``: its result would be one, but for ``rejected``.
            ``"not traced"``. ``"node"``: torch's own, in the graph around it.
            ``"uncalled"``: no graph calls it. ``"container"``: it has no code. ``"shared"``: it is at an
            earlier name too, and is shown there.
        reason: why its code has no graph, as in "it <reason>"; the earlier name of one that is shared.
        is_node: whether it is a node of the graph around it.
        slots: the names of the slots in its graph.
        rejected: the values of its graph that are no slots -> why.
        inputs: what its graph takes, as expressions of the arguments of a call.
        guards: what holds for the calls that run its graph; others fall back to its own ``forward``.
        fallbacks: how many calls did.
        seeds: the names of the grafts in it.
        children: the modules in it.
    """

    name: str
    kind: str
    status: str
    reason: str = ""
    is_node: bool = False
    slots: tuple[str, ...] = ()
    rejected: Mapping[str, str] = dataclasses.field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    guards: tuple[str, ...] = ()
    fallbacks: int = 0
    seeds: tuple[str, ...] = ()
    children: tuple[ModuleReport, ...] = ()

    def walk(self) -> Iterator[ModuleReport]:
        """This and all that is below, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class Explanation:
    """What became of a whole model; ``str`` gives a tree.

    Attributes:
        root: the report of the model, with those of its modules below.
        uncompared: why its graphs were not compared with the code that they were traced from, in values and
            gradients; empty where they were.
    """

    root: ModuleReport
    uncompared: str = ""

    @property
    def modules(self) -> Mapping[str, ModuleReport]:
        """Qualified name -> report."""
        return {report.name: report for report in self.root.walk()}

    @property
    def slots(self) -> int:
        """How many slots the model has."""
        return sum(len(report.slots) for report in self.root.walk())

    @property
    def fallbacks(self) -> int:
        """How many calls of modules ran without the seeds there."""
        return sum(report.fallbacks for report in self.root.walk())

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries, lists, strings and numbers (for JSON)."""
        return {
            "slots": self.slots,
            "fallbacks": self.fallbacks,
            "uncompared": self.uncompared,
            "root": dataclasses.asdict(self.root),
        }

    def __str__(self) -> str:
        return tree(self)

    __repr__ = __str__


def explain(host: Host, root: nn.Module, uncompared: str = "") -> Explanation:
    """Report what became of each module of ``root``, the traced model of ``host``."""
    slots: dict[str, list[str]] = {}
    for name, slot in host.slots.items():
        slots.setdefault(slot.region, []).append(name)
    known: dict[nn.Module, str] = {}
    nodes = _nodes(host)

    def report(name: str, module: nn.Module) -> ModuleReport:
        if module in known:
            return ModuleReport(name, type(module).__name__, "shared", known[module])
        known[module] = name
        children = [
            report(f"{name}.{key}" if name else key, child)
            for key, child in module._modules.items()
            if child is not None
        ]
        alone = _alone(host, name, module, slots.get(name, ()), module in nodes)
        return dataclasses.replace(alone, children=tuple(children))

    return Explanation(report("", root), uncompared)


def _nodes(host: Host) -> set[nn.Module]:
    """The modules that are nodes of a graph."""
    found = set()
    for region in host.regions.values():
        for node in region.base.find_nodes(op="call_module"):
            with suppress(AttributeError):  # one that was taken out since
                found.add(region.module.get_submodule(str(node.target)))
    return found


def _alone(host: Host, name: str, module: nn.Module, slots: Iterable[str], is_node: bool) -> ModuleReport:
    region, reason, kind = host.regions.get(name), host.opaque.get(name, ""), type(module).__name__
    if region is None:
        has_code = getattr(type(module), "forward", None) is not nn.Module.forward
        other = "node" if is_node else "uncalled" if has_code else "container"
        why = {name: host.left_out[name]} if name in host.left_out else {}
        status = "not traced" if reason and has_code else "left out" if why else other
        return ModuleReport(name, kind, status, reason, is_node, rejected=why)
    placements = host.structure.by_region.get(name, ())
    return ModuleReport(
        name,
        kind,
        "boundary" if region.is_boundary else "traced",
        reason,
        is_node,
        tuple(slots),
        dict(region.rejected),
        tuple(known.expression for known in region.form.inputs),
        tuple(region.form.readable),
        region.fallbacks,
        tuple(placement.seed for placement in placements),
    )
