"""Which parameters an optimizer can take while it trains: what it would refuse later is refused at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def unfit(optimizer: Optimizer, group: Mapping[str, Any], parameter: nn.Parameter) -> str | None:
    """Why ``optimizer`` cannot train a new ``parameter`` in its ``group`` now; None if it can."""
    if isinstance(optimizer, torch.optim.Muon) and parameter.dim() != 2:
        return (
            f"Muon takes matrices, and it has {parameter.dim()} dimension(s); give the manager a second "
            f"optimizer beside it, with a parameter of the host that has as many"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        return (
            "LBFGS takes one step along one direction for all its parameters together: the host would feel "
            "an isolated seed. Train with an optimizer that takes each parameter for itself (SGD, AdamW, …)"
        )
    return None
