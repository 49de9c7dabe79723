"""A block initialised anew, as its model does: ``reset_parameters`` of its parts, and ``_init_weights``.

transformers' models and those after nanoGPT have ``_init_weights(module)``, which is called for each module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fxgraft.errors import BlueprintError
from fxgraft.util.bits import same_bits


def initialise(block: nn.Module, root: nn.Module, stack: str) -> None:
    """Initialise the parameters of ``block``, a copy, in place. Draws from the stream that is current.

    Raises:
        BlueprintError: a parameter that nothing initialises; with its name.
    """
    before = {name: p.detach().clone() for name, p in block.named_parameters()}
    initialised: set[int] = set()
    for part in block.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
            initialised |= {id(p) for p in part._parameters.values() if p is not None}
        elif callable(reset := getattr(part, "_reset_parameters", None)):
            reset()
            initialised |= {id(p) for p in part.parameters()}
    if (init := _init_weights(root)) is not None:
        with torch.no_grad():
            for part in reversed(list(block.modules())):  # parents last, as `Module.apply` does
                init(part)
    for name, parameter in block.named_parameters():
        is_same = same_bits(parameter.detach(), before[name])
        if is_same and id(parameter) not in initialised and not _is_constant(parameter):
            raise BlueprintError(
                f"stack {stack!r}: init='random' needs what initialises each parameter (reset_parameters of "
                f"its module, or _init_weights of the model); nothing does so for {name}"
            )


def _init_weights(root: nn.Module) -> Callable[[nn.Module], Any] | None:
    for module in root.modules():
        if callable(found := getattr(module, "_init_weights", None)):
            return found  # type: ignore[no-any-return]
    return None


def _is_constant(tensor: torch.Tensor) -> bool:
    """Whether all elements are one number, as norms and biases begin with."""
    return bool((tensor == tensor.flatten()[:1]).all())
