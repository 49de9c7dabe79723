"""The memory of training that the budget of a growth counts.

    each weight of the host                      once, and three times more where it is trained: its gradient,
                                                 and two moments of the optimizer, as AdamW keeps them
    each candidate, and what has stayed of it    the same, and three values like that at its slot, which are
                                                 kept for the backward pass

The values of the host itself are not counted, and neither are its buffers. An optimizer that keeps less needs
less: of the host and of what grows alike, so that the factor is about the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxgraft.host.host import Host

COPIES = 4
"""A weight that is trained, its gradient, and two moments."""


def of_host(host: Host) -> int:
    """Bytes for the weights of the host, without seeds."""
    return sum(
        p.numel() * p.element_size() * (COPIES if p.requires_grad else 1) for p in host.host_parameters()
    )


def of_values(host: Host, row: Mapping[str, Any]) -> int:
    """Bytes of the values that a candidate keeps for the backward pass, beside its weights; 0 of a block.

    Args:
        host: where it grows.
        row: its row in an exploration, as a dictionary.
    """
    size = next((p.element_size() for p in host.host_parameters()), 0)
    return max((row.get("memory") or 0) - COPIES * size * (row.get("parameters") or 0), 0)
