"""Steps through the graphs of regions: what a value is computed from, and what is computed from it.

A called module that has a graph is entered; where its inputs begin, or its output ends, the walk goes on in
the graph that called it, as far as it came from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch.fx as fx

from fxgraft.capture.region import Region

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
