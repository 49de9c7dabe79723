"""How many terms of a value's gradient come from one reader; and whether a graft there would regroup the sum.

Autograd adds up the gradient of a value term by term, from its last reader to its first. A graft on the edge
to one reader adds up the terms of that reader by itself. Floating point addition is not associative::

    y = x.tanh()
    z = y * y                    # two terms, t1 and t2
    out = z + y.sin()            # one term, t3, of a later reader

    without a graft: (t3 + t2) + t1        with one on the edge from y to mul: t3 + (t2 + t1)

A reader of one term changes nothing, nor does the last reader, whose terms are added up first anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft.capture.capture import is_leaf
from fxgraft.capture.merge import not_watched, plain
from fxgraft.capture.region import Region
from fxgraft_passes.observe import observation_of

_MANY = 2  # or more, or not known


def regrouped(value: fx.Node, reader: fx.Node, region: Region, regions: Mapping[str, Region]) -> str | None:
    """Another reader of ``value``, so that a graft on the edge to ``reader`` would regroup the sum; or None.

    Args:
        value: a node of the graph of ``region``.
        reader: a node that reads it.
        region: theirs.
        regions: all of the host.
    """
    other = _reads_later(value, reader)
    if other is None:
        return None
    terms = _Terms({known.module: known for known in regions.values()})
    return other if terms.of_reader(value, reader, region) >= _MANY else None


def _reads_later(value: fx.Node, reader: fx.Node) -> str | None:
    if value.op == "placeholder":
        return "the caller, perhaps,"
    position = {node: i for i, node in enumerate(value.graph.nodes)}
    for user in value.users:
        if user.op == "output":
            return "the caller, perhaps,"
        if user is not reader and position[user] > position[reader]:
            return str(user)
        if user is not reader and _may_be_same(value, user):
            return f"whoever reads {user}"
    return None


def _may_be_same(value: fx.Node, user: fx.Node) -> bool:
    """Whether ``user`` may return the very tensor that it reads, as ``to`` does and dropout in eval mode."""
    ours, theirs = observation_of(value), observation_of(user)
    if ours is None or theirs is None:
        return True
    return theirs.kind == "Tensor" and (ours.memory, ours.shape) == (theirs.memory, theirs.shape)


class _Terms:
    def __init__(self, regions: Mapping[nn.Module, Region]):
        self._regions = regions

    def of_reader(self, value: fx.Node, reader: fx.Node, region: Region) -> int:
        """How many terms of the gradient of ``value`` come from ``reader``."""
        if reader.op == "output" or _times(value, reader) > 1:
            return _MANY
        if reader.op == "call_module":
            module = region.module.get_submodule(str(reader.target))
            if module in self._regions:
                return self._inside(value, reader, self._regions[module])
            if not is_leaf(module) or not not_watched(module, *(name for name, _ in module.named_modules())):
                return _MANY  # its code has no graph, and running it would be noticed
            run = _without_data(module)
        else:
            run = _operation(reader)
        terms = _measured(value, reader, run)
        return terms + (self._of_value(reader, region) if _may_be_same(value, reader) else 0)

    def _of_value(self, value: fx.Node, region: Region) -> int:
        return sum(self.of_reader(value, user, region) for user in value.users)

    def _inside(self, value: fx.Node, call: fx.Node, region: Region) -> int:
        """The terms in the region that ``call`` runs."""
        inputs = region.form.values(*plain((call.args, call.kwargs)))
        if inputs is None:
            return _MANY
        read = [
            node for node in region.base.find_nodes(op="placeholder") if inputs[str(node.target)] is value
        ]
        return sum(self._of_value(node, region) for node in read) if read else _MANY


def _times(value: fx.Node, reader: fx.Node) -> int:
    """How often ``value`` stands among the arguments of ``reader``."""
    found: list[fx.Node] = []
    fx.node.map_arg((reader.args, reader.kwargs), lambda node: found.append(node) if node is value else None)
    return len(found)


def _measured(value: fx.Node, reader: fx.Node, run: Callable[..., Any]) -> int:
    """The terms that autograd records when ``run`` is called with tensors without data."""
    try:
        with torch.enable_grad():
            stand_in = _stand_in(value).requires_grad_()
            args, kwargs = fx.node.map_arg(
                (reader.args, reader.kwargs), lambda node: stand_in if node is value else _stand_in(node)
            )
            out = run(*plain(args), **plain(kwargs))
    except Exception:  # not everything runs without data
        return _MANY
    return _edges(out, stand_in)


def _stand_in(node: fx.Node) -> Any:
    seen = observation_of(node)
    if seen is not None and seen.kind == "bool":
        return True
    if seen is None or seen.kind != "Tensor":
        raise TypeError(f"{node} is no tensor")
    return torch.empty(seen.shape, dtype=seen.dtype, device="meta")


def _operation(reader: fx.Node) -> Callable[..., Any]:
    if callable(reader.target):
        return reader.target
    return getattr(Tensor, str(reader.target))  # type: ignore[no-any-return]


def _without_data(module: nn.Module) -> Callable[..., Any]:
    tensors = {
        name: tensor.detach().to("meta")
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    return lambda *args, **kwargs: torch.func.functional_call(module, tensors, args, kwargs)


def _edges(out: Any, leaf: Tensor) -> int:
    """How many edges of the autograd graph behind ``out`` lead to ``leaf``."""
    front = [t.grad_fn for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and t.grad_fn is not None]
    seen = set(front)
    edges = 0
    while front:
        for following, _ in front.pop().next_functions:
            if getattr(following, "variable", None) is leaf:
                edges += 1
            elif following is not None and following not in seen:
                seen.add(following)
                front.append(following)
    return edges
