"""The hooks that users put on modules."""

from __future__ import annotations

from torch import nn

from fxgraft import _torch

HOOKS = (*_torch.FORWARD_HOOKS, *_torch.BACKWARD_HOOKS)
"""The attributes of a module that hold the hooks of its calls."""


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module itself runs hooks; those of its children are not looked for.

    Args:
        module: the module.
    """
    return any(getattr(module, name, None) for name in HOOKS)
