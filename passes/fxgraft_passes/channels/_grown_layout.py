"""How a dimension, and a tensor, lies once atoms of it have grown.

`spread` says which indices are new, and from which old index each of the others comes; `widened` makes the
tensor of that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from fxgraft_passes.channels.layout import Atom, Concat, Layout, Product, atoms, known, size_of


@dataclass(frozen=True)
class Spread:
    """How the indices of a dimension lie once an atom has grown.

    Attributes:
        origin: for each index, the old index that it is, or of a new one the one that it is made like.
        unit: for each index, the unit of the atom that it belongs to; -1 where it belongs to none.
        fresh: for each index, whether it is new.
    """

    origin: tuple[int, ...]
    unit: tuple[int, ...]
    fresh: tuple[bool, ...]


Growths = Mapping[Atom, int]
"""By how many units each atom grows."""


def spread(layout: Layout, like: Mapping[Atom, Sequence[int]], leads: Collection[Atom]) -> Spread:
    """How a dimension lies once atoms have grown.

    Args:
        layout: of the dimension, before.
        like: for each atom that grows, and each of its new units, an old one.
        leads: the atoms whose units are in `Spread.unit`.
    """
    origins, units, fresh = zip(*_indices(known(layout), like, leads), strict=True)
    return Spread(origins, units, fresh)


def _indices(
    layout: Layout, like: Mapping[Atom, Sequence[int]], leads: Collection[Atom]
) -> Iterator[tuple[int, int, bool]]:
    """Old index, unit of a lead, whether it is new."""
    if isinstance(layout, Atom):
        yield from ((i, i if layout in leads else -1, False) for i in range(layout.size))
        for i, old in enumerate(like.get(layout, ())):
            yield old, layout.size + i if layout in leads else -1, True
    elif isinstance(layout, Concat):
        offset = 0
        for part in layout.parts:
            yield from ((offset + i, unit, new) for i, unit, new in _indices(part, like, leads))
            offset += size_of(part)
    else:
        outer, *inner = layout.parts
        rest: Layout = inner[0] if len(inner) == 1 else Product(tuple(inner))
        size, within = size_of(rest), list(_indices(rest, like, leads))
        for i, unit, new in _indices(outer, like, leads):
            yield from ((i * size + j, max(unit, other), new or also) for j, other, also in within)


def passes_through(layout: Layout, marked: Collection[Atom]) -> list[bool]:
    """For each index, whether one of these atoms is what it was, before other things were found out."""
    if isinstance(layout, Atom):
        if layout in marked:
            return [True] * layout.size
        return (
            [False] * layout.size if layout.stands_for is None else passes_through(layout.stands_for, marked)
        )
    parts = [passes_through(part, marked) for part in layout.parts]
    if isinstance(layout, Concat):
        return [flag for part in parts for flag in part]
    return [any(flags) for flags in product(*parts)]


def grain_in(layout: Layout, atom: Atom) -> int:
    """How many neighbouring indices go with one unit: of 12 heads of 64 channels, 64."""
    layout = known(layout)
    if isinstance(layout, Atom):
        return 1
    place = next(i for i, part in enumerate(layout.parts) if atom in atoms(part))
    inside = layout.parts[place + 1 :] if isinstance(layout, Product) else ()
    return prod(map(size_of, inside)) * grain_in(layout.parts[place], atom)


def grown_size(layout: Layout, growths: Growths) -> int:
    """The number of indices once atoms have grown."""
    layout = known(layout)
    if isinstance(layout, Atom):
        return layout.size + growths.get(layout, 0)
    sizes = [grown_size(part, growths) for part in layout.parts]
    return prod(sizes) if isinstance(layout, Product) else sum(sizes)


def grown_sizes(layout: Layout, growths: Growths) -> Iterator[tuple[int, int]]:
    """Size now and then of it, of its parts, and of neighbouring parts of products, where they differ."""
    layout = known(layout)
    if growths.keys().isdisjoint(atoms(layout)):
        return
    yield size_of(layout), grown_size(layout, growths)
    if isinstance(layout, Atom):
        return
    for part in layout.parts:
        yield from grown_sizes(part, growths)
    if isinstance(layout, Product):
        n = len(layout.parts)
        for start in range(n):
            for stop in range(start + 2, n + 1):
                if stop - start < n:
                    run = Product(layout.parts[start:stop])
                    if not growths.keys().isdisjoint(atoms(run)):
                        yield size_of(run), grown_size(run, growths)


def widened(tensor: Tensor, spreads: Sequence[tuple[int, Spread]]) -> tuple[Tensor, Tensor]:
    """The tensor with the indices of ``spreads``, new ones like those they are made like; which are new."""
    fresh = torch.zeros((1,) * tensor.dim(), dtype=torch.bool, device=tensor.device)
    for dim, found in spreads:
        tensor = tensor.index_select(dim, torch.tensor(found.origin, device=tensor.device))
        fresh = fresh | along(dim, found.fresh, tensor)
    return tensor, fresh.expand(tensor.shape)


def filled(tensor: Tensor, fill: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``fill`` makes of a tensor, laid out as that is."""
    return laid_out_as(tensor, fill(tensor))


def laid_out_as(tensor: Tensor, wide: Tensor) -> Tensor:
    """``wide`` with its channels last where those of ``tensor`` are."""
    last = torch.channels_last
    is_so = tensor.dim() == 4 and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous()
    return wide.contiguous(memory_format=last if is_so else torch.contiguous_format)


def along(dim: int, values: Sequence[Any], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The values as a tensor that broadcasts along one dimension of ``like``."""
    flat = torch.tensor(values, device=like.device, dtype=dtype)
    return flat.reshape([-1 if i == dim else 1 for i in range(like.dim())])
