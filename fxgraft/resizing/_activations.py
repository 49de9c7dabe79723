"""Activations as modules and as functions: `nn.GELU()` in a branch is `F.gelu` in the code beside it.

An operation is described by its name and by what it is set to, without whether it works in place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx
import torch.nn.functional as F
from torch import nn

_SETTINGS: dict[type[nn.Module], tuple[str, dict[str, Any]]] = {
    nn.ReLU: ("relu", {}),
    nn.ReLU6: ("relu6", {}),
    nn.GELU: ("gelu", {"approximate": "none"}),
    nn.SiLU: ("silu", {}),
    nn.Mish: ("mish", {}),
    nn.Tanh: ("tanh", {}),
    nn.Sigmoid: ("sigmoid", {}),
    nn.Hardswish: ("hardswish", {}),
    nn.LeakyReLU: ("leaky_relu", {"negative_slope": 0.01}),
    nn.ELU: ("elu", {"alpha": 1.0}),
}
"""Class -> name of the function, and what else it takes, with the defaults of both."""
_DEFAULTS = dict(_SETTINGS.values())
_FUNCTIONS: dict[Callable[..., Any], str] = {
    getattr(space, called): name
    for name in _DEFAULTS
    for space in (torch, F)
    for called in (name, f"{name}_")
    if hasattr(space, called)
}


def activation_of(node: fx.Node, root: nn.Module) -> tuple[Any, ...] | None:
    """The activation that a node computes; None if it computes anything else.

    Args:
        node: of a graph.
        root: the module whose graph it is.
    """
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        known = _SETTINGS.get(type(module))
        if known is None or any(hooks for key, hooks in vars(module).items() if key.endswith("_hooks")):
            return None  # a function has no place for hooks
        return known[0], *(getattr(module, key) for key in known[1])
    if node.op == "call_method" and (name := str(node.target).removesuffix("_")) in _DEFAULTS:
        return (name,) if not _DEFAULTS[name] and len(node.args) == 1 else None
    if node.op != "call_function" or node.target not in _FUNCTIONS:
        return None
    name = _FUNCTIONS[node.target]  # type: ignore[index]
    try:
        given = inspect.signature(getattr(F, name)).bind(*node.args, **node.kwargs).arguments
    except (ValueError, TypeError):  # of a function in C, which does not say what it takes
        names = ("input", *_DEFAULTS[name])
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return (name, *(given.get(key, default) for key, default in _DEFAULTS[name].items()))
