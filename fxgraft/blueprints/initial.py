"""Initialisations after which a branch adds nothing, yet learns from its first step on.

================  =========================================  =====================================
``init``          what is zero                               what has a gradient at initialisation
================  =========================================  =====================================
``"zero"``        the last linear layer (Fixup; Zhang et     that layer
                  al., 2019, arXiv:1901.09321)
``"rezero"``      a scalar in front of the branch (ReZero;   that scalar, and all else one step later
                  Bachlechner et al., 2021,
                  arXiv:2003.04887)
================  =========================================  =====================================

Zeros in front of a ReLU, or in two layers in a row, would be zero for ever. A third one, `gradmax`
(Evci et al., 2022), needs gradients of the host.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxgraft.errors import BlueprintError

INITS = ("zero", "rezero")


class ReZero(nn.Module):
    """``scale * branch(x)``.

    Attributes:
        scale: 0-d, 0 at initialisation.
    """

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype as ``branch(x)``."""
        return self.scale * self.branch(x)  # type: ignore[no-any-return]


def silent(branch: nn.Module, last: nn.Conv2d | nn.Linear, init: str) -> nn.Module:
    """``branch``, made to add nothing at initialisation.

    Args:
        branch: a module whose output is that of ``last``.
        last: its last layer.
        init: ``"zero"`` or ``"rezero"``.
    """
    if init == "rezero":
        return ReZero(branch)
    if init != "zero":
        raise BlueprintError(f"init: expected one of {', '.join(INITS)}; got {init!r}")
    nn.init.zeros_(last.weight)
    zero_bias(last)
    return branch


def he_normal(*layers: nn.Conv2d | nn.Linear) -> None:
    """Normal weights of variance ``2 / fan_in``, no bias (He et al., 2015, arXiv:1502.01852)."""
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        zero_bias(layer)


def zero_bias(layer: nn.Conv2d | nn.Linear) -> None:
    """Set the bias to zero where there is one."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
