"""Merge an affine map of a layer's result into the layer's own weights, exactly (but for rounding).

==========================  ==============================  =====================================
layer                       its weights become              which maps can be merged
==========================  ==============================  =====================================
Linear, Embedding           ``M W``, ``M b + c``            all, along the last dimension
convolution                 ``M W``, ``M b + c``            all, along the channels; with groups,
                                                            those that mix no two groups
norm with weights           ``m w``, ``m b + c``            those that mix no features
==========================  ==============================  =====================================
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fxgraft.fossils.linear_maps import AffineMap, NotAffineError, block_diagonal
from fxgraft.util.tensors import lost_in_rounding
from fxgraft_passes import devices

_CONVOLUTIONS = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
_NORMS_OF_CHANNELS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
_NORMS_OF_LAST = (nn.LayerNorm, nn.RMSNorm)


@torch.no_grad()
def merge_into(layer: nn.Module, found: AffineMap) -> None:
    """Merge the map ``found`` into ``layer``, so that it computes the map of its former result.

    Args:
        layer: of a kind that `axis_of` knows. Changed in place: its weights keep their dtype; one without
            a bias may get one.
        found: the map, of the features that are in the dimension `axis_of`; keeps their number.

    Raises:
        NotAffineError: the map cannot be merged. Nothing is changed.
    """
    kind, known = type(layer), cast(Any, layer)
    if kind in _CONVOLUTIONS:
        _set(known, _mixed(known, found), _shifted(known, found))
    elif kind in _NORMS_OF_CHANNELS or kind in _NORMS_OF_LAST:
        _scale(known, found)
    elif kind is nn.Embedding:
        _set(known, known.weight.double() @ found.matrix.T + found.bias, None)
    elif kind is nn.Linear:
        _set(known, found.matrix @ known.weight.double(), _shifted(known, found))
    else:
        _set(known, known.weight.double() @ found.matrix.T, _shifted(known, found))


def axis_of(layer: nn.Module, dims: int) -> int:
    """The dimension that the features of a layer's result are in.

    Raises:
        NotAffineError: nothing can be merged into a layer of that kind.
    """
    kind: Any = type(layer)  # subclasses, parametrized ones among them, may do something else
    if kind is nn.Linear or kind in _NORMS_OF_LAST or _is_transposed(kind):
        return dims - 1
    if kind is nn.Embedding and cast(nn.Embedding, layer).max_norm is None:
        return dims - 1
    if kind in _NORMS_OF_CHANNELS or _CONVOLUTIONS.get(kind) == dims:
        return 1
    raise NotAffineError(f"stands behind a {kind.__name__}, into which nothing can be merged")


def _is_transposed(kind: Any) -> bool:
    """Whether it is the Linear of GPT-2, whose weight is ``(in, out)``."""
    return f"{kind.__module__}.{kind.__name__}" == "transformers.pytorch_utils.Conv1D"


def _mixed(layer: Any, found: AffineMap) -> Tensor:
    """``M W`` of a convolution, whose groups of channels read different inputs."""
    size = len(found.matrix) // layer.groups
    blocks = [found.matrix[i : i + size, i : i + size] for i in range(0, len(found.matrix), size)]
    if layer.groups > 1 and not torch.equal(block_diagonal(blocks), found.matrix):
        raise NotAffineError(f"mixes channels of different groups of the convolution (of {layer.groups})")
    weights = layer.weight.double().flatten(1).split(size)
    mixed = torch.cat([block @ weight for block, weight in zip(blocks, weights, strict=True)])
    return mixed.view_as(layer.weight)


def _scale(layer: Any, found: AffineMap) -> None:
    if layer.weight is None or layer.weight.shape != found.bias.shape:
        raise NotAffineError(f"stands behind a {type(layer).__name__} without a weight for each feature")
    if not found.is_diagonal:
        raise NotAffineError(f"mixes features, which the weights of a {type(layer).__name__} cannot")
    if not hasattr(layer, "bias") and bool(found.bias.any()):
        raise NotAffineError(f"has a bias, and a {type(layer).__name__} has none")
    _set(layer, found.matrix.diagonal() * layer.weight.double(), _shifted(layer, found))


def _shifted(layer: Any, found: AffineMap) -> Tensor | None:
    """The layer's new bias; None where it has none and needs none."""
    bias: Tensor | None = getattr(layer, "bias", None)
    if bias is None:
        return found.bias if bool(found.bias.any()) else None
    return found.matrix @ bias.double() + found.bias


def _set(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    for name, exact in (("weight", weight), ("bias", bias)):
        before = getattr(layer, name, None)
        if exact is not None and before is not None and (why := lost_in_rounding(name, before, exact)):
            raise NotAffineError(why)
    devices.forget_casts()
    layer.weight.copy_(weight)
    if bias is None:
        return
    if layer.bias is None:
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
    else:
        layer.bias.copy_(bias)
