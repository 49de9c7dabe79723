"""One graph for train and eval mode out of a trace in each.

Tracing bakes ``self.training`` in, and what depends on it::

    dropout = F.dropout(x, 0.1, training=True)     # the trace in train mode
    dropout = F.dropout(x, 0.1, training=False)    # the trace in eval mode

    training = self.training                       # both
    by_mode = by_mode(training, True, False)
    dropout = F.dropout(x, 0.1, training=by_mode)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.fx as fx

from fxgraft.capture import trace_operators
from fxgraft.capture._proxy import UntraceableError
from fxgraft_passes.metadata import metadata
from fxgraft_passes.observe import observation_of


def merge_modes(graph: fx.Graph, other: fx.Graph, training: bool) -> None:
    """Make ``graph``, traced with ``self.training == training``, right for the other mode as well.

    Raises:
        UntraceableError: if the two traces differ in more than constants.
    """
    ours, theirs = list(graph.nodes), list(other.nodes)
    twin = dict(zip(theirs, ours, strict=False))
    if len(ours) != len(theirs) or any(
        (a.op, a.target) != (b.op, b.target) for a, b in zip(ours, theirs, strict=True)
    ):
        raise UntraceableError("takes another path in train mode than in eval mode")
    mode: fx.Node | None = None
    for a, b in zip(ours, theirs, strict=True):
        for where, here, there in _differences((a.args, a.kwargs), (b.args, b.kwargs), twin):
            if (value := _none_in_one(here, there, twin)) is not None:
                a.args, a.kwargs = _replaced((a.args, a.kwargs), where, value)
                continue
            if isinstance(here, fx.Node) or isinstance(there, fx.Node):
                raise UntraceableError(f"{a} reads another value in train mode than in eval mode")
            if mode is None:
                with graph.inserting_before(next(n for n in ours if n.op != "placeholder")):
                    mode = graph.get_attr("training")
            pair = (here, there) if training else (there, here)
            with graph.inserting_before(a):
                choice = graph.call_function(trace_operators.by_mode, (mode, *pair))
            a.args, a.kwargs = _replaced((a.args, a.kwargs), where, choice)
    for a, b in zip(ours, theirs, strict=True):
        _add_reader(a, b)


def _none_in_one(here: Any, there: Any, twin: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """The node that is None in one mode, where the code was given None itself, and not so in the other."""
    if here is None and isinstance(there, fx.Node) and _was_none(twin[there]):
        return twin[there]
    if there is None and isinstance(here, fx.Node):
        theirs = next(node for node, ours in twin.items() if ours is here)
        return here if _was_none(theirs) else None
    return None


def _was_none(node: fx.Node) -> bool:
    seen = observation_of(node)
    return seen is not None and seen.kind == "NoneType"


def _add_reader(ours: fx.Node, theirs: fx.Node) -> None:
    """Record that a node's very tensor is read elsewhere in the other mode (as of dropout in eval)."""
    seen, other = observation_of(ours), observation_of(theirs)
    if seen is not None and other is not None and not seen.read_elsewhere:
        metadata(ours)["observation"] = replace(seen, read_elsewhere=other.read_elsewhere)


def _differences(
    ours: Any, theirs: Any, twin: dict[fx.Node, fx.Node], where: tuple[Any, ...] = ()
) -> list[tuple[tuple[Any, ...], Any, Any]]:
    """The places at which two argument structures differ: path, ours, theirs."""
    if isinstance(theirs, fx.Node):
        return [] if twin[theirs] is ours else [(where, ours, theirs)]
    if isinstance(ours, slice) and isinstance(theirs, slice):
        ours, theirs = _parts(ours), _parts(theirs)
    if isinstance(ours, (tuple, list)) and isinstance(theirs, (tuple, list)):
        if len(ours) == len(theirs):
            pairs = enumerate(zip(ours, theirs, strict=True))
            return [d for i, (a, b) in pairs for d in _differences(a, b, twin, (*where, i))]
    elif isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return [d for k in ours for d in _differences(ours[k], theirs[k], twin, (*where, k))]
    same = type(ours) is type(theirs) and (ours == theirs or ours is theirs)
    return [] if same else [(where, ours, theirs)]


def _replaced(structure: Any, where: tuple[Any, ...], value: Any) -> Any:
    if not where:
        return value
    step, *rest = where
    if isinstance(structure, dict):
        return {k: _replaced(v, tuple(rest), value) if k == step else v for k, v in structure.items()}
    parts = _parts(structure) if isinstance(structure, slice) else structure
    items = [_replaced(v, tuple(rest), value) if i == step else v for i, v in enumerate(parts)]
    if isinstance(structure, slice):
        return slice(*items)
    return type(structure)(items) if type(structure) in (tuple, list) else tuple(items)


def _parts(index: slice) -> tuple[Any, Any, Any]:
    return index.start, index.stop, index.step
