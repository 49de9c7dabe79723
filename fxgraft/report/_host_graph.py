"""A host as a graph for graphviz: boxes for operations, frames for modules, coloured boxes for seeds."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pydot
import torch.fx as fx
from torch import nn

from fxgraft.capture.region import Region
from fxgraft.report.marks import Mark
from fxgraft.seeds.stage import STAGE_COLOURS, Stage
from fxgraft.slots.structure import Placement
from fxgraft_passes import Graft
from fxgraft_passes.metadata import metadata

if TYPE_CHECKING:
    from fxgraft.host.host import Host

INK, SOFT, FRAME, PAPER = "#30363d", "#7d8590", "#c8ccd1", "#ffffff"
FONT = "Helvetica"
Ends = frozenset[str]
"""The boxes that a value may come from."""


class Drawing:
    """One picture.

    Args:
        host: what is drawn.
        deep: whether to draw what is inside of child modules, in frames; or each as one box.
        marks: what is said of slots, by their names.
    """

    def __init__(self, host: Host, deep: bool, marks: Mapping[str, Mark] | None = None):
        self._host, self._deep, self._marks = host, deep, marks or {}
        self._numbers = itertools.count()
        self._drawn: set[str] = set()
        self._seeds: dict[str, list[Placement]] = {}
        for placement in host.structure.placements:
            self._seeds.setdefault(placement.slot.name, []).append(placement)

    def of(self, *regions: Region) -> pydot.Dot:
        """The graphs of some regions; in frames, if there are several. One inside another is drawn there."""
        dot = pydot.Dot("host", rankdir="TB", nodesep="0.25", ranksep="0.3", bgcolor="transparent")
        text: dict[str, Any] = {"fontname": FONT, "fontsize": "11"}
        dot.set_node_defaults(shape="box", style="rounded,filled", fillcolor=PAPER, **text)
        dot.set_edge_defaults(color=SOFT, arrowsize="0.6", fontname=FONT, fontsize="9", fontcolor=SOFT)
        for region in regions:
            if region.name in self._drawn:
                continue
            frame: Any = self._frame(region) if len(regions) > 1 else dot
            given = [
                frozenset({self._box(frame, str(node.target), shape="oval", color=SOFT)})
                for node in region.base.find_nodes(op="placeholder")
            ]
            ends = self._place(dot, frame, region, given)
            output = self._box(frame, "output", shape="oval", color=SOFT)
            for end in ends:
                dot.add_edge(pydot.Edge(end, output))
            if frame is not dot:
                dot.add_subgraph(frame)
        return dot

    def _frame(self, region: Region, mark: Mark | None = None) -> pydot.Cluster:
        """A mark colours the frame's edge: what is inside has colours of its own."""
        text: dict[str, Any] = {"fontname": FONT, "fontsize": "10", "fontcolor": SOFT, "labeljust": "l"}
        colour, name = FRAME, region.name or "model"
        if mark is not None:
            colour, name, text = mark.colour, f"{name}: {mark.text}", {**text, "penwidth": "4"}
        label = f'"{_escaped(name)}"'
        return pydot.Cluster(
            f"c{next(self._numbers)}", label=label, color=f'"{colour}"', style="rounded", **text
        )

    def _mark(self, node: fx.Node) -> Mark | None:
        slot = metadata(node).get("slot")
        return self._marks.get(slot.name) if slot else None

    def _place(self, dot: pydot.Dot, frame: Any, region: Region, given: list[Ends]) -> Ends:
        """Draw a region into a frame; return where its result comes from."""
        self._drawn.add(region.name)
        ends: dict[fx.Node, Ends] = {}
        inputs = iter(given)
        result: Ends = frozenset()
        for node in region.base.nodes:
            if node.op == "placeholder":
                ends[node] = next(inputs, frozenset())
            elif node.op == "output":
                result = _union(ends, node)
            elif node.op == "get_attr":
                ends[node] = frozenset()
            elif node.target is operator.getitem:  # a part of a value: no box of its own
                ends[node] = _union(ends, node)
            else:
                ends[node] = self._node(dot, frame, region, node, ends)
            ends[node] = self._with_seeds(dot, frame, node, ends.get(node, frozenset()))
        return result

    def _node(
        self, dot: pydot.Dot, frame: Any, region: Region, node: fx.Node, ends: Mapping[fx.Node, Ends]
    ) -> Ends:
        child = self._child(region, node)
        if child is not None and self._deep:
            inner = self._frame(child, self._mark(node))
            values = [*node.args, *node.kwargs.values()]
            given = [_ends_of(ends, value) for value in values]
            result = self._place(dot, inner, child, given)
            frame.add_subgraph(inner)
            return result
        slot = metadata(node).get("slot")
        style = "rounded,filled" if slot else "rounded,filled,dashed"
        label, colour, fill = _label(region, node), INK if slot else SOFT, PAPER
        if (mark := self._mark(node)) is not None:
            label, fill = f"{label}\\n{mark.text}", mark.colour
        box = self._box(
            frame, label, style=style, color=colour, fillcolor=fill, penwidth="2" if child else "1"
        )
        for source in node.all_input_nodes:
            for end in ends.get(source, ()):
                shape = _shape(source) if _shape(source) != _shape_before(source) else ""
                dot.add_edge(pydot.Edge(end, box, label=f'" {shape}"') if shape else pydot.Edge(end, box))
        return frozenset({box})

    def _child(self, region: Region, node: fx.Node) -> Region | None:
        if node.op != "call_module":
            return None
        name = f"{region.name}.{node.target}" if region.name else str(node.target)
        return self._host.regions.get(name)

    def _with_seeds(self, dot: pydot.Dot, frame: Any, node: fx.Node, ends: Ends) -> Ends:
        slot = metadata(node).get("slot")
        for placement in self._seeds.get(slot.name, ()) if slot else ():
            graft = self._host.graft(placement.seed)
            stage = stage_of(placement, graft)
            text = f"{placement.seed}\\n{type(graft.module).__name__}, {stage.name.lower()}"
            colour = STAGE_COLOURS[stage]
            box = self._box(frame, text, fillcolor=colour, color=colour, fontcolor=PAPER)
            for end in ends:
                dot.add_edge(pydot.Edge(end, box, color=colour, style="dashed"))
            ends = frozenset({box}) if stage is Stage.FOSSILIZED else ends | {box}
        return ends

    def _box(self, frame: Any, label: str, **options: str) -> str:
        name = f"n{next(self._numbers)}"
        quoted: dict[str, Any] = {key: f'"{value}"' for key, value in options.items()}
        frame.add_node(pydot.Node(name, label=f'"{_escaped(label)}"', **quoted))
        return name


def stage_of(placement: Placement, graft: Graft) -> Stage:
    """The stage of a grafted seed, by the flags that its blend operator knows it by."""
    if placement.spec.fossil is not None:
        return Stage.FOSSILIZED
    if bool(graft.learning):
        return Stage.TRAINING
    return Stage.HOLDING if bool(graft.released) else Stage.BLENDING


def _label(region: Region, node: fx.Node) -> str:
    """The name by which a seed germinates there, in its frame; and what is computed."""
    if node.op == "call_module":
        module: nn.Module = region.module.get_submodule(str(node.target))
        return f"{node.target}\\n{type(module).__name__}"
    operation = getattr(node.target, "__name__", str(node.target))
    slot = metadata(node).get("slot")
    name = slot.name.removeprefix(f"{region.name}.") if slot else operation
    return operation if name == operation else f"{name}\\n{operation}"


def _shape(node: fx.Node) -> str:
    slot = metadata(node).get("slot")
    return " x ".join(map(str, slot.shape)) if slot else ""


def _shape_before(node: fx.Node) -> str:
    return next((_shape(source) for source in node.all_input_nodes), "")


def _ends_of(ends: Mapping[fx.Node, Ends], value: Any) -> Ends:
    return ends.get(value, frozenset()) if isinstance(value, fx.Node) else frozenset()


def _union(ends: Mapping[fx.Node, Ends], node: fx.Node) -> Ends:
    return frozenset(end for source in node.all_input_nodes for end in ends.get(source, ()))


def _escaped(text: str) -> str:
    return text.replace('"', "'")


def in_order(host: Host) -> list[Region]:
    """All regions in the order of the model, each before those inside of it."""
    return [host.regions[name] for name, _ in host._root.named_modules() if name in host.regions]


def below(host: Host, parent: str | None) -> list[Region]:
    """The regions directly below that one, in the order of the model; None: those that are in no other."""
    return [region for region in in_order(host) if _around(host, region.name) == parent]


def _around(host: Host, name: str) -> str | None:
    """The name of the nearest region around a module."""
    while name:
        name = name.rpartition(".")[0]
        if name in host.regions:
            return name
    return None
