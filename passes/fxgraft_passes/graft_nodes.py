"""Writes the nodes of a graft into a graph; ``germinate`` describes them for each phase.

Their metadata is like that of the nodes around them, stack traces and values: ``torch.export``, ``make_fx``
and ``ShapeProp`` leave such metadata, and passes of others count on it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
import torch.fx as fx

from fxgraft_passes import _torch, operators
from fxgraft_passes.graft import GraftSpec, Phase, alpha_shape
from fxgraft_passes.metadata import metadata
from fxgraft_passes.observe import carries_no_gradient, observation_of
from fxgraft_passes.sites import GraftSite

Arguments = tuple[tuple[Any, ...], dict[str, Any], int | str]
"""Args and kwargs of a call, nodes among them, and the place or the name of the value in there."""


def read_early(graph: fx.Graph, value: fx.Node, site: GraftSite, phase: Phase) -> list[fx.Node]:
    """Write, behind a source, the nodes by which a branch reads it; none where the value will do."""
    if site.spec.fossil == 0:
        return []
    following = value.next
    while following.op == "placeholder":
        following = following.next
    while "graft_of" in following.meta:  # other branches from here
        following = following.next
    before = following.prev
    with graph.inserting_before(following):
        read = _seed_input(graph, value, site, phase)
        if site.spec.copy_source:
            _named(graph.call_method("clone", (read,)), "seed_input")
    return nodes_between(before, following)


def write_graft(
    graph: fx.Graph,
    host: fx.Node,
    read: fx.Node | None,
    site: GraftSite,
    phase: Phase,
    arguments: Arguments | None = None,
) -> fx.Node:
    """Write the nodes of one graft; return the one whose value leaves the slot.

    ``read`` is what a branch reads; None where the seed reads the host's value.
    """
    spec = site.spec
    if spec.fossil == 0:  # the seed has no effect any more: it does not run
        return _named(graph.call_method("view_as", (host, host)), "fossil")
    seed_input = _seed_input(graph, host, site, phase) if read is None else read
    if spec.fossil is not None:
        seed = _call(graph, f"{site.path}.module", seed_input, site, phase, arguments)
        return _fossil(graph, host, seed, spec)
    seed = _call(graph, site.path, seed_input, site, phase, arguments)  # the graft, which counts
    objective = (spec.objective, spec.radius)
    if phase is Phase.ISOLATED:
        passed = graph.call_function(operators.isolated, (host, seed, spec.mode, *objective, spec.copy))
        return _named(passed, "graft")
    alpha = _named(graph.get_attr(f"{site.path}.alpha"), "alpha")
    blend = operators.BLENDS[spec.mode]
    if phase is Phase.DETACHED and spec.isolated:
        seed = _named(graph.call_method("detach", (seed,)), "seed_output")
    attached = () if spec.isolated else (False,)
    # One in TRAINING that is not isolated passes on what it learns from: the reference needs its objective.
    if phase is Phase.SETTLED or (phase is Phase.DETACHED and spec.isolated):
        return _named(graph.call_function(blend, (host, seed, alpha, None, *objective, *attached)), "graft")
    learning = _named(graph.get_attr(f"{site.path}.learning"), "learning")
    if phase is Phase.SHADOW:
        shadowed = graph.call_function(operators.shadowed, (host, seed, alpha, learning, spec.mode))
        return _named(shadowed, "graft")
    return _named(graph.call_function(blend, (host, seed, alpha, learning, *objective, *attached)), "graft")


def _call(
    graph: fx.Graph, path: str, value: fx.Node, site: GraftSite, phase: Phase, arguments: Arguments | None
) -> fx.Node:
    """Write the call of the seed; return what it makes of ``value``."""
    if arguments is None or site.spec.call is None:
        return _named(graph.call_module(path, (value,)), "seed")
    args, kwargs, place = arguments

    def other_input(node: fx.Node) -> fx.Node:
        seen = observation_of(node)
        is_tensor = seen is not None and seen.kind == "Tensor"
        return node if not is_tensor or carries_no_gradient(node) else _seed_input(graph, node, site, phase)

    keys: list[int | str] = [*range(len(args)), *kwargs]
    given = {
        key: value
        if key == place
        else fx.node.map_arg(args[key] if isinstance(key, int) else kwargs[key], other_input)
        for key in keys
    }
    named = {key: argument for key, argument in given.items() if isinstance(key, str)}
    seed = _named(graph.call_module(path, tuple(given[i] for i in range(len(args))), named), "seed")
    metadata(seed)["called_with"] = place
    if site.spec.call.element is None:
        return seed
    return _named(graph.call_function(operator.getitem, (seed, site.spec.call.element)), "seed_value")


def _seed_input(graph: fx.Graph, value: fx.Node, site: GraftSite, phase: Phase) -> fx.Node:
    """What the seed reads: the value itself, or one through which no gradient reaches the host."""
    spec = site.spec
    if spec.fossil is not None or not spec.isolated:
        return value
    if spec.mode == "convex" and phase is not Phase.ISOLATED:
        # A convex seed takes the host's place, so its isolation ends when it has taken it.
        released = _named(graph.get_attr(f"{site.path}.released"), "released")
        return _named(graph.call_function(operators.release, (value, released)), "seed_input")
    return _named(graph.call_method("detach", (value,)), "seed_input")


def _fossil(graph: fx.Graph, host: fx.Node, seed: fx.Node, spec: GraftSpec) -> fx.Node:
    if spec.fossil != 1:
        folded = graph.call_function(operators.folded, (host, seed, spec.mode, spec.fossil))
        return _named(folded, "fossil")
    # A seed may compute in another precision than the host (under autocast, say).
    seed = graph.call_method("type_as", (seed, host))
    if spec.mode != "convex":
        return _named(graph.call_function(operator.add, (host, seed)), "fossil")
    # A consumer that writes into the value must not write into what the seed keeps for backward.
    return _named(graph.call_method("clone", (seed,)) if spec.copy else seed, "fossil")


def nodes_between(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes that stand between two, in order."""
    found = []
    while (first := first.next) is not last:
        found.append(first)
    return found


def _named(node: fx.Node, name: str) -> fx.Node:
    node._rename(name)
    return node


_ORIGIN = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn")
_VALUE = ("val", "tensor_meta", "example_value")


def describe(written: Iterable[fx.Node], host: fx.Node, source: fx.Node | None, mode: str) -> None:
    """Give nodes of a graft behind ``host`` the metadata that this has; what reads ``source`` that of it."""
    reads: set[fx.Node] = set() if source is None else {source}
    for node in written:
        node.meta.update({key: host.meta[key] for key in _ORIGIN if key in host.meta})
        if node.op == "get_attr":
            _describe_steering(node, host, mode)
            continue
        is_read = source is not None and node.op != "call_module" and bool(reads & set(node.all_input_nodes))
        if is_read:
            reads.add(node)
        like = source if is_read and source is not None else host
        node.meta.update({key: like.meta[key] for key in _VALUE if key in like.meta})


def shape_of(node: fx.Node) -> torch.Size | None:
    """The shape of a node's value, as far as its metadata tell."""
    seen = observation_of(node)
    if seen is not None and seen.kind == "Tensor":
        return seen.shape
    for key in _VALUE:
        shape = getattr(node.meta.get(key), "shape", None)
        if isinstance(shape, torch.Size):
            return shape
    return None


def _describe_steering(node: fx.Node, host: fx.Node, mode: str) -> None:
    """Of ``alpha`` and the flags: tensors of their own."""
    value: Any = host.meta.get("val", host.meta.get("example_value"))
    shape = shape_of(host)
    if shape is None:
        return
    is_alpha = str(node.target).endswith(".alpha")
    form = alpha_shape(mode, shape) if is_alpha else ()
    known = (
        value.dtype
        if isinstance(value, torch.Tensor)
        else getattr(host.meta.get("tensor_meta"), "dtype", None)
    )
    dtype = (torch.float64 if known is torch.float64 else torch.float32) if is_alpha else torch.bool
    made = value.new_empty(form, dtype=dtype) if isinstance(value, torch.Tensor) else None
    for key in ("val", "example_value"):
        if key in host.meta and made is not None:
            node.meta[key] = made
    if "tensor_meta" in host.meta:
        like = made if made is not None else torch.empty(form, dtype=dtype, device="meta")
        node.meta["tensor_meta"] = _torch.tensor_metadata(like)
