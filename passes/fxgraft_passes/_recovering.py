"""Find grafts again in a graph that was traced anew, and lost the marks in its metadata.

``fx.Transformer``, ``fx.symbolic_trace``, pickling: each makes new nodes. What a graft is can be read off the
operator by which its value leaves, and off the call of the seed that this reads::

    detach = relu.detach()
    _seeds_a = self._seeds.a(detach)                                 # which seed
    isolated = isolated(relu, _seeds_a, 'residual', 'trust', 0.03)   # the way out, and how it is wired

A fossil at alpha 1 leaves by plain operations, which could be anyone's: it is not found again, and `Cull` and
`Fossilize` say so.
"""

from __future__ import annotations

import re
from typing import Any

import torch.fx as fx

from fxgraft_passes import operators
from fxgraft_passes.errors import SlotError
from fxgraft_passes.graft import SEEDS, GraftSpec
from fxgraft_passes.sites import GraftSite, mark, mark_reader, site_of

_EXITS = (operators.isolated, operators.residual, operators.convex, operators.shadowed, operators.folded)
_PATH = re.compile(rf"(?:.*\.)?{SEEDS}(?:_\d+)?\.[\w-]+")
_OWN = re.compile(rf"(?:.*\.)?{SEEDS}(?:_\d+)?\.([\w-]+)(?:\..*)?")


def recover(graph: fx.Graph) -> None:
    """Mark the grafts of ``graph`` that are not marked, as far as they can be recognised."""
    for node in graph.nodes:
        if node.target in _EXITS and site_of(node) is None:
            _recover(node)


def refuse_lost(graph: fx.Graph, name: str, action: str) -> None:
    """Raise `SlotError` if a seed of that name is, or may be, in ``graph`` without being known as a graft."""
    for node in graph.nodes:
        if "graft_of" in node.meta:
            continue
        found = _OWN.fullmatch(str(node.target)) if node.op in ("call_module", "get_attr") else None
        if node.target in _EXITS or (found is not None and found[1] == name):
            raise SlotError(
                f"cannot {action} seed {name!r}: {node} is part of a graft, and what else belongs to it "
                f"is not known: the graph was traced anew (by symbolic_trace, fx.Transformer or pickle), "
                f"through the seed, or with it as a fossil. Do it on the module that Germinate returned"
            )


def _recover(leaving: fx.Node) -> None:
    host, seed = leaving.args[0], leaving.args[1]
    nodes = [leaving]
    if isinstance(seed, fx.Node) and seed.target == "detach":  # of `Phase.DETACHED`
        nodes.append(seed)
        seed = seed.args[0]
    if not isinstance(seed, fx.Node) or not isinstance(host, fx.Node) or seed.op != "call_module":
        return
    path = str(seed.target).removesuffix(".module")
    if not _PATH.fullmatch(path):  # a part of a seed that was traced through, say
        return
    nodes += [seed, *_steering(leaving, path)]
    value, isolated, copy_source = seed.args[0], False, False
    reader = seed
    while isinstance(value, fx.Node) and value.target in ("clone", "detach", operators.release):
        if value is host or set(value.users) - set(nodes):
            break
        isolated |= value.target != "clone"
        copy_source |= value.target == "clone"
        nodes += [value, *_steering(value, path)]
        reader, value = value, value.args[0]
    if not isinstance(value, fx.Node):
        return
    spec = GraftSpec(isolated=isolated, copy_source=copy_source, **_spec(leaving))
    source = None if value is host else _slot_of(value)
    mark(GraftSite(path.rpartition(".")[2], _slot_of(host), path, spec, source), leaving, nodes)
    if source is not None:
        mark_reader(reader)


def _steering(node: fx.Node, path: str) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if n.op == "get_attr" and str(n.target).startswith(f"{path}.")]


def _slot_of(value: fx.Node) -> str:
    """The name of the node at whose slot ``value`` leaves a graft; its own, if it leaves none."""
    site = site_of(value)
    return value.name if site is None else site.node


def _spec(leaving: fx.Node) -> dict[str, Any]:
    """How the graft is wired, by the arguments of the operator."""
    args: tuple[Any, ...] = leaving.args
    if leaving.target is operators.isolated:
        mode, objective, radius, *copies = args[2:]
        return {"mode": mode, "objective": objective, "radius": radius, "copy": bool(copies and copies[0])}
    if leaving.target is operators.shadowed:
        return {"mode": args[4]}
    if leaving.target is operators.folded:
        return {"mode": args[2], "fossil": args[3]}
    mode = "convex" if leaving.target is operators.convex else "residual"
    return {"mode": mode, "objective": args[4], "radius": args[5]}
