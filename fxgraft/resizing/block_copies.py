"""A copy of a block: its class and settings, and tensors of its own, the same or initialised anew.

Anew is as its model does it: ``reset_parameters`` of its parts, and ``_init_weights``, which transformers'
models and those after nanoGPT have, for each module.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fxgraft.capture.clone import clone_tree
from fxgraft.errors import BlueprintError, SlotError
from fxgraft.host.plain import take_out


def copy_of(block: nn.Module) -> nn.Module:
    """A copy that shares no tensor with the block. Seeds in the block, and hooks on it, are not copied."""
    made = clone_tree(block)
    tensors: dict[int, Any] = {}
    for module in made.modules():
        take_out(module)
        for name, value in list(module.__dict__.items()):
            if "_hooks" in name and isinstance(value, dict):
                module.__dict__[name] = type(value)((k, h) for k, h in value.items() if _is_of_torch(h))
        for register in (module._parameters, module._buffers):
            for name, tensor in register.items():
                if tensor is not None:
                    register[name] = _own(tensor, tensors)
    return made


def _is_of_torch(hook: Any) -> bool:
    """Whether a hook computes weights, as `torch.nn.utils.weight_norm` does, and is a part of the module."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def _own(tensor: Tensor, made: dict[int, Any]) -> Any:
    if id(tensor) not in made:  # tied weights stay tied in the copy
        if isinstance(tensor, nn.Parameter):
            made[id(tensor)] = copy.deepcopy(tensor)
        else:
            made[id(tensor)] = tensor.detach().clone()
    return made[id(tensor)]


def refuse_shared(stack: str, name: str, block: nn.Module, modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise `SlotError` for a block with a parameter that something outside of it has, too.

    A copy would have one of its own, where the larger model by hand has the shared one.

    Args:
        stack: of the block.
        name: of the block.
        block: itself.
        modules: all modules of the host by their qualified names; shared ones under each of theirs.
    """
    own = {id(p): n for n, p in block.named_parameters()}
    for path, module in modules:
        if path == name or path.startswith(f"{name}."):
            continue
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in own:
                raise SlotError(
                    f"stack {stack!r}: block {name!r} shares its parameter {own[id(parameter)]} with "
                    f"{path}.{key}, and a copy would have one of its own. Expected blocks that share none"
                )


def refuse_sharded(stack: str, name: str, block: nn.Module) -> None:
    """Raise `SlotError` for a block whose parameters are sharded."""
    if found := next((n for n, p in block.named_parameters() if hasattr(p, "_local_tensor")), None):
        raise SlotError(
            f"stack {stack!r}: block {name!r} is sharded ({found}). Deepen the host before fully_shard"
        )


def counterparts(new: nn.Module, old: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
    """Name, parameter of a copy, and that which it is a copy of."""
    known = dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        if name in known:
            yield name, parameter, known[name]


def initialise(block: nn.Module, root: nn.Module, stack: str) -> None:
    """Initialise the parameters of ``block``, a copy, in place. Draws from the stream that is current.

    Raises:
        BlueprintError: a parameter that nothing initialises; with its name.
    """
    before = {name: p.detach().clone() for name, p in block.named_parameters()}
    with torch.no_grad():
        for parameter in block.parameters():  # what is still there in the end was not initialised
            parameter.fill_(math.nan)
    for part in block.modules():
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
    if (init := _init_weights(root)) is not None:
        with torch.no_grad():
            for part in reversed(list(block.modules())):  # parents last, as `Module.apply` does
                init(part)
    for name, parameter in block.named_parameters():
        if not bool(parameter.isnan().any()):
            continue
        if _is_as_begun(before[name]):
            with torch.no_grad():
                parameter.copy_(before[name])
        else:
            raise BlueprintError(
                f"stack {stack!r}: init='random' needs what initialises each parameter (reset_parameters of "
                f"its module, or _init_weights of the model); nothing does so for {name}"
            )


def _init_weights(root: nn.Module) -> Callable[[nn.Module], Any] | None:
    for module in root.modules():
        if callable(found := getattr(module, "_init_weights", None)):
            return found  # type: ignore[no-any-return]
    return None


def _is_as_begun(tensor: torch.Tensor) -> bool:
    """Whether all elements are one number, as norms and biases begin with; one alone has to be 0 or 1."""
    first = tensor.flatten()[:1]
    return bool((tensor == first).all()) and (tensor.numel() != 1 or float(first.abs()) in (0.0, 1.0))
