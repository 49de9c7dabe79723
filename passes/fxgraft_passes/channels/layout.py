"""What a dimension is made of: the algebra that the analysis of channels computes with.

A dimension of size 768 may be 12 heads of 64 channels, one of 2304 three of those, one behind a concatenation
the channels of two layers. So a dimension is an expression over *atoms*, and two dimensions that an operation
pairs are *unified*, as types are: an atom that is paired with an expression is replaced by it from then on.

    Linear(…, 2304) -> split(768)       a        = q | k | v            (Concat: one behind the other)
    q.view(B, T, 12, 64)                q        = heads x channels     (Product: the outer one first)
    conv(…, 8) -> flatten               in       = c x (h x w)

What is left over are the atoms: each is a number that can grow by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
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
    """The layout with atoms replaced by what they were found to be; flat: no product in a product."""
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


def mark_use(layout: Layout, kind: str, where: str) -> None:
    """Something computes over it."""
    for atom in atoms(layout):
        places = atom.hazards.setdefault(kind, [])
        if where not in places:
            places.append(where)


def unify(a: Layout, b: Layout, where: str) -> None:
    """Unify both; where they cannot be paired index by index, nothing in them can grow.

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
                mark_use(part, kind, place)


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
