"""Values that are the very tensor of an earlier node, and are read elsewhere as well.

``x.to(torch.float32)`` of a float32 ``x``, an ``nn.Identity`` and dropout in eval mode return ``x`` itself,
and ``encoder_outputs[0]`` is what ``encoder_outputs.last_hidden_state`` is. A graft behind such a value does
not affect the other readers of ``x``. The values would be right, but the gradients of ``x`` would be
summed up in another order, and so differ in their last bits::

    to = x.to(torch.float32)        # with a graft here: d_add + (d_mul + d_pow), not (d_add + d_mul) + d_pow
    scaled = to * to.pow(2).mean()
    add = x + scaled                # reads x past `to`, and later

Of two terms the order does not matter, nor where everyone else has read ``x`` before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch.fx as fx
from torch import Tensor
from torch.utils import _pytree as pytree

Seen = Mapping[fx.Node, Sequence[tuple[int, Any]]]
"""Node -> when it was computed in the run, and what, for each time."""

_OF_NO_GRADIENT = (int, float, bool, str)


def read_elsewhere(seen: Seen) -> dict[fx.Node, str]:
    """Node -> a later reader of its very tensor past the node, in words; where that matters."""
    return _Readers(seen).found()


class _Readers:
    def __init__(self, seen: Seen):
        self._seen = seen
        self._holders: dict[int, list[tuple[int, fx.Node]]] = defaultdict(list)
        self._runs: dict[fx.Graph, list[tuple[int, fx.Node]]] = defaultdict(list)
        for node, entries in seen.items():
            for order, value in entries:
                self._runs[node.graph].append((order, node))
                for tensor in {id(leaf): leaf for leaf in _leaves(value) if isinstance(leaf, Tensor)}:
                    self._holders[tensor].append((order, node))
        for times in (*self._holders.values(), *self._runs.values()):
            times.sort(key=lambda time: time[0])

    def found(self) -> dict[fx.Node, str]:
        found: dict[fx.Node, str] = {}
        for node, entries in self._seen.items():
            if node.op in ("placeholder", "get_attr") or _is_one_term(node):
                continue
            for order, value in entries:
                if isinstance(value, Tensor) and (reader := self._reader(node, order, value)):
                    found[node] = reader
        return found

    def _reader(self, node: fx.Node, order: int, value: Tensor) -> str | None:
        earlier = [(then, m) for then, m in self._holders[id(value)] if then < order]
        if not earlier:
            return None
        if earlier[0][1].op == "get_attr":
            return "whoever else reads that parameter"
        is_called_from_a_graph = False
        for then, holder in earlier:
            around = self._in_progress(holder, node, order)
            is_called_from_a_graph |= around is not None
            for user in holder.users:
                if user is node or user is around:
                    continue
                if self._reads(user, value, then, order, holder.graph is node.graph or around is not None):
                    return str(user) if user.op != "output" else "the caller"
        is_from_outside = any(m.op == "placeholder" and m.graph is node.graph for _, m in earlier)
        if is_from_outside and not is_called_from_a_graph and value.requires_grad:
            return "code that has no graph, perhaps"
        return None

    def _in_progress(self, holder: fx.Node, node: fx.Node, order: int) -> fx.Node | None:
        """The call in the graph of ``holder`` inside of which ``node`` is computed."""
        if holder.graph is node.graph:
            return None
        run = self._runs[holder.graph]
        place = bisect_right(run, order, key=lambda time: time[0])
        return run[place][1] if place < len(run) and run[place][1].op == "call_module" else None

    def _reads(self, user: fx.Node, value: Tensor, then: int, order: int, is_running: bool) -> bool:
        """Whether ``user`` reads ``value``, held since ``then``, later than ``order``."""
        if user.op == "output":
            return is_running
        times = [(time, made) for time, made in self._seen.get(user, ()) if time > then]
        if not times or times[0][0] < order:
            return False
        made = times[0][1]
        takes_a_part = getattr(user.target, "__name__", "") in ("getitem", "getattr")
        return any(leaf is value for leaf in _leaves(made)) if takes_a_part else _has_gradient(made)


def _is_one_term(node: fx.Node) -> bool:
    """Whether one operation reads the value, and once: then there is one term of its gradient."""
    read: list[fx.Node] = []
    for user in node.users:
        fx.node.map_arg((user.args, user.kwargs), lambda a: read.append(a) if a is node else None)
        if user.op == "call_module":
            return False
    return len(read) == 1


def _has_gradient(value: Any) -> bool:
    return value is not None and not isinstance(value, _OF_NO_GRADIENT)


def _leaves(value: Any) -> Iterator[Any]:
    for leaf in pytree.tree_leaves(value):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            for field in fields(leaf):
                yield from _leaves(getattr(leaf, field.name, None))
        else:
            yield leaf
