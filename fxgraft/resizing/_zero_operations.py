"""Operations that tell where a block's branches end: sums, products, and what is zero where its input is."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn

ADD = {operator.add, operator.iadd, torch.add, torch.sub, operator.sub, operator.isub, "add", "add_", "sub"}
TIMES = {operator.mul, operator.imul, torch.mul, "mul", "mul_", operator.truediv, torch.div, "div", "div_"}
CASTS = {"to", "type_as", "float", "contiguous", "clone", "requires_grad_"}
VIEWS = {
    "view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", torch.reshape, torch.flatten,
}  # fmt: skip
"""The same numbers in the same order, under other sizes."""
MOVES = {
    *VIEWS, "transpose", "permute", "squeeze", "unsqueeze", "contiguous", "clone", "to", "type_as", "float",
    "half", "bfloat16", "double", "movedim", "expand", "chunk", "split", torch.transpose, torch.permute,
    torch.squeeze, torch.unsqueeze, F.dropout, operator.getitem, torch.chunk, torch.split, torch.relu, F.relu,
    "relu", F.gelu, F.silu, torch.tanh, "tanh", "sum", "mean", torch.sum, torch.mean,
    "roll", torch.roll, "flip", torch.flip,
}  # fmt: skip
"""Operations of one value that are zero where it is zero."""
_WRAPPED_MOVES = {"torchvision.ops.stochastic_depth.stochastic_depth"}
"""Functions of other libraries that are so, each one operation of a graph, by ``torch.fx.wrap``."""
_GROUPED = [getattr(at, n) for n in ("_grouped_mm", "grouped_mm") for at in (torch, F) if hasattr(at, n)]
WEIGHTED = (F.linear, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d, torch.addmm,
             torch.matmul, operator.matmul, torch.mm, torch.bmm, F.layer_norm, F.rms_norm,
             *_GROUPED)  # fmt: skip
KEEP_ZERO = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.Identity,
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
)
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Dropout, nn.Identity)
IDEMPOTENT = (nn.ReLU,)
IDEMPOTENT_FUNCTIONS = (torch.relu, F.relu, "relu", "relu_", torch.relu_)


def is_move(target: object) -> bool:
    """Whether an operation is of one value, and zero where that is."""
    if target in MOVES:
        return True
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}" in _WRAPPED_MOVES


class NoOutputLayerError(Exception):
    """A block has no layers to zero; the message says where the search ended, as a part of a sentence."""
