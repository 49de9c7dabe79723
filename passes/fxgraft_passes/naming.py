"""Names for nodes, as torchvision's feature extraction gives them: ``layer1.0.relu_1``.

A call of a submodule is named by its path, an operation by its own name, both behind the path of
the region; a second use of a name gets ``_1``.
"""

from __future__ import annotations

import re

import torch.fx as fx

OWN_FORWARD = "_own_forward"
"""The attribute in which a module keeps its class's ``forward`` for a graph that is one call of it: that
call is named as the module."""


def qualified_names(graph: fx.Graph, prefix: str = "") -> dict[fx.Node, str]:
    """Node -> name for all nodes but the inputs and the output. ``prefix``: the region's path."""
    names: dict[fx.Node, str] = {}
    used: dict[str, int] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "output") or "graft_of" in node.meta:
            continue
        base = str(node.target) if node.op in ("call_module", "get_attr") else _operation(node)
        name = f"{prefix}.{base}" if prefix else base
        if _is_own_forward(node):
            continue
        if any(map(_is_own_forward, node.all_input_nodes)):
            name = prefix
        count = used.get(name, 0)
        used[name] = count + 1
        names[node] = f"{name}_{count}" if count else name
    return names


def _is_own_forward(node: fx.Node) -> bool:
    return node.op == "get_attr" and node.target == OWN_FORWARD


def _operation(node: fx.Node) -> str:
    return re.sub(r"_\d+$", "", node.name)
