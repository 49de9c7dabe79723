"""Which values of a graph matter: those that reach the output, or what outlives the call, by any way.

A value reaches another one along the edges of the graph, and through memory: reading a tensor is reading what
was written into it before, through any view of it. What is overwritten as a whole before it is read reaches
nothing::

    out = torch.zeros(4, 8)
    setitem = operator.setitem(out, (slice(None), slice(None, 4)), layer)
    add = out + 1                   # reads layer, through setitem

What is written into a buffer, a parameter or an input outlives the call, and so does what a called module
keeps.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch.fx as fx

from fxgraft_passes.observe import observation_of

_OVERWRITE = {
    "copy_", "zero_", "fill_", "normal_", "uniform_", "bernoulli_", "random_", "exponential_", "log_normal_",
    "geometric_", "cauchy_",
}  # fmt: skip
"""Methods that leave nothing of what was there."""


@dataclass(frozen=True)
class Liveness:
    """What of a graph matters.

    Attributes:
        nodes: those that reach the output or what outlives the call, by their values or by what they write.
        values: those whose own value is read on such a way. (That of ``x.add_(1)`` need not be: ``x`` may.)
    """

    nodes: set[fx.Node]
    values: set[fx.Node]


def liveness_of(graph: fx.Graph) -> Liveness:
    """What of ``graph`` matters, by the run in which its nodes were observed."""
    reads, wrote, ends = _dependencies(graph)
    live: set[fx.Node] = set()
    front = ends
    while front:
        node = front.pop()
        if node not in live:
            live.add(node)
            front += [*reads[node], *wrote[node]]
    return Liveness(live, {read for node in live for read in reads[node]})


_Links = dict[fx.Node, set[fx.Node]]


def _dependencies(graph: fx.Graph) -> tuple[_Links, _Links, list[fx.Node]]:
    """Node -> the nodes whose values it reads; node -> the writers of what it reads; ends of paths."""
    reads: _Links = {}
    wrote: _Links = {}
    ends: list[fx.Node] = []
    writers: dict[int, list[fx.Node]] = {}  # memory -> its writers, since it was last overwritten as a whole
    overwritten: dict[int, fx.Node] = {}
    outer = {m for node in graph.nodes if node.op in ("placeholder", "get_attr") for m in _memories(node)}
    for node in graph.nodes:
        target = _overwrites(node)
        reads[node], wrote[node] = set(), set()
        for read in node.all_input_nodes:
            if read is target:
                continue  # it needs to know where that is, not what
            memories = _memories(read)
            if not (memories and all(_is_stale(read, memory, overwritten) for memory in memories)):
                reads[node].add(read)
            wrote[node].update(writer for memory in memories for writer in writers.get(memory, ()))
        seen = observation_of(node)
        written = () if seen is None else seen.writes
        for memory in written:
            if target is not None and memory in _memories(target):
                writers[memory], overwritten[memory] = [node], node
            else:
                writers.setdefault(memory, []).append(node)
        if node.op == "output" or outer.intersection(written) or (seen is not None and seen.changes_state):
            ends.append(node)
    return reads, wrote, ends


def _memories(node: fx.Node) -> tuple[int, ...]:
    seen = observation_of(node)
    return () if seen is None else seen.memories


def _is_stale(node: fx.Node, memory: int, overwritten: dict[int, fx.Node]) -> bool:
    """Whether nothing is left in ``memory`` of what ``node`` computed."""
    by = overwritten.get(memory)
    return by is not None and node is not by and node < by


def _overwrites(node: fx.Node) -> fx.Node | None:
    """The node whose memory ``node`` overwrites as a whole, reading nothing of it; None where it may."""
    target: Any = None
    if (node.op == "call_method" and node.target in _OVERWRITE) or (
        node.target is operator.setitem and _is_everything(node.args[1])
    ):
        target = node.args[0]
    elif node.op == "call_function" and isinstance(node.kwargs.get("out"), fx.Node):
        target = node.kwargs["out"]
    if not isinstance(target, fx.Node):
        return None
    seen = observation_of(target)
    others = [memory for read in node.all_input_nodes if read is not target for memory in _memories(read)]
    reads_it = _times(node, target) > 1 or (seen is not None and seen.memory in others)
    return target if seen is not None and seen.fills_memory and not reads_it else None


def _is_everything(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is Ellipsis or part == slice(None) for part in parts)


def _times(node: fx.Node, read: fx.Node) -> int:
    """How often ``read`` stands among the arguments of ``node``."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), lambda a: found.append(a) if a is read else None)
    return len(found)
