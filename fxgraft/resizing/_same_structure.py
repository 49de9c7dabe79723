"""Whether a branch has, node by node, the same structure as the layers that it is parallel to.

    source ──► up ──► gelu ──► down ──► slot        the region's own nodes
       └─────► up'──► gelu ──► down'──► + ──►       the seed's

Layers may differ in sizes; all else has to be equal. What is found is which parameter (or buffer)
corresponds to which.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch.fx as fx
from torch import nn

from fxgraft.capture.merge import local_name, merge
from fxgraft.capture.region import Region
from fxgraft.host.host import Host
from fxgraft.resizing._activations import activation_of
from fxgraft.resizing._same_settings import (
    Shares,
    StructureMismatchError,
    check_settings,
    is_of_one_class,
    sizes,
    tensors_of,
)
from fxgraft.seeds.dropout import PrivateDropout
from fxgraft.slots.structure import Placement
from fxgraft.slots.walk import between, the_value
from fxgraft_passes import Slot

if TYPE_CHECKING:
    import networkx as nx


def counterparts(host: Host, placement: Placement, module: nn.Module) -> Counterparts:
    """Match the layers of the host with those of the branch.

    Args:
        host: the host.
        placement: the branch's.
        module: what it runs.

    Raises:
        StructureMismatchError: it has another structure.
    """
    slot, source = placement.slot, placement.slot.source
    if source is None:
        raise StructureMismatchError("is no branch: it has no source, and stands beside nothing")
    if slot.reader is not None or slot.others:
        raise StructureMismatchError("stands on one edge, or behind several calls")
    if placement.spec.mode != "residual":
        raise StructureMismatchError(f"is {placement.spec.mode}, and no sum with what it stands beside")
    region = host.regions[host.structure.runs_in(placement)]
    start, end = _ends(host, region, slot, source)
    beside = between(start, end)
    if isinstance(beside, str):
        raise StructureMismatchError(f"stands beside {beside}")
    layers = {n: region.module.get_submodule(str(n.target)) for n in beside if n.op == "call_module"}
    if len(beside) == len(layers) == 1 and type(layers[beside[0]]) is type(module):
        return Counterparts.of([(_path(region, beside[0]), layers[beside[0]], "", module)])
    ours = _form(beside, region.module, start)
    theirs = _form(*_traced(module, {type(layer) for layer in layers.values()}))
    same_kind = _is_like, (lambda a, b: a["at"] == b["at"])
    from networkx.algorithms.isomorphism import DiGraphMatcher  # heavy: imported when it is needed

    failed: StructureMismatchError | None = None
    for found in islice(DiGraphMatcher(ours, theirs, *same_kind).isomorphisms_iter(), _MOST_FORMS):
        named = [
            (node, layer, str(found[node].target))
            for node, layer in layers.items()
            if found[node].op == "call_module"  # and not an activation as a function
        ]
        try:
            return Counterparts.of(
                [(_path(region, node), layer, n, module.get_submodule(n)) for node, layer, n in named]
            )
        except StructureMismatchError as error:
            failed = failed or error
    raise failed or StructureMismatchError(
        f"is of another form than what lies between {source.name!r} and {slot.name!r}"
    )


_MOST_FORMS = 64
"""In how many ways two graphs are laid on each other, where layers differ in settings."""


@dataclass(frozen=True)
class Counterparts:
    """The matched tensors and settings.

    Attributes:
        same: parameter or buffer of the host -> that of the branch, in the order in which they are used.
        shares: numbers of the host's modules that have to be the sums of both, once they are joined.
    """

    same: dict[str, str]
    shares: Shares

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, nn.Module, str, nn.Module]]) -> Counterparts:
        """Of modules: path and module of the host, name and module in the branch.

        Raises:
            StructureMismatchError: two of them differ in more than sizes.
        """
        same = {ours: theirs for pair in pairs for ours, theirs in _pairs(*pair)}
        tensors = [(tensors_of(ours), tensors_of(theirs)) for _, ours, _, theirs in pairs]
        known = {size for own, other in tensors for size in sizes(own, other)}
        shares = Shares()
        for path, ours, _, theirs in pairs:
            check_settings(path, ours, theirs, known, shares)
        return cls(same, shares)


def _ends(host: Host, region: Region, slot: Slot, source: Slot) -> tuple[fx.Node, fx.Node]:
    """The nodes of source and slot in one graph, in which the regions that the branch joins are one."""
    parts = [host.regions[name] for name in host.structure.merged.get(region.name, ())]
    graph, names = merge(region, parts) if parts else (region.base, {})
    found = []
    for place in (source, slot):
        name = local_name(place.region, place.node.name, region.name)
        node = next(node for node in graph.nodes if node.name == names.get(name, name))
        found.append(the_value(node))
    return found[0], found[1]


def _path(region: Region, node: fx.Node) -> str:
    return f"{region.name}.{node.target}" if region.name else str(node.target)


def _pairs(path: str, ours: nn.Module, name: str, theirs: nn.Module) -> Iterator[tuple[str, str]]:
    own, other = tensors_of(ours), tensors_of(theirs)
    if own.keys() != other.keys():
        raise StructureMismatchError(
            f"has other parameters or buffers than {path}: {', '.join(own.keys() ^ other.keys())}"
        )
    for key in own:
        yield f"{path}.{key}", f"{name}.{key}" if name else key


def _traced(module: nn.Module, leaves: Collection[type]) -> tuple[list[fx.Node], nn.Module, fx.Node]:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            is_dropout = isinstance(m, PrivateDropout)
            return is_dropout or type(m) in leaves or super().is_leaf_module(m, module_qualified_name)

    if type(module) in leaves or isinstance(module, nn.Linear | nn.Identity):
        raise StructureMismatchError(f"is one {type(module).__name__}")
    try:
        graph = Tracer().trace(module)
    except Exception as error:
        raise StructureMismatchError(f"cannot be traced by itself: {error}") from error
    given = [node for node in graph.nodes if node.op == "placeholder"]
    if len(given) != 1:
        raise StructureMismatchError("reads other things than its one input")
    inner = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    return inner, module, given[0]


def _form(nodes: Collection[fx.Node], root: nn.Module, source: fx.Node) -> nx.DiGraph[Any]:
    """Nodes with what they do, edges with the place among the arguments."""
    import networkx as nx  # heavy: imported when it is needed

    form: nx.DiGraph[Any] = nx.DiGraph()
    form.add_node("source", kind="source", activation=None)
    for node in nodes:
        form.add_node(node, kind=_kind(node, root), activation=activation_of(node, root))
    for node in nodes:
        for place, other in _places(node):
            real = the_value(other)
            start = real if real is not source else "source"
            at = form.edges[start, node]["at"] if form.has_edge(start, node) else frozenset()
            form.add_edge(start, node, at=at | {place})
    return form


def _places(node: fx.Node) -> Iterator[tuple[str, fx.Node]]:
    for i, value in enumerate((*node.args, *node.kwargs.items())):
        found: list[fx.Node] = []
        fx.node.map_arg(value, found.append)  # type: ignore[arg-type]
        yield from ((f"{i}.{k}", other) for k, other in enumerate(found))


def _is_like(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether two nodes, by what is noted of them, do the same."""
    if ours["kind"] == theirs["kind"]:
        return True
    both = [node["kind"][0] for node in (ours, theirs) if isinstance(node["kind"][0], nn.Module)]
    if len(both) == 2:
        return is_of_one_class(*both)
    return ours["activation"] is not None and ours["activation"] == theirs["activation"]


def _kind(node: fx.Node, root: nn.Module) -> tuple[Any, ...]:
    if node.op == "call_module":
        return (root.get_submodule(str(node.target)),)  # what else it is set to is compared once it is found
    rest = fx.node.map_arg((node.args, node.kwargs), lambda other: None)
    return node.op, str(node.target), repr(rest)
