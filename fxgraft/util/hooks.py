"""The hooks that users put on modules, and on their parameters."""

from __future__ import annotations

from typing import Any

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


def hooked_parameter(module: nn.Module) -> str | None:
    """The name of a parameter on whose gradient hooks of users run; None if there is none."""
    for name, parameter in module.named_parameters():
        if not all(_is_of_fxgraft(hook) for hook in _torch.gradient_hooks(parameter)):
            return name
    return None


def _is_of_fxgraft(hook: Any) -> bool:
    """Whether a hook watches a seed."""
    return str(getattr(hook, "__module__", "")).partition(".")[0] == "fxgraft"
