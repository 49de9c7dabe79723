"""What torch's fast path for transformer encoders goes around is no place for a seed.

In eval mode and without gradients ``nn.TransformerEncoderLayer`` hands the weights of its layers to one fused
operation and calls none of them, and ``nn.TransformerEncoder`` calls its layers with nested tensors, where
there is a padding mask. What stands there would run in training only.
"""

from __future__ import annotations

import torch
from torch import nn

_ENCODERS = (nn.TransformerEncoder, nn.TransformerEncoderLayer)


def why_left_out(root: nn.Module, name: str) -> str:
    """Why the boundary of the module of that name, which an evaluation goes around, is no slot."""
    reason = "is not called so in eval mode under no_grad, where a seed there would be left out"
    path = name.split(".")
    around = (root.get_submodule(".".join(path[:depth])) for depth in range(len(path)))
    if any(isinstance(module, _ENCODERS) for module in around):
        reason += (
            " (torch's fast path for transformer encoders; torch.backends.mha.set_fastpath_enabled(False) "
            "before fxgraft.trace makes it one)"
        )
    return reason


def disable_fast_path(root: nn.Module) -> bool:
    """Let what is traced with torch's fast path turned off never take it: other processes have it on.

    Returns whether that may change modules.
    """
    if torch.backends.mha.get_fastpath_enabled():
        return False
    for module in root.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            # As of a layer with another activation; torch asks for it on the way to the fast path only.
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return True
