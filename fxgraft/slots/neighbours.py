"""The layers around a slot, nearest first: whose parameters a seed there is beside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import takewhile

from fxgraft.slots import walk
from fxgraft.slots.walk import Place, Regions
from fxgraft_passes import Slot

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
        readers = walk.entered(Place(region, slot.reader), regions)
    else:
        readers = walk.after(start, regions)

    def is_nearest(place: Place) -> bool:
        return bool(place.path) and walk.called(place, regions) is None and is_layer(place.path)

    makers = _nearest([start], partial(walk.before, regions=regions), is_nearest)
    for ring in (makers, _nearest(readers, partial(walk.after, regions=regions), is_nearest)):
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
    for level in walk.levels(start, step, _WALKED):
        if found := [place.path for place in level if is_nearest(place)]:
            return tuple(dict.fromkeys(found))
    return ()


def _around(layers: Ring) -> str:
    """The innermost module around all of them."""
    paths = [path.split(".")[:-1] for path in layers]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return ".".join(parts[0] for parts in shared)
