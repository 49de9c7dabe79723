"""What a dimension is made of: the algebra that the analysis of channels computes with.

A dimension of size 768 may be 12 heads of 64 channels, one of 2304 three of those, one behind a concatenation
the channels of two layers. So a dimension is an expression over *atoms*, and two dimensions that an operation
pairs are *unified*, as types are: an atom that is paired with an expression stands for it from then on.

    Linear(…, 2304) -> split(768)       a        = q | k | v            (Concat: one behind the other)
    q.view(B, T, 12, 64)                q        = heads x channels     (Product: the outer one first)
    conv(…, 8) -> flatten               in       = c x (h x w)

What is left over are the atoms: each is a number that can grow by itself. Where an atom grows, `spread` says
which indices of a dimension are new, and from which old index each of the others comes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod


@dataclass(eq=False)
class Atom:
    """A part of dimensions that is not known to have parts.

    Attributes:
        size: how many indices.
        reasons: why it cannot grow, the first one first.
        hazards: what computes over it, and so has to be known when it grows: kind -> where.
        stands_for: what it was found to be.
    """

    size: int
    reasons: list[str] = field(default_factory=list)
    hazards: dict[str, list[str]] = field(default_factory=dict)
    stands_for: Layout | None = None


@dataclass(frozen=True, eq=False)
class Product:
    """Parts that count one within the other: the last one runs fastest."""

    parts: tuple[Layout, ...]


@dataclass(frozen=True, eq=False)
class Concat:
    """Parts that stand one behind the other."""

    parts: tuple[Layout, ...]


Layout = Atom | Product | Concat


def size_of(layout: Layout) -> int:
    """The number of indices."""
    if isinstance(layout, Atom):
        return layout.size
    sizes = [size_of(part) for part in layout.parts]
    return prod(sizes) if isinstance(layout, Product) else sum(sizes)


def known(layout: Layout) -> Layout:
    """The layout with what its atoms stand for, flat: no product directly in a product, and so on."""
    if isinstance(layout, Atom):
        return layout if layout.stands_for is None else known(layout.stands_for)
    kind = type(layout)
    parts: list[Layout] = []
    for part in map(known, layout.parts):
        if isinstance(part, kind):
            parts += part.parts
        elif not (kind is Product and size_of(part) == 1) and not (kind is Concat and size_of(part) == 0):
            parts.append(part)
    if len(parts) == 1:
        return parts[0]
    return kind(tuple(parts)) if parts else Atom(1 if kind is Product else 0)


def atoms(layout: Layout) -> list[Atom]:
    """The atoms in it, each once, in order."""
    layout = known(layout)
    if isinstance(layout, Atom):
        return [layout]
    return list(dict.fromkeys(atom for part in layout.parts for atom in atoms(part)))


def fix(layout: Layout, why: str) -> None:
    """Nothing in it can grow."""
    for atom in atoms(layout):
        if why not in atom.reasons:
            atom.reasons.append(why)


def beware(layout: Layout, kind: str, where: str) -> None:
    """Something computes over it."""
    for atom in atoms(layout):
        places = atom.hazards.setdefault(kind, [])
        if where not in places:
            places.append(where)


def unify(a: Layout, b: Layout, where: str) -> None:
    """Let both be one from now on; where they cannot be paired index by index, nothing in them can grow.

    Args:
        a: a layout.
        b: another, of that size.
        where: what pairs them, for the reason.
    """
    a, b = known(a), known(b)
    if a is b:
        return
    if size_of(a) != size_of(b):
        _mismatch((a, b), where)
    elif isinstance(a, Atom):
        _bind(a, b, where)
    elif isinstance(b, Atom):
        _bind(b, a, where)
    elif isinstance(a, Product) and isinstance(b, Product):
        _pair(a, b, tuple, _divide, where)  # from the inside out
    elif isinstance(a, Concat) and isinstance(b, Concat):
        _pair(a, b, reversed, _cut, where)  # from the front
    elif isinstance(a, Concat):
        _pair_mixed(a, b, where)  # type: ignore[arg-type]
    else:
        _pair_mixed(b, a, where)  # type: ignore[arg-type]


def _mismatch(layouts: Sequence[Layout], where: str) -> None:
    for layout in layouts:
        fix(layout, f"{where} pairs channels that are laid out in two ways")


def _bind(atom: Atom, layout: Layout, where: str) -> None:
    inside = atoms(layout)
    if atom in inside:
        _mismatch((layout,), where)
        return
    atom.stands_for = layout
    for part in inside:
        part.reasons += [why for why in atom.reasons if why not in part.reasons]
        for kind, places in atom.hazards.items():
            for place in places:
                beware(part, kind, place)


def _pair(
    a: Product | Concat,
    b: Product | Concat,
    order: Callable[[Sequence[Layout]], Iterable[Layout]],
    split: Callable[[Layout, Layout, str], Layout | None],
    where: str,
) -> None:
    """Pair the parts of two layouts of one kind, the last of ``order`` first.

    What is larger is opened where it is of that kind as well, and else split, if it can be: ``split`` says
    what is left of it beside the other one.
    """
    kind, ours, theirs = type(a), list(order(a.parts)), list(order(b.parts))
    while ours and theirs:
        x, y = known(ours.pop()), known(theirs.pop())
        if size_of(x) < size_of(y):
            ours, theirs, x, y = theirs, ours, y, x
        if size_of(x) == size_of(y):
            unify(x, y, where)
        elif isinstance(x, kind):
            ours += order(x.parts)
            theirs.append(y)
        elif (rest := split(x, y, where)) is not None:
            ours.append(rest)
        else:
            _mismatch((x, y, *ours, *theirs), where)
            return


def _divide(layout: Layout, inner: Layout, where: str) -> Layout | None:
    """What is outside of ``inner`` in ``layout``, once that was split so; None where it cannot be."""
    layout, size = known(layout), size_of(inner)
    if size_of(layout) % size:
        return None
    if size_of(layout) == size:
        unify(layout, inner, where)
        return Atom(1)
    if isinstance(layout, Atom):
        outer = Atom(layout.size // size)
        _bind(layout, Product((outer, inner)), where)
        return outer
    if isinstance(layout, Product):
        *front, last = layout.parts
        if size_of(last) % size:
            return None
        rest = _divide(last, inner, where)
        return None if rest is None else Product((*front, rest))
    if any(size_of(part) % size for part in layout.parts):
        return None
    parts = [_divide(part, inner, where) for part in layout.parts]
    return None if None in parts else Concat(tuple(part for part in parts if part is not None))


def _cut(layout: Layout, front: Layout, where: str) -> Layout:
    """What is behind ``front`` in ``layout``."""
    rest = Atom(size_of(layout) - size_of(front))
    unify(layout, Concat((front, rest)), where)
    return rest


def _pair_mixed(a: Concat, b: Product, where: str) -> None:
    """Parts one behind the other, each of which is some of the outermost of the product."""
    outer, *inner = b.parts
    rest = prod(map(size_of, inner))
    if not isinstance(outer, Atom) or any(size_of(part) % rest for part in a.parts):
        _mismatch((a, b), where)
        return
    shares = [Atom(size_of(part) // rest) for part in a.parts]
    _bind(outer, Concat(tuple(shares)), where)
    for part, share in zip(a.parts, shares, strict=True):
        unify(part, Product((share, *inner)), where)


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
        leads: the atoms of which units are told.
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
