"""The checks that a graph has to pass before it runs. See `Verify`, the pass."""

from __future__ import annotations

import torch.fx as fx

from fxgraft_passes import operators
from fxgraft_passes.errors import FxGraftError, IsolationError, SlotError
from fxgraft_passes.observe import carries_no_gradient
from fxgraft_passes.sites import GraftSite, exits, host_value, nodes_of


def verify(graph: fx.Graph) -> None:
    """Check the whole graph. Raises `IsolationError`, `SlotError` or `FxGraftError`."""
    try:
        graph.lint()  # each value is there before it is read: so there are no cycles
    except Exception as error:
        raise FxGraftError(
            f"the rewritten graph is malformed: {error}. Correct the pass that wrote it"
        ) from error
    for site, exit_node in exits(graph):
        _check_readers(graph, site, exit_node)
        if site.spec.isolated and site.spec.fossil is None:
            _check_isolation(graph, site, exit_node)


def _check_readers(graph: fx.Graph, site: GraftSite, exit_node: fx.Node) -> None:
    graft = set(nodes_of(graph, site.name))
    passed_by = [user for user in host_value(exit_node).users if user not in graft]
    if passed_by:
        raise SlotError(
            f"seed {site.name!r} at node {site.node!r}: expected every consumer of the value behind "
            f"the graft; {', '.join(map(str, passed_by))} read(s) the value past it"
        )
    for node in graft - {exit_node}:
        if stray := [user for user in node.users if user not in graft]:
            raise IsolationError(
                f"seed {site.name!r}: {node} is read outside of the graft, by "
                f"{', '.join(map(str, stray))}; expected the blend to be the only way out"
            )


def _check_isolation(graph: fx.Graph, site: GraftSite, exit_node: fx.Node) -> None:
    """Whatever comes into the graft from outside must come through a node that stops gradients."""
    graft = set(nodes_of(graph, site.name))
    for node in graft:
        allowed = {host_value(exit_node)} if node is exit_node else set()
        for source in set(node.all_input_nodes) - graft - allowed:
            if not _stops_gradients(node) and not carries_no_gradient(source):
                raise IsolationError(
                    f"seed {site.name!r} at node {site.node!r}: {node} reads {source} without a detach; "
                    f"expected no path on which a gradient could reach the host through the seed"
                )


def _stops_gradients(node: fx.Node) -> bool:
    return node.target in ("detach", operators.release)
