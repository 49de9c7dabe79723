"""Whether a branch is, node by node, of the same form as what it stands beside.

    source ──► up ──► gelu ──► down ──► slot        the region's own nodes
       └─────► up'──► gelu ──► down'──► + ──►       the seed's

Layers may differ in sizes; all else has to be equal. What is found is which parameter (or buffer)
stands for which.
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
from fxgraft.resizing._joining import tensors_of
from fxgraft.resizing._not_alike import NotAlikeError
from fxgraft.resizing._same_settings import Shares, check_settings, is_of_one_class, sizes
from fxgraft.seeds.dropout import PrivateDropout
from fxgraft.slots.structure import Placement
from fxgraft_passes import Slot, operators

if TYPE_CHECKING:
    import networkx as nx


def counterparts(host: Host, placement: Placement, module: nn.Module) -> Counterparts:
    """What of the host is what of the branch.

    Args:
        host: the host.
        placement: the branch's.
        module: what it runs.

    Raises:
        NotAlikeError: it is of another form.
    """
    slot, source = placement.slot, placement.slot.source
    if source is None:
        raise NotAlikeError("is no branch: it has no source, and stands beside nothing")
    if slot.reader is not None or slot.others:
        raise NotAlikeError("stands on one edge, or behind several calls")
    if placement.spec.mode != "residual":
        raise NotAlikeError(f"is {placement.spec.mode}, and no sum with what it stands beside")
    region = host.regions[host.structure.runs_in(placement)]
    start, end = _ends(host, region, slot, source)
    beside = _between(start, end)
    layers = {n: region.module.get_submodule(str(n.target)) for n in beside if n.op == "call_module"}
    if len(beside) == len(layers) == 1 and type(layers[beside[0]]) is type(module):
        return Counterparts.of([(_path(region, beside[0]), layers[beside[0]], "", module)])
    ours = _form(beside, region.module, start)
    theirs = _form(*_traced(module, {type(layer) for layer in layers.values()}))
    same_kind = (lambda a, b: _is_like(a["kind"], b["kind"])), (lambda a, b: a["at"] == b["at"])
    from networkx.algorithms.isomorphism import DiGraphMatcher  # heavy: imported when it is needed

    failed: NotAlikeError | None = None
    for found in islice(DiGraphMatcher(ours, theirs, *same_kind).isomorphisms_iter(), _MOST_FORMS):
        named = [(node, layer, str(found[node].target)) for node, layer in layers.items()]
        try:
            return Counterparts.of(
                [(_path(region, node), layer, n, module.get_submodule(n)) for node, layer, n in named]
            )
        except NotAlikeError as error:
            failed = failed or error
    raise failed or NotAlikeError(
        f"is of another form than what lies between {source.name!r} and {slot.name!r}"
    )


_MOST_FORMS = 64
"""In how many ways two graphs are laid on each other, where layers differ in settings."""


@dataclass(frozen=True)
class Counterparts:
    """What stands for what.

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
            NotAlikeError: two of them differ in more than sizes.
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
        found.append(_itself(node))
    return found[0], found[1]


def _itself(node: fx.Node) -> fx.Node:
    """What a module returned is the very value."""
    while node.target is operators.returned:
        node = node.all_input_nodes[0]
    return node


def _path(region: Region, node: fx.Node) -> str:
    return f"{region.name}.{node.target}" if region.name else str(node.target)


def _pairs(path: str, ours: nn.Module, name: str, theirs: nn.Module) -> Iterator[tuple[str, str]]:
    own, other = tensors_of(ours), tensors_of(theirs)
    if own.keys() != other.keys():
        raise NotAlikeError(
            f"has other parameters or buffers than {path}: {', '.join(own.keys() ^ other.keys())}"
        )
    for key in own:
        yield f"{path}.{key}", f"{name}.{key}" if name else key


def _between(source: fx.Node, end: fx.Node) -> list[fx.Node]:
    """The nodes from behind ``source`` to ``end``."""
    found: set[fx.Node] = set()
    front = [end]
    while front:
        node = _itself(front.pop())
        if node is source or node in found:
            continue
        if node.op in ("placeholder", "get_attr"):
            raise NotAlikeError(f"stands beside code that reads {node.name!r}, too")
        found.add(node)
        front += node.all_input_nodes
    outside = {user for node in found - {end} for user in node.users if _reads(user) and user not in found}
    if outside:
        raise NotAlikeError(f"stands beside values that {next(iter(outside))} reads as well")
    return [node for node in end.graph.nodes if node in found]


def _reads(user: fx.Node) -> bool:
    return user.target is not operators.returned


def _traced(module: nn.Module, leaves: Collection[type]) -> tuple[list[fx.Node], nn.Module, fx.Node]:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            is_dropout = isinstance(m, PrivateDropout)
            return is_dropout or type(m) in leaves or super().is_leaf_module(m, module_qualified_name)

    if type(module) in leaves or isinstance(module, nn.Linear | nn.Identity):
        raise NotAlikeError(f"is one {type(module).__name__}")
    try:
        graph = Tracer().trace(module)
    except Exception as error:
        raise NotAlikeError(f"cannot be traced by itself: {error}") from error
    given = [node for node in graph.nodes if node.op == "placeholder"]
    if len(given) != 1:
        raise NotAlikeError("reads other things than its one input")
    inner = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    return inner, module, given[0]


def _form(nodes: Collection[fx.Node], root: nn.Module, source: fx.Node) -> nx.DiGraph[Any]:
    """Nodes with what they do, edges with the place among the arguments."""
    import networkx as nx  # heavy: imported when it is needed

    form: nx.DiGraph[Any] = nx.DiGraph()
    form.add_node("source", kind="source")
    for node in nodes:
        form.add_node(node, kind=_kind(node, root))
    for node in nodes:
        for place, other in _places(node):
            real = _itself(other)
            start = real if real is not source else "source"
            at = form.edges[start, node]["at"] if form.has_edge(start, node) else frozenset()
            form.add_edge(start, node, at=at | {place})
    return form


def _places(node: fx.Node) -> Iterator[tuple[str, fx.Node]]:
    for i, value in enumerate((*node.args, *node.kwargs.items())):
        found: list[fx.Node] = []
        fx.node.map_arg(value, found.append)  # type: ignore[arg-type]
        yield from ((f"{i}.{k}", other) for k, other in enumerate(found))


def _is_like(ours: Any, theirs: Any) -> bool:
    if ours == theirs:
        return True
    both = [kind[0] for kind in (ours, theirs) if isinstance(kind[0], nn.Module)]
    return len(both) == 2 and is_of_one_class(*both)


def _kind(node: fx.Node, root: nn.Module) -> tuple[Any, ...]:
    if node.op == "call_module":
        return (root.get_submodule(str(node.target)),)  # what else it is set to is compared once it is found
    rest = fx.node.map_arg((node.args, node.kwargs), lambda other: None)
    return node.op, str(node.target), repr(rest)
