"""Whether a model computes the same as before, on its example call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgraft_passes.channels.recording import tensors_in
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.errors import ChannelError
from fxgraft_passes.untouched import streams_fixed

_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far outputs may differ, as a share of the largest of them: sums of other lengths round otherwise."""


def outputs(subject: Subject) -> list[Tensor]:
    """What the subject returns for its example, in eval mode; run inside of a session.

    Code that draws random numbers in eval mode, too, draws the same ones each time.
    """
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (subject.args, subject.kwargs))
    with torch.no_grad(), subject.in_mode(False), streams_fixed():
        return [tensor.detach().clone() for tensor in tensors_in(subject.run(*args, **kwargs))]


def difference(name: str, before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest difference of two outputs.

    Raises:
        ChannelError: it is more than rounding.
    """
    largest = 0.0
    with_data = [tensor for tensor in before if not tensor.is_meta and tensor.numel()]
    if with_data and not any(bool(tensor.isfinite().any()) for tensor in with_data):
        raise ChannelError(
            f"{name}: expected outputs on the example that are numbers; they are NaN or inf throughout, and "
            f"do not show whether the function is kept"
        )
    if len(before) != len(after):
        raise ChannelError(
            f"{name}: expected {len(before)} outputs, as before; the wider model has {len(after)}"
        )
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape or old.dtype != new.dtype:
            raise ChannelError(
                f"{name}: expected outputs of shape {tuple(old.shape)} as before; got {tuple(new.shape)}"
            )
        if old.is_meta or not old.numel():
            continue
        off, size = _off(old, new)
        if not off <= _ROUNDING.get(old.dtype, 0.0) * max(size, 1e-3):
            raise ChannelError(
                f"{name}: expected the outputs of before; with more channels they differ by {off:.3g}, "
                f"where the largest is {size:.3g}: something in between depends on how many there are"
            )
        largest = max(largest, off)
    return largest


def _off(old: Tensor, new: Tensor) -> tuple[float, float]:
    if not (old.is_floating_point() or old.is_complex()):
        return float(not torch.equal(old, new)), 1.0
    alike = (old == new) | (old.isnan() & new.isnan())
    off = torch.where(alike, torch.zeros_like(old), new - old).abs()
    finite = old[old.isfinite()].abs()
    return off.max().item(), finite.max().item() if finite.numel() else 0.0
