"""What an optimizer begins with for a parameter that it has never seen: for new entries of a grown one.

Most begin with zeros; Rprop with its lr as the size of a step, Adagrad with its initial accumulator.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.optimizers.census import groups_with


def fresh_state(optimizer: Optimizer, parameter: nn.Parameter) -> Mapping[str, float]:
    """Key -> the number that all entries of that state begin with; zero for keys that are not in it.

    Found with an optimizer of the same class and settings, which takes one step of a new parameter without a
    gradient to speak of. Where no such one can be made, as of a wrapper, all is zero.

    Args:
        optimizer: that has ``parameter``, of any shape.
        parameter: whose dimensions and dtype count.
    """
    group = next(groups_with([optimizer], parameter), None)
    if group is None:  # it keeps a state of what it does not train
        return {}
    kind = type(optimizer)
    accepted = inspect.signature(kind.__init__).parameters
    settings = {k: v for k, v in group.items() if k in accepted and k != "params"}
    new = nn.Parameter(torch.zeros([2] * parameter.dim(), dtype=parameter.dtype, device=parameter.device))
    try:
        twin = kind([new], **settings)
        new.grad = torch.zeros_like(new)
        kind.step(twin)
        kept = twin.state[new]
    except Exception:  # of another signature: a wrapper, say
        return {}
    found = {}
    for key, value in kept.items():
        if isinstance(value, Tensor) and value.shape == new.shape and value.numel():
            first = value.flatten()[0].item()
            if first and bool((value == first).all()):
                found[key] = float(first)
    return found
