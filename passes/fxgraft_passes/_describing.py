"""What nodes of a graft tell of themselves, as those around them do: where they are from, and their values.

``torch.export``, ``make_fx`` and ``ShapeProp`` leave such metadata; passes of others count on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.fx as fx

from fxgraft_passes.graft import alpha_shape
from fxgraft_passes.observe import observation_of

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
        from torch.fx.passes.shape_prop import _extract_tensor_metadata

        like = made if made is not None else torch.empty(form, dtype=dtype, device="meta")
        node.meta["tensor_meta"] = _extract_tensor_metadata(like)
