"""A module of a host's as it is without the host: what the host has put into it is taken out."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxgraft import _torch
from fxgraft.capture.fallback import COUNTER
from fxgraft.host.save_pretrained import WRITE
from fxgraft_passes import Graft
from fxgraft_passes.naming import OWN_FORWARD

_OWN = ("fxgraft.", "fxgraft_passes.")


def is_own(value: Any) -> bool:
    """Whether a class, a function or an object is fxgraft's."""
    return str(getattr(value, "__module__", None)).startswith(_OWN)


def take_out(module: nn.Module) -> None:
    """Take out of a clone by what the host runs the module: generated and compiled code."""
    attributes = module.__dict__
    attributes.pop(_torch.COMPILED_CALL, None)
    attributes.pop(WRITE, None)
    for number in [number for number, hook in _torch.pre_hooks(module).items() if is_own(hook)]:
        _torch.forget_pre_hook(module, number)
    if OWN_FORWARD not in attributes:
        return
    for name in ("forward", OWN_FORWARD, COUNTER):
        attributes.pop(name, None)
    for name in [name for name, value in attributes.items() if isinstance(value, Graft)]:
        del attributes[name]
