"""How long a forward and a backward pass of a candidate by itself take."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft.explore._example_run import Call, own
from fxgraft_passes import Slot, devices
from fxgraft_passes.untouched import state_untouched

ROUNDS = 5
"""How often a candidate is timed."""


def call_at(slot: Slot, module: nn.Module) -> Call:
    """The arguments of the module of a branch at ``slot``: zeros."""
    value: Tensor = torch.empty((), device=slot.device, dtype=slot.dtype)
    like = next((p for p in module.parameters() if p.requires_grad), value)
    return (torch.zeros(slot.input.shape, dtype=like.dtype, device=like.device),), {}


def step_ms(module: nn.Module, call: Call) -> float:
    """Milliseconds of a forward and a backward pass of a seed's module; leaves it as it was.

    Args:
        module: the module.
        call: its arguments; a gradient goes to those that can have one, as in a host that trains.
    """
    # Copies: their gradients are not used, and `torch.autograd.grad` of parameters cannot run under
    # torch's FlopCounterMode.
    twins = {
        name: parameter.detach().clone().requires_grad_(parameter.requires_grad)
        for name, parameter in module.named_parameters()
    }
    times = []
    with state_untouched(module), torch.enable_grad():
        for _ in range(ROUNDS):
            args, kwargs = pytree.tree_map(_fresh, call)
            device = next((x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)), None)
            _wait(device)
            began = time.perf_counter()
            out = torch.func.functional_call(module, twins, args, kwargs)
            torch.autograd.backward(_sum(out))
            _wait(device)
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def _fresh(value: Any) -> Any:
    value = own(value)
    return value.requires_grad_(value.is_floating_point()) if isinstance(value, Tensor) else value


def _wait(tensor: Tensor | None) -> None:
    if tensor is not None:
        devices.wait(tensor)


def _sum(out: Any) -> Tensor:
    """Of all that a gradient can come from."""
    leaves = [x for x in pytree.tree_leaves(out) if isinstance(x, Tensor) and x.requires_grad]
    total: Tensor = sum(leaf.sum() for leaf in leaves)  # type: ignore[assignment]
    return total
