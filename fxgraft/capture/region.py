"""A region: one module, the call that it was traced under, its graph, and the ``forward`` that runs."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from types import MappingProxyType, MethodType
from typing import Any

import torch.fx as fx
from torch import nn

from fxgraft.capture import trace_operators
from fxgraft.capture._flat import flatten, unflatten
from fxgraft.capture._inserted import arguments, without_graph
from fxgraft.capture._preconditions import with_conditions
from fxgraft.capture.call_form import CallForm
from fxgraft.capture.codegen import Generated, generate
from fxgraft.capture.fallback import COUNTER, new_counter, set_expected_form
from fxgraft.capture.merge import merge, merged_form
from fxgraft_passes import (
    FindSlots,
    Germinate,
    Graft,
    GraftSpec,
    Phase,
    Slot,
    SplitEdge,
    rejections_of,
    slots_of,
)
from fxgraft_passes.base import copy_graph
from fxgraft_passes.graft import SEEDS
from fxgraft_passes.metadata import metadata
from fxgraft_passes.naming import OWN_FORWARD

MAX_KNOWN = 64
"""How many generated forwards a region keeps; the oldest goes first, and is generated again if needed."""


@dataclass(frozen=True)
class Wiring:
    """One graft of a region: behind which node, and how. Says nothing of which seed it is.

    Attributes:
        node: of the region's graph; in another region that is merged into it, ``region:node``; where one
            reader of it is meant, ``node->reader``.
        spec: the rest.
        source: likewise the node that a branch reads, or None.
        others: further nodes that the seed stands behind.
    """

    node: str
    spec: GraftSpec
    source: str | None = None
    others: tuple[str, ...] = ()


class Region:
    """A module of the host whose ``forward`` was traced as a graph.

    While it has no graft the module runs the ``forward`` of its class: nothing is installed.

    Attributes:
        name: the module's qualified name; ``""`` is the root.
        module: the module itself, of the host's tree.
        traced_class: its class when it was traced.
        form: the form of the calls for which the graph is valid.
        base: the graph without grafts. Never changed.
    """

    def __init__(self, name: str, module: nn.Module, form: CallForm, base: fx.Graph):
        self.name = name
        self.module = module
        self.traced_class = type(module)
        self.form = form
        self.base = base
        self._live: Generated | None = None
        self._fallbacks = 0  # under earlier forwards
        self._known: dict[object, Generated] = {}
        FindSlots(region=name).rewrite(base)
        set_expected_form(module, name, form)

    @property
    def graph(self) -> fx.Graph:
        """The graph that runs now, grafts included."""
        return self._live.graph if self._live else self.base

    @property
    def code(self) -> str:
        """The source of the graph that runs now."""
        return (self._live or self.forward_for((), Phase.ISOLATED)).source

    @property
    def slots(self) -> list[Slot]:
        """The slots of this region, in the order of its graph."""
        return slots_of(self.base)

    @property
    def rejected(self) -> Mapping[str, str]:
        """The nodes of this region that are no slots, with the reason."""
        return rejections_of(self.base)

    @property
    def fallbacks(self) -> int:
        """The number of calls that ran the module's own forward, without its seeds, because of their form.

        Counted while there are grafts here. Calls of isolation checks and of compiling ahead count too.
        """
        live = self.module.__dict__.get(COUNTER)
        return self._fallbacks + (0 if live is None else int(live))

    @property
    def changed_attributes(self) -> list[str]:
        """Conditions on the module's attributes that held while it was traced, and do not hold now."""
        return [] if self.is_boundary else self.form.broken(self.module)

    @property
    def is_boundary(self) -> bool:
        """Whether the module's code could not be traced: the graph only calls it."""
        return any(node.target is trace_operators.run for node in self.base.nodes)

    def forward_for(
        self, wirings: tuple[Wiring, ...], phase: Phase, parts: Sequence[Region] = ()
    ) -> Generated:
        """Generate the ``forward`` with these grafts, in the order in which they compose. Installs nothing.

        The graft number ``i`` is read from the attribute ``_graft_<i>`` of the module, so that
        equal regions with equal grafts have equal code.

        Args:
            wirings: the grafts.
            phase: which of the two forwards of the structure.
            parts: regions to merge into this one, for branches between regions.
        """
        key = (wirings, phase, tuple(part.name for part in parts))
        if key not in self._known:
            graph, form = copy_graph(self.base), self.form
            names: dict[str, str] = {}
            if parts:
                graph, names = merge(self, parts)
                form = merged_form(self, parts)
            form = with_conditions(form, self.module, graph)
            set_expected_form(self.module, self.name, form)  # the log names what a call does not meet
            for i, wiring in enumerate(wirings):
                source = wiring.source and _found(graph, names, wiring.source)
                call = None if wiring.spec.call is None else arguments(graph, form, wiring.spec.call)
                for k, node in enumerate((wiring.node, *wiring.others)):
                    Germinate(
                        _found(graph, names, node),
                        f"{i:06d}-{k}",
                        spec=wiring.spec,
                        phase=phase,
                        path=_attribute(i),
                        source=source,
                        arguments=call,
                    ).rewrite(graph)
            specs = tuple((_attribute(i), wiring.spec) for i, wiring in enumerate(wirings))
            fallback, lacks = without_graph(type(self.module).forward, specs)
            self._known[key] = generate(graph, form, fallback, lacks)
            if len(self._known) > MAX_KNOWN:
                del self._known[next(iter(self._known))]
        return self._known[key]

    def form_for(self, parts: Sequence[Region] = ()) -> CallForm:
        """The form of the calls for which the graph, with ``parts`` merged into it, is valid.

        Args:
            parts: regions to merge into this one. Default none.
        """
        graph = merge(self, parts)[0] if parts else copy_graph(self.base)
        return with_conditions(merged_form(self, parts) if parts else self.form, self.module, graph)

    def install(self, generated: Generated | None, grafts: Sequence[Graft] = ()) -> None:
        """Make ``generated`` the module's ``forward``, and ``grafts`` the attributes that it reads.

        Args:
            generated: from `forward_for`; None: the module runs its own forward again.
            grafts: in the order of the wirings that it was generated for. Default none.
        """
        attributes = self.module.__dict__
        for name in [name for name in attributes if name.startswith("_graft_")]:
            del attributes[name]
        # Past nn.Module's registers: the grafts belong to the host, and only there to its state.
        attributes.update((_attribute(i), graft) for i, graft in enumerate(grafts))
        if generated is None:
            self._fallbacks = self.fallbacks
            for name in ("forward", OWN_FORWARD, COUNTER):
                attributes.pop(name, None)
        else:
            attributes.setdefault(COUNTER, new_counter())
            attributes[OWN_FORWARD] = MethodType(type(self.module).forward, self.module)
            attributes["forward"] = generated.bound_to(self.module)
        self._live = generated

    def __getstate__(self) -> dict[str, Any]:
        # Generated functions are made again when they are installed again.
        return {**self.__dict__, "_live": None, "_known": {}, "base": flatten(self.base)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "base": unflatten(state["base"])})
        FindSlots(region=self.name).rewrite(self.base)

    def __deepcopy__(self, memo: dict[int, Any]) -> Region:
        region = Region.__new__(Region)
        memo[id(self)] = region
        module = copy.deepcopy(self.module, memo)
        region.__dict__.update({**self.__dict__, "module": module, "_known": dict(self._known)})
        return region


def _found(graph: fx.Graph, names: Mapping[str, str], wired: str) -> str:
    """The name in ``graph`` of the node that a wiring names; of the node in between, for an edge."""
    value, _, reader = (names.get(part, part) for part in wired.partition("->"))
    if not reader:
        return value
    edge = SplitEdge(value, reader)
    edge.rewrite(graph)
    node = edge.split(graph)
    assert node is not None
    return node.name


def _attribute(i: int) -> str:
    return f"_graft_{i}"


def block_of(path: str) -> str:
    """The first three parts of a name, which are those of an inserted block where it is in one."""
    return ".".join(path.split(".", 3)[:3])


def slot_table(
    regions: Iterable[Region], run_order: Mapping[str, tuple[float, int]] = MappingProxyType({})
) -> Mapping[str, Slot]:
    """Name -> slot over all regions, in execution order; ``run_order`` says when inserted blocks run.

    Two regions may come to the same name, where a module calls its grandchild past its child: the
    later one gets ``_1``. What a module returns is one place, where its call is a node of a graph and its
    boundary is known as well.
    """
    found: dict[str, Slot] = {}
    regions = list(regions)
    calls = {slot.name for region in regions if not region.is_boundary for slot in region.slots}
    every = [
        slot
        for region in regions
        for slot in region.slots
        if not region.is_boundary or slot.name not in calls
    ]

    def turn(slot: Slot) -> tuple[float, int, int]:
        order = metadata(slot.node)["observation"].order
        if not slot.region.startswith(f"{SEEDS}."):
            return order, -1, order
        return (*run_order.get(block_of(slot.region), (math.inf, 0)), order)

    for slot in sorted(every, key=turn):
        name = next(
            n for n in chain([slot.name], map(f"{slot.name}_{{}}".format, count(1))) if n not in found
        )
        found[name] = slot if name == slot.name else dataclasses.replace(slot, name=name)
    return MappingProxyType(found)
