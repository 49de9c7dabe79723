"""Which layers of a block to zero so that it gives back what it reads: found on its graph.

    x ──┬──────────────── + ──┬──────────────────── + ──▶ add_1
        └ norm ─ attn ─ o ┘   └ norm ─ up ─ down ┘

The way from the output back to the input has to be sums (and what leaves values as they are). What comes in
at a sum from the side is a branch, and the last layer of a branch that has weights is its output layer: ``o``
and ``down``. A norm at the end of a branch is one too: its weight and bias are zeroed, and the convolution in
front of it stays, as otherwise neither would get a gradient.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.fx as fx
from torch import nn

from fxgraft.capture.region import Region
from fxgraft.errors import SlotError
from fxgraft.host.stacks import Stack, input_of, output_of
from fxgraft.resizing._zero_operations import (
    ADD,
    CASTS,
    IDEMPOTENT,
    IDEMPOTENT_FUNCTIONS,
    KEEP_ZERO,
    LAYERS,
    NORMS,
    POOLS,
    TIMES,
    VIEWS,
    WEIGHTED,
    NoOutputLayerError,
    is_move,
)
from fxgraft.seeds.dropout import PrivateDropout


@dataclass(frozen=True)
class _At:
    """A value: a node, in the call of a region from another one."""

    region: Region
    node: Any
    caller: _At | None = None

    def name(self) -> str:
        """Where it is, for people."""
        named = getattr(self.node, "meta", {}).get("qualified_name")
        return str(named or f"{self.region.name}: {self.node}")


def _clips(at: _At) -> bool:
    if at.node.op == "call_module":
        return isinstance(at.region.module.get_submodule(str(at.node.target)), IDEMPOTENT)
    return at.node.target in IDEMPOTENT_FUNCTIONS


def _calls_of(region: Region, regions: Mapping[str, Region]) -> Iterator[_At]:
    """The calls of a region's module in the graphs of others."""
    for other in regions.values():
        for node in other.base.find_nodes(op="call_module"):
            if f"{other.name}.{node.target}".lstrip(".") == region.name:
                yield _At(other, node)


class BranchEnds(Protocol):
    """Finds parameters that end branches in code without a graph; raises `NoOutputLayerError`."""

    def __call__(self, path: str, element: int | None) -> set[str]:
        """Those that end what a module returns, or an element of it."""

    def of_block(self, path: str, parameter: str, element: int | None) -> set[str]:
        """Those that end what a block adds to what it is given as that parameter."""


def output_layers(
    stack: Stack, block: str, regions: Mapping[str, Region], branch_ends: BranchEnds
) -> list[str]:
    """The parameters of a block, named from it, that are zeroed so that it returns what it reads.

    Args:
        stack: of the block.
        block: the name of one of its blocks.
        regions: of the host.
        branch_ends: finds the end of a branch in code without a graph.

    Raises:
        SlotError: there are none; with the place in its graph where the search ended, and why.
    """
    region = regions[block]
    start, end = output_of(region, stack.call), input_of(region, stack.call)
    assert start is not None
    assert end is not None
    search = _OutputLayerSearch(block, end, regions, stack.call.before, branch_ends)
    try:
        if region.is_boundary:
            search.take_of_run(branch_ends.of_block(block, stack.call.input, stack.call.element))
        else:
            search.follow(_At(region, start), is_last=True)
    except NoOutputLayerError as reason:
        raise SlotError(
            f"stack {stack.path!r}: init='zero' needs a block ({stack.cls.__name__}) that is its input plus "
            f"branches, so that with zeroed output layers it changes nothing; {reason}. init='copy' and "
            f"init='random' work for any block"
        ) from None
    return sorted(search.found)


class _OutputLayerSearch:
    def __init__(
        self, block: str, end: fx.Node, regions: Mapping[str, Region], before: bool, branch_ends: BranchEnds
    ):
        self.found: set[str] = set()
        self._branch_ends = branch_ends
        self._looks_only = False
        self._block, self._end, self._regions, self._before = block, end, regions, before

    # Back along the residual stream

    def follow(self, at: _At, is_last: bool = False) -> None:
        """Zero all that is added on the way from the input of the block to ``at``."""
        at = self._resolved(at)
        node = at.node
        if not isinstance(node, fx.Node):
            raise NoOutputLayerError(f"the value at {at.name()} is a constant")
        if node is self._end:
            return
        if is_last and self._is_idempotent(at):
            # What it reads is the result of a block that ends with the same.
            self.follow(_At(at.region, node.args[0], at.caller))
            return
        if node.op == "call_module" and (inside := self._entered(at)) is not None:
            self.follow(inside)
            return
        if node.op == "call_module" and isinstance(self._module(at), (nn.Dropout, nn.Identity)):
            if isinstance(self._module(at), nn.Dropout) and self._module(at).p:
                raise NoOutputLayerError(f"{at.name()} drops from the sum itself")
            self.follow(_At(at.region, node.args[0], at.caller))
            return
        if node.target in CASTS or node.target in VIEWS:
            self.follow(_At(at.region, node.args[0], at.caller))
            return
        if node.target not in ADD or len(node.args) < 2 or node.kwargs:
            raise NoOutputLayerError(f"the way from its output back to its input ends at {at.name()}, no sum")
        a, b = (_At(at.region, arg, at.caller) for arg in node.args[:2])
        minus = node.target in (torch.sub, operator.sub, operator.isub, "sub")
        stream, branch = (a, b) if minus or self._leads_in(a) else (b, a)
        self.follow(stream)
        if not self._looks_only:
            self.zero(branch)

    def _leads_in(self, at: _At) -> bool:
        """Whether the stream comes by this side of a sum."""
        before, self._looks_only = self._looks_only, True
        try:
            self.follow(at)
        except NoOutputLayerError:
            return False
        finally:
            self._looks_only = before
        return True

    def _is_idempotent(self, at: _At) -> bool:
        """Whether ``at`` leaves its own results as they are, and the block reads such a result."""
        if not _clips(at):
            return False
        return not self._before or self._reads_clipped()

    def _reads_clipped(self) -> bool:
        """Whether what the first block reads has gone through such an operation."""
        at = _At(self._regions[self._block], self._end)
        while True:
            while isinstance(at.node, fx.Node) and at.node.op == "placeholder":
                calls = list(_calls_of(at.region, self._regions))
                if len(calls) != 1:
                    return False
                given = at.region.form.values(tuple(calls[0].node.args), dict(calls[0].node.kwargs))
                if given is None:
                    return False
                at = _At(calls[0].region, given[str(at.node.target)])
            if not isinstance(at.node, fx.Node):
                return False
            if not (at.node.op == "call_module" and isinstance(self._module(at), POOLS)):
                return _clips(at)
            at = _At(at.region, at.node.args[0])

    # Branches

    def zero(self, at: _At) -> None:
        """Zero the last layers of a branch, so that its value is zero."""
        at = self._resolved(at)
        node = at.node
        if not isinstance(node, fx.Node):
            if node != 0:
                raise NoOutputLayerError(f"{at.name()} adds a constant")
            return
        if node is self._end or node.op == "placeholder":
            raise NoOutputLayerError(f"a branch gives back an input of the block: {at.name()}")
        if node.op == "get_attr":
            self._take(at, str(node.target))
        elif node.op == "call_module":
            self._zero_module(at)
        elif node.target in WEIGHTED:
            self._zero_operands(at)
        elif node.target in ADD or node.target in (torch.cat, torch.stack):
            parts = node.args[0] if node.target in (torch.cat, torch.stack) else node.args[:2]
            for part in parts:  # type: ignore[union-attr]
                self.zero(_At(at.region, part, at.caller))
        elif node.target in TIMES:
            self._zero_factor(at)
        elif is_move(node.target):
            self._zero_element(at)
        elif at.caller is not None and node is at.region.base.output_node().args[0]:
            # A function that is one operation of the graph (by `torch.fx.wrap`): a run shows what is in it.
            self.take_of_run(self._branch_ends(at.region.name, None))
        else:
            raise NoOutputLayerError(f"a branch ends with {at.name()}, which is no layer with weights")

    def _zero_module(self, at: _At) -> None:
        module, path = self._module(at), str(at.node.target)
        if isinstance(module, LAYERS + NORMS):
            names = [name for name, _ in module.named_parameters(recurse=False)]
            if not names:
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    raise NoOutputLayerError(f"a branch ends with {at.name()}, a norm without weights")
                return self.zero(_At(at.region, at.node.args[0], at.caller))
            if module._parameters.get("weight") is None:
                raise NoOutputLayerError(
                    f"a branch ends with {at.name()}, whose weight is computed of others"
                )
            for name in names:
                self._take(at, f"{path}.{name}")
            return None
        if isinstance(module, (*KEEP_ZERO, PrivateDropout)):
            return self.zero(_At(at.region, at.node.args[0], at.caller))
        inside = self._entered(at)
        return self._end_in_a_run(at, None) if inside is None else self.zero(inside)

    def _end_in_a_run(self, at: _At, element: int | None) -> None:
        """Zero what ends a branch in code that has no graph."""
        path = f"{at.region.name}.{at.node.target}".lstrip(".")
        self.take_of_run(self._branch_ends(path, element))

    def take_of_run(self, names: set[str]) -> None:
        """Zero parameters that a run has shown, named from the host."""
        for name in names:
            if not name.startswith(f"{self._block}."):
                raise NoOutputLayerError(f"a branch ends with {name}, which is outside of the block")
            self.found.add(name[len(self._block) + 1 :])

    def _zero_operands(self, at: _At) -> None:
        """A layer as a function of weights."""
        node = at.node
        given = [*node.args, *node.kwargs.values()]
        weights = [arg for arg in given if isinstance(arg, fx.Node) and self._is_weight(_At(at.region, arg))]
        if not weights:
            raise NoOutputLayerError(f"a branch ends with {at.name()}, which multiplies no weights")
        for weight in weights:
            self.zero(_At(at.region, weight, at.caller))

    def _is_weight(self, at: _At) -> bool:
        while at.node.op == "call_method" and at.node.target in ("t", "to", "transpose", "type_as"):
            at = _At(at.region, at.node.args[0])
        return bool(at.node.op == "get_attr")

    def _zero_factor(self, at: _At) -> None:
        """One factor is enough: the one that ends with a layer, rather than a scale."""
        reasons = []
        factors = [arg for arg in at.node.args[:2] if isinstance(arg, fx.Node)]
        for factor in sorted(factors, key=lambda node: self._is_weight(_At(at.region, node))):
            before = set(self.found)
            try:
                self.zero(_At(at.region, factor, at.caller))
                return
            except NoOutputLayerError as reason:
                self.found = before
                reasons.append(str(reason))
        raise NoOutputLayerError(reasons[0] if reasons else f"{at.name()} has no factor with weights")

    def _zero_element(self, at: _At) -> None:
        value, element = at.node.args[0], at.node.args[1] if at.node.target is operator.getitem else None
        inner = self._resolved(_At(at.region, value, at.caller))
        if isinstance(inner.node, (tuple, list)) and isinstance(element, int):
            inner = _At(inner.region, inner.node[element], inner.caller)
        elif isinstance(inner.node, fx.Node) and inner.node.op == "call_module" and isinstance(element, int):
            inside = self._entered(inner)
            if inside is None:
                return self._end_in_a_run(inner, element)
            if isinstance(inside.node, (tuple, list)):
                inner = _At(inside.region, inside.node[element], inside.caller)
        return self.zero(inner)

    # Where things are

    def _take(self, at: _At, target: str) -> None:
        path = f"{at.region.name}.{target}"[len(self._block) + 1 :]
        module, _, name = target.rpartition(".")
        owner = at.region.module.get_submodule(module)
        if name not in owner._parameters:
            raise NoOutputLayerError(f"a branch ends with {path}, which is no parameter")
        self.found.add(path)

    def _module(self, at: _At) -> Any:
        return at.region.module.get_submodule(str(at.node.target))

    def _resolved(self, at: _At) -> _At:
        """What an input of a called module is where it was called."""
        while isinstance(at.node, fx.Node) and at.node.op == "placeholder" and at.caller is not None:
            call = at.caller
            args, kwargs = call.node.args, call.node.kwargs
            given = at.region.form.values(tuple(args), dict(kwargs))
            if given is None:
                raise NoOutputLayerError(f"{call.name()} is called in another way than it was traced")
            at = _At(call.region, given[str(at.node.target)], call.caller)
        return at

    def _entered(self, at: _At) -> _At | None:
        """What a called module returns, inside of it; None where it has no graph."""
        region = self._regions.get(f"{at.region.name}.{at.node.target}")
        if region is None or region.is_boundary:
            return None
        return _At(region, region.base.output_node().args[0], at)
