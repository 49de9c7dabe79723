"""Groups of channels: from what a run did to what can grow.

    run -> operations -> (rules) -> layouts of all dimensions -> atoms -> groups

`Analysis` holds the layout of every tensor of a run, and what the rules say of them. An operation without a
rule makes everything that it touches fixed, by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fxgraft_passes.channels._grown_layout import Growths, grown_size, grown_sizes
from fxgraft_passes.channels.layout import Atom, Layout, Product, fix, known, mark_use, unify
from fxgraft_passes.channels.recording import Operation, Recording, tensors_in

DOT, NORM, MEAN = "dot", "norm", "mean"
"""Hazards: what computes over a dimension, beside a layer that has weights for it."""


@dataclass(frozen=True)
class Weight:
    """A value that is a parameter or buffer, perhaps with its dimensions in another order.

    Attributes:
        path: its qualified name.
        dims: for each dimension of the value, that of the parameter.
    """

    path: str
    dims: tuple[int, ...]


@dataclass
class Normed:
    """A normalisation over a dimension.

    Attributes:
        kind: ``"layer"`` (subtracts the mean) or ``"rms"``.
        module: whose code does it.
        weight, bias: the paths of its parameters, or None.
        layout: of the dimension.
    """

    kind: str
    module: str
    weight: str | None
    bias: str | None
    layout: Layout


@dataclass(frozen=True)
class Step:
    """An operation of a run, without its tensors.

    Attributes:
        target: the function.
        results: the layouts of what it made.
    """

    target: Any
    results: list[list[Layout]]

    def sizes(self, growths: Growths) -> list[tuple[int, ...]]:
        """The shapes of what it makes once atoms have grown."""
        return [tuple(grown_size(layout, growths) for layout in layouts) for layouts in self.results]


@dataclass
class Analysis:
    """What is known of the dimensions of all tensors.

    Attributes:
        tensors: path -> layouts of parameters and buffers.
        roles: (path, dimension) -> ``"out"``, ``"in"``, ``"scale"`` and so on, in the order in which they
            were seen.
        norms: the normalisations.
        queries: what was the first operand of a product of computed values.
        equal_sizes: what has to be of one size, and where.
        steps: train or eval -> what each operation made, of the modes in which the model ran.
    """

    tensors: dict[str, list[Layout]] = field(default_factory=dict)
    roles: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    norms: list[Normed] = field(default_factory=list)
    queries: set[Atom] = field(default_factory=set)
    equal_sizes: list[tuple[Layout, Layout, str]] = field(default_factory=list)
    steps: dict[bool, list[Step]] = field(default_factory=dict)
    _layouts: dict[int, list[Layout]] = field(default_factory=dict)
    _weights: dict[int, Weight] = field(default_factory=dict)
    _kept: list[Any] = field(default_factory=list)
    _returned: Sequence[tuple[Tensor, str]] = ()
    _reading: str = "the model"

    def own(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """The model's parameters and buffers: they are the same in every run."""
        for path, tensor in named:
            if id(tensor) in self._layouts:
                continue
            layouts = self.tensors.setdefault(path, [Atom(size) for size in tensor.shape])
            self._layouts[id(tensor)] = layouts
            self._weights[id(tensor)] = Weight(path, tuple(range(tensor.dim())))
            self._kept.append(tensor)

    def read(self, recording: Recording, rules: Mapping[Any, Any], training: bool) -> None:
        """Take in what a run did, in train or in eval mode."""
        self._kept.append(recording)
        for tensor in recording.given:
            self._new(tensor, "is a size of the input")
        self._returned = recording.returned
        for operation in recording.operations:
            self._reading = operation.name
            rule = rules.get(_key(operation.target))
            if rule is None:
                self.refuse(operation, f"{operation.name} has no rule in the table of operations")
                continue
            try:
                rule(self, operation)
            except (ValueError, LookupError, TypeError, AttributeError):
                self.refuse(operation, f"{operation.name} is called in a form that its rule does not know")
        self._reading = "the model's result"
        for tensor in recording.result:
            for layout in self.of(tensor):
                fix(layout, "is a size of the output")
        self.steps[training] = [
            Step(operation.target, [self.of(t) for t in tensors_in(operation.result)])
            for operation in recording.operations
        ]

    def refuse(self, operation: Operation, why: str) -> None:
        """Nothing that the operation reads or makes can grow."""
        for tensor in tensors_in((operation.args, operation.kwargs, operation.result)):
            for layout in self.of(tensor):
                fix(layout, why)

    def tied(self) -> list[tuple[Atom, Atom]]:
        """The atoms that have to be of one size; where it is unclear which, all are fixed."""
        found = []
        for one, other, where in self.equal_sizes:
            ours, theirs = (
                [*layout.parts] if isinstance(layout, Product) else [layout]
                for layout in map(known, (one, other))
            )
            pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a is not b]
            if len(ours) == len(theirs) and all(
                isinstance(a, Atom) and isinstance(b, Atom) and a.size == b.size for a, b in pairs
            ):
                found += pairs
                continue
            for layout in (one, other):
                fix(
                    layout,
                    f"{where} cuts it into parts that are laid out in two ways (halves that rotary positions "
                    f"turn, say: heads of a size of their own, view(b, t, heads, size), can grow)",
                )
        return found  # type: ignore[return-value]

    def numbers(self, growths: Growths) -> dict[int, list[int]]:
        """The sizes that depend on atoms that grow -> what they are then."""
        found: dict[int, list[int]] = {}
        for layouts in [*self._layouts.values(), *self.tensors.values()]:
            for layout in layouts:
                for before, after in grown_sizes(layout, growths):
                    if after not in found.setdefault(before, []):
                        found[before].append(after)
        return found

    # For rules

    def of(self, tensor: Tensor) -> list[Layout]:
        """The layouts of the dimensions of ``tensor``; of one that no operation made they are fixed."""
        if id(tensor) not in self._layouts:
            self._new(tensor, self._where_from(tensor))
        return self._layouts[id(tensor)]

    def _where_from(self, tensor: Tensor) -> str:
        """Of a tensor that no operation made that was seen."""
        module = next((name for made, name in self._returned if made is tensor), None)
        if module is not None:
            return f"is made in {module}, by code of which torch shows no operations"
        return f"is of a tensor that {self._reading} reads, and that comes from code that was not seen"

    def knows(self, tensor: Tensor) -> bool:
        """Whether it was seen before."""
        return id(tensor) in self._layouts

    def make(self, operation: Operation, tensor: Tensor, layouts: Sequence[Layout | None]) -> None:
        """``tensor`` was made, with these layouts; None: a dimension that is new."""
        made = [
            Atom(n) if layout is None else layout for n, layout in zip(tensor.shape, layouts, strict=True)
        ]
        if id(tensor) not in self._layouts:
            self._layouts[id(tensor)] = made
            self._kept.append(tensor)
            return
        for ours, theirs in zip(self._layouts[id(tensor)], made, strict=True):
            unify(ours, theirs, operation.name)

    def weight(self, tensor: Any) -> Weight | None:
        """The parameter or buffer that ``tensor`` is, if it is one."""
        return self._weights.get(id(tensor))

    def is_reordered(self, tensor: Tensor, source: Tensor, dims: Sequence[int]) -> None:
        """``tensor`` is ``source`` with its dimensions in another order."""
        if (weight := self._weights.get(id(source))) is not None and id(tensor) not in self._weights:
            self._weights[id(tensor)] = Weight(weight.path, tuple(weight.dims[i] for i in dims))

    def role(self, tensor: Any, dim: int, role: str) -> None:
        """What a dimension of a parameter is for. Of other tensors nothing is noted."""
        if (weight := self.weight(tensor)) is not None:
            roles = self.roles.setdefault((weight.path, weight.dims[dim]), [])
            if role not in roles:
                roles.append(role)

    def contract(self, operation: Operation, *operands: tuple[Tensor, int]) -> None:
        """A dimension of one operand is multiplied with that of the other, and summed up."""
        first, second = operands
        weights = [operand for operand in operands if self.weight(operand[0]) is not None]
        if not weights:
            self.dot(self.of(first[0])[first[1]], self.of(second[0])[second[1]], operation)
        unify(self.of(first[0])[first[1]], self.of(second[0])[second[1]], operation.name)
        for tensor, dim in weights:
            self.role(tensor, dim, "in")

    def dot(self, queries: Layout, keys: Layout, operation: Operation) -> None:
        """Two computed values are multiplied along these, and summed up. Said before they are unified."""
        ours, theirs = known(queries), known(keys)
        if isinstance(ours, Atom) and ours is not theirs:
            self.queries.add(ours)
        mark_use(ours, DOT, operation.name)

    def _new(self, tensor: Tensor, why: str) -> None:
        if id(tensor) not in self._layouts:
            layouts: list[Layout] = [Atom(size) for size in tensor.shape]
            for layout in layouts:
                fix(layout, why)
            self._layouts[id(tensor)] = layouts
            self._kept.append(tensor)


def _key(target: Any) -> Any:
    """What the table knows a function by: of a property (``x.T``) that itself."""
    if getattr(target, "__name__", "") == "__get__":
        return getattr(target, "__self__", target)
    return target
