"""Whether a change of a tensor is lost where the result is rounded to the tensor's dtype."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST = 0.5
"""Which share of a change rounding may take, in the 2-norm."""


def lost_in_rounding(name: str, before: Tensor, exact: Tensor) -> str | None:
    """Why a change cannot be made, as the end of a sentence; None if most of it stays.

    Args:
        name: of the tensor, for the message.
        before: the tensor as it is.
        exact: what it is to be, in a wider dtype; as large.
    """
    if before.is_meta or exact.is_meta:
        return None  # which cannot be seen
    wide = exact.dtype
    change = torch.linalg.vector_norm(exact - before.to(wide)).item()
    lost = torch.linalg.vector_norm(exact.to(before.dtype).to(wide) - exact).item()
    if lost <= _MOST * change:
        return None
    return (
        f"changes {name} by {change:.2g}, of which rounding to {before.dtype} takes {lost:.2g}: it would be "
        f"lost. Expected a larger change, or a dtype of more digits: host.float() first, or let it stay"
    )
