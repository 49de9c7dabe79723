"""Steps through the graphs of regions: what a value is computed from, and what is computed from it.

The layers around a slot, nearest first, are found so: their parameters are those that a seed there is beside.

A called module that has a graph is entered; where its inputs begin, or its output ends, the walk goes on in
the graph that called it, as far as it came from there. In one graph:

source ──► up ──► gelu ──► down            between(source, down) is [up, gelu, down]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import torch.fx as fx

from fxgraft.capture.region import Region
from fxgraft_passes import Slot, operators

Regions = Mapping[str, Region]


@dataclass(frozen=True)
class Place:
    """A node in the graph of a region.

    Attributes:
        region: whose graph it is.
        node: of that graph.
        call: the call of that region by which the walk came here; None where it began here.
    """

    region: Region
    node: fx.Node
    call: Place | None = None

    @property
    def path(self) -> str:
        """The qualified name of the module or tensor that the node names; empty where it names none."""
        named = self.node.op in ("call_module", "get_attr")
        return joined(self.region.name, str(self.node.target)) if named else ""


def called(place: Place, regions: Regions) -> Region | None:
    """The region that a node calls; None where it calls no module, or one without a graph."""
    region = regions.get(place.path) if place.node.op == "call_module" else None
    return None if region is None or region.is_boundary else region


def before(place: Place, regions: Regions) -> Iterator[Place]:
    """The places that a place has its value from: what is returned inside of it, else its inputs."""
    node = place.node
    if (inside := called(place, regions)) is not None:
        yield Place(inside, _output(inside), place)
    elif node.op != "placeholder":
        yield from (Place(place.region, other, place.call) for other in node.all_input_nodes)
    elif place.call is not None:
        outer = place.call
        yield from (Place(outer.region, other, outer.call) for other in outer.node.all_input_nodes)


def after(place: Place, regions: Regions) -> Iterator[Place]:
    """The places that read the value of a place; inside of what they call, where that has a graph."""
    users: Iterable[fx.Node] = place.node.users
    for node in users:
        reader = Place(place.region, node, place.call)
        if node.op == "output":
            if place.call is not None:
                yield from after(place.call, regions)
        else:
            yield from entered(reader, regions)


def entered(place: Place, regions: Regions) -> Iterator[Place]:
    """A place itself; of a called module that has a graph, the inputs of that."""
    if (inside := called(place, regions)) is None:
        yield place
    else:
        yield from (Place(inside, node, place) for node in inside.base.nodes if node.op == "placeholder")


def levels(
    start: Iterable[Place], step: Callable[[Place], Iterable[Place]], most: int
) -> Iterator[list[Place]]:
    """The places from ``start`` on, in the order of their distance; ``most`` of them at most."""
    front = list(start)
    seen = set(front)
    while front and len(seen) <= most:
        yield front
        front = [place for known in front for place in step(known) if place not in seen]
        front = list(dict.fromkeys(front))
        seen.update(front)


def joined(path: str, name: str) -> str:
    """The qualified name of ``name`` in the module ``path``; either may be empty."""
    return f"{path}.{name}" if path and name else path or name


def _output(region: Region) -> fx.Node:
    return region.base.output_node()


_WALKED = 256
"""How many nodes are looked at for the nearest layer: an edit must not cost more in a larger host."""

Ring = tuple[str, ...]
"""Qualified names of modules and parameters that are equally near."""


def rings(slot: Slot, regions: Regions, is_layer: Callable[[str], bool]) -> Iterator[Ring]:
    """What is around ``slot``, in the order of nearness.

    First the layers that make its value, then those that read it (the one reader of an edge), as they are
    reached in the graph of its region; then the modules around the former, one by one: those in the region's
    module, this itself, those around it, and last the whole host.

    Args:
        slot: where a seed is to go.
        regions: of the host.
        is_layer: whether the module or parameter of that qualified name counts; others are passed.
    """
    region = regions[slot.region]
    start = Place(region, slot.node)
    if slot.reader is not None:
        readers = entered(Place(region, slot.reader), regions)
    else:
        readers = after(start, regions)

    def is_nearest(place: Place) -> bool:
        return bool(place.path) and called(place, regions) is None and is_layer(place.path)

    makers = _nearest([start], partial(before, regions=regions), is_nearest)
    for ring in (makers, _nearest(readers, partial(after, regions=regions), is_nearest)):
        if ring:
            yield ring
    path = _around(makers) if makers else slot.region
    while path:
        yield (path,)
        path = path.rpartition(".")[0]
    yield ("",)


def _nearest(
    start: Iterable[Place], step: Callable[[Place], Iterable[Place]], is_nearest: Callable[[Place], bool]
) -> Ring:
    """The layers at the first level at which there are some."""
    for level in levels(start, step, _WALKED):
        if found := [place.path for place in level if is_nearest(place)]:
            return tuple(dict.fromkeys(found))
    return ()


def _around(layers: Ring) -> str:
    """The innermost module around all of them."""
    paths = [path.split(".")[:-1] for path in layers]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return ".".join(parts[0] for parts in shared)


def the_value(node: fx.Node) -> fx.Node:
    """The node that makes the value: what a module returned is the very value that was made inside."""
    while node.target is operators.returned:
        node = node.all_input_nodes[0]
    return node


def between(source: fx.Node, end: fx.Node) -> list[fx.Node] | str:
    """The nodes that make ``end`` out of ``source`` alone, in order; or what else there is, in words.

    Args:
        source: the value that they read.
        end: the last of them, in the same graph.
    """
    found: set[fx.Node] = set()
    front = [end]
    while front:
        node = the_value(front.pop())
        if node is source or node in found:
            continue
        if node.op in ("placeholder", "get_attr"):
            return f"code that reads {node.name!r}, too"
        found.add(node)
        front += node.all_input_nodes
    outside = {
        user
        for node in found - {end}
        for user in node.users
        if user.target is not operators.returned and user not in found
    }
    if outside:
        return f"values that {next(iter(outside))} reads as well"
    return [node for node in end.graph.nodes if node in found]
