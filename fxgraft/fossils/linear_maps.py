"""Which modules are affine maps of the features of a value, and which map: ``x -> M x + b``.

Exactly so, in train and in eval mode and for every input: a batch norm is one in eval mode only, and
so is none here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fxgraft import _torch
from fxgraft.blueprints.affine import ScaleShift
from fxgraft.blueprints.initial import ReZero
from fxgraft.lifecycle.mode_wrappers import AddedBranch, Difference, Gated
from fxgraft.seeds.dropout import STAND_INS


class NotAffineError(Exception):
    """A module is no affine map of the features; the message says why, as the end of a sentence."""


@dataclass(frozen=True)
class AffineMap:
    """``x -> matrix x + bias`` of the features at each position of a value.

    Attributes:
        matrix: ``(out, in)``, float64.
        bias: ``(out,)``, float64.
    """

    matrix: Tensor
    bias: Tensor

    def after(self, first: AffineMap) -> AffineMap:
        """This map of the result of ``first``."""
        return AffineMap(self.matrix @ first.matrix, self.matrix @ first.bias + self.bias)

    def plus(self, other: AffineMap, share: float = 1.0) -> AffineMap:
        """The sum of this map and ``share`` of another."""
        return AffineMap(self.matrix + share * other.matrix, self.bias + share * other.bias)

    def times(self, factor: Tensor) -> AffineMap:
        """This map, and its result multiplied by a number."""
        return AffineMap(factor * self.matrix, factor * self.bias)

    @property
    def is_diagonal(self) -> bool:
        """Whether no feature reads another."""
        return torch.equal(self.matrix, torch.diag(self.matrix.diagonal()))


@dataclass(frozen=True)
class Features:
    """Where the features of a value are: in dimension ``axis`` of ``dims``, on ``device``."""

    axis: int
    dims: int
    device: torch.device

    def unit(self, size: int) -> AffineMap:
        """The identity of ``size`` features."""
        options: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        return AffineMap(torch.eye(size, **options), torch.zeros(size, **options))


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """One matrix with these on its diagonal."""
    return torch.block_diag(*blocks)  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def affine_map(module: nn.Module, size: int, where: Features) -> AffineMap:
    """The map that ``module`` is, of values with ``size`` features.

    Raises:
        NotAffineError: it is none, or is not known to be one.
    """
    if _torch.has_forward_hooks(module):
        raise NotAffineError(f"has a {_kind(module)} with hooks, which may change its value")
    known = _KNOWN.get(type(module))  # subclasses may do something else
    if known is None:
        raise NotAffineError(f"has a {_kind(module)}, which is not known to be linear")
    return known(module, size, where)


def _identity(module: nn.Module, size: int, where: Features) -> AffineMap:
    return where.unit(size)


def _dropout(module: nn.Module, size: int, where: Features) -> AffineMap:
    if module.p != 0:
        raise NotAffineError("has dropout, which draws in train mode")
    return where.unit(size)


def _chain(module: nn.Module, size: int, where: Features) -> AffineMap:
    found = where.unit(size)
    for child in module.children():
        found = affine_map(child, len(found.bias), where).after(found)
    return found


def _linear(module: nn.Module, size: int, where: Features) -> AffineMap:
    _check_axis(module, where.dims - 1, where)
    return _of_matrix(module, cast(Tensor, module.weight).double())


def _pointwise(module: nn.Module, size: int, where: Features) -> AffineMap:
    conv = cast(nn.Conv2d, module)
    padded = conv.padding != "valid" and any(p != 0 for p in conv.padding)
    if padded or any(k != 1 for k in conv.kernel_size) or any(s != 1 for s in conv.stride):
        raise NotAffineError(f"has a {_kind(module)} that reads more than one position")
    _check_axis(module, where.dims - len(conv.kernel_size) - 1, where)
    blocks = conv.weight.double().flatten(1).chunk(conv.groups)
    return _of_matrix(module, block_diagonal(blocks))


def _scale_shift(module: nn.Module, size: int, where: Features) -> AffineMap:
    weight = cast(Tensor, module.weight).double()
    _check_axis(module, where.dims - weight.dim(), where)
    return AffineMap(torch.diag(weight.flatten()), cast(Tensor, module.bias).double().flatten())


def _rezero(module: nn.Module, size: int, where: Features) -> AffineMap:
    return _inner(module.branch, size, where).times(cast(Tensor, module.scale).double())


def _gated(module: nn.Module, size: int, where: Features) -> AffineMap:
    return _inner(module.branch, size, where).times(torch.sigmoid(cast(Tensor, module.gate)).double())


def _added(module: nn.Module, size: int, where: Features) -> AffineMap:
    return where.unit(size).plus(_inner(module.branch, size, where))


def _difference(module: nn.Module, size: int, where: Features) -> AffineMap:
    return _inner(module.module, size, where).plus(where.unit(size), -1.0)


_KNOWN: dict[type[nn.Module], Callable[[nn.Module, int, Features], AffineMap]] = {
    nn.Identity: _identity,
    **{kind: _dropout for kinds in STAND_INS.items() for kind in kinds},
    nn.Sequential: _chain,
    nn.Linear: _linear,
    nn.Conv1d: _pointwise,
    nn.Conv2d: _pointwise,
    nn.Conv3d: _pointwise,
    ScaleShift: _scale_shift,
    ReZero: _rezero,
    Gated: _gated,
    AddedBranch: _added,
    Difference: _difference,
}


def _inner(module: Any, size: int, where: Features) -> AffineMap:
    return affine_map(module, size, where)


def _check_axis(module: nn.Module, axis: int, where: Features) -> None:
    if axis != where.axis:
        raise NotAffineError(
            f"has a {_kind(module)} that acts on dimension {axis} of {where.dims}; the features of the layer "
            f"in front of it are in dimension {where.axis}"
        )


def _of_matrix(module: nn.Module, matrix: Tensor) -> AffineMap:
    bias = cast("Tensor | None", module.bias)
    return AffineMap(matrix, matrix.new_zeros(len(matrix)) if bias is None else bias.double())


def _kind(module: nn.Module) -> str:
    return type(module).__name__
