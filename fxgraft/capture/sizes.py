"""The nodes of a trace that compute with the sizes of tensors."""

from __future__ import annotations

import operator

import torch.fx as fx

from fxgraft_passes.observe import Observer


def is_of_sizes(node: fx.Node) -> bool:
    """Whether a value is computed from the sizes of tensors and nothing else."""
    if node.op == "call_method":
        return node.target == "size"
    arithmetic = getattr(node.target, "__module__", "") == "_operator"
    return node.op == "call_function" and arithmetic and all(map(is_of_sizes, node.all_input_nodes))


def prune_unused_items(graph: fx.Graph, observer: Observer) -> None:
    """Drop the elements of sizes that were made for unpacking and not used."""
    for node in reversed(graph.nodes):
        is_size = node.op == "call_method" and node.target == "size" and len(node.args) == 1
        is_item = node.target is operator.getitem and getattr(node.args[0], "target", "") == "size"
        if (is_size or is_item) and not node.users:
            observer.forget(node)
            graph.erase_node(node)
