"""Sparse tensors in a format of dense ones: taken apart when they are written, put together when read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_COO = "sparse_coo"
_ROWS = ("sparse_csr", "sparse_bsr")
_COMPRESSED = (*_ROWS, "sparse_csc", "sparse_bsc")


def take_apart(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Dense tensors in the place of sparse ones, and of what kind these were, in JSON types.

    Raises:
        ValueError: for a tensor of another layout.
    """
    dense: dict[str, Tensor] = {}
    forms: dict[str, Any] = {}
    for name, tensor in tensors.items():
        layout = str(tensor.layout).removeprefix("torch.")
        if tensor.layout is torch.strided:
            dense[name] = tensor
            continue
        if layout == _COO:
            parts = [tensor._indices(), tensor._values()]
        elif layout in _ROWS:
            parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
        elif layout in _COMPRESSED:
            parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
        else:
            raise ValueError(f"{name}: expected a strided or a sparse tensor; got {tensor.layout}")
        dense |= {f"{name}:{i}": part for i, part in enumerate(parts)}
        forms[name] = [layout, list(tensor.shape), layout == _COO and tensor.is_coalesced()]
    return dense, forms


def put_together(dense: Mapping[str, Tensor], forms: Mapping[str, Any]) -> dict[str, Tensor]:
    """What `take_apart` was given.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: parts are missing, or are not those of such a tensor.
    """
    tensors = dict(dense)
    for name, (layout, shape, is_coalesced) in forms.items():
        if layout == _COO:
            indices, values = (tensors.pop(f"{name}:{i}") for i in range(2))
            made = torch.sparse_coo_tensor(
                indices, values, shape, is_coalesced=is_coalesced, check_invariants=True
            )
        elif layout in _COMPRESSED:
            outer, inner, values = (tensors.pop(f"{name}:{i}") for i in range(3))
            made = torch.sparse_compressed_tensor(
                outer, inner, values, shape, layout=getattr(torch, layout), check_invariants=True
            )
        else:
            raise ValueError(f"{name}: expected the layout of a sparse tensor; got {layout!r}")
        tensors[name] = made
    return tensors
