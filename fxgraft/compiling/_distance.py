"""How far two values are from each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxgraft.util.bits import same_bits

_MASKS = 1e3
"""How many times as large as others a value is that may mask them: its rounding says nothing of theirs."""


def apart(ours: Any, eager: Any, most: float) -> str | None:
    """In which way values differ, in words; None where sums in another order explain it.

    Args:
        ours: a value of compiled code.
        eager: that of eager mode.
        most: the relative error that passes.
    """
    if same_bits(ours, eager):
        return None
    if not (isinstance(ours, Tensor) and isinstance(eager, Tensor)):
        return f"{type(ours).__name__} for {type(eager).__name__}"
    try:
        torch.testing.assert_close(ours, eager, equal_nan=True, check_stride=False)
    except AssertionError as failed:
        if (error := relative_error(ours, eager)) is None:
            return str(failed).partition("\n")[0]
        return None if error <= most else f"a relative error of {error:.2g}"
    return None


def relative_error(ours: Any, eager: Any) -> float | None:
    """The relative error, in the 2-norm; None where shapes differ or are not floating point.

    Of all values, or of those beside large ones (that mask others, as -1e9 does), whichever is larger.
    """
    if not (isinstance(ours, Tensor) and isinstance(eager, Tensor) and eager.is_floating_point()):
        return None
    if (ours.shape, ours.dtype) != (eager.shape, eager.dtype):
        return None
    for is_there in (torch.isnan, torch.isposinf, torch.isneginf):
        if not torch.equal(is_there(ours), is_there(eager)):
            return None
    a, b = (value[value.isfinite()].double() for value in (ours, eager))
    if not b.numel():
        return 0.0
    beside = b.abs() < b.abs().max() / _MASKS
    return max(_share(a - b, b), _share((a - b)[beside], b[beside]))


def _share(off: Tensor, values: Tensor) -> float:
    return float(off.norm() / values.norm().clamp_min(1e-12))
