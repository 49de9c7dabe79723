"""What an optimizer does to single entries of a parameter, found on a small dummy parameter where need be.

Whether it moves each by itself: Muon makes the update of a matrix orthogonal, LAMB and LARS divide by a norm
of the parameter. What such an optimizer does to two matrices is not what it does to one that both are parts
of.

What it begins with for new ones: mostly zeros; Rprop its lr as the size of a step, Adagrad its initial
accumulator; ASGD, schedule-free ones and those with weights in more digits begin with the weights.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from fxgraft.optimizers.group_index import groups_with

ELEMENT_WISE = (
    optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.Adagrad, optim.Adadelta,
    optim.RMSprop, optim.Rprop, optim.ASGD,
)  # fmt: skip
"""Those of torch that do."""

_KNOWN = {inspect.unwrap(kind.step) for kind in ELEMENT_WISE}
_STEPS, _SIDE = 3, 4


def is_element_wise(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Whether ``optimizer`` moves each entry of a ``parameter`` that it has by that entry alone.

    One that is not known is tried on a small dummy parameter. Where none of its class can be made, as of a
    wrapper, it is taken to do so.
    """
    if inspect.unwrap(type(optimizer).step) in _KNOWN:
        return True
    try:
        one, other = (_moved(optimizer, parameter, factor) for factor in (1.0, 10.0))
    except Exception:  # of another signature, or not made for such a parameter
        return True
    return torch.equal(one.flatten()[1:], other.flatten()[1:])


def _moved(optimizer: Optimizer, parameter: nn.Parameter, factor: float) -> Tensor:
    """A dummy parameter after a few steps; the gradient of its first entry is multiplied by ``factor``."""
    group = next(groups_with([optimizer], parameter))
    kind = type(optimizer)
    accepted = inspect.signature(kind.__init__).parameters
    settings = {key: value for key, value in group.items() if key in accepted and key != "params"}
    shape = [_SIDE] * parameter.dim()
    stream = torch.Generator("cpu").manual_seed(0)
    stand_in = nn.Parameter(torch.randn(shape, generator=stream, device=stream.device).to(parameter.dtype))
    twin = kind([stand_in], **settings)
    for _ in range(_STEPS):
        gradient = torch.randn(shape, generator=stream, device=stream.device).to(parameter.dtype)
        gradient.view(-1)[0] *= factor
        stand_in.grad = gradient
        kind.step(twin)
    return stand_in.detach()


def fresh_state(optimizer: Optimizer, parameter: nn.Parameter) -> Mapping[str, float]:
    """Key -> the number that all entries of that state begin with; zero for keys that are not in it.

    Found with an optimizer of the same class and settings, which takes one step of a new parameter without a
    gradient to speak of. Where no such one can be made, as of a wrapper, all is zero.

    Args:
        optimizer: that has ``parameter``, of any shape.
        parameter: whose dimensions and dtype count.
    """
    new, kept = _first_state(optimizer, parameter)
    found = {}
    for key, value in kept.items():
        if isinstance(value, Tensor) and new is not None and value.shape == new.shape and value.numel():
            first = value.flatten()[0].item()
            if first and bool((value == first).all()):
                found[key] = float(first)
    return found


def weights_in(optimizer: Optimizer, parameter: nn.Parameter) -> frozenset[str]:
    """The keys of what an optimizer keeps for a parameter that begins as a copy of it. As `fresh_state`."""
    new, kept = _first_state(optimizer, parameter, first=1.25)
    return frozenset(
        key
        for key, value in kept.items()
        if isinstance(value, Tensor) and new is not None and value.shape == new.shape
        if torch.equal(value.detach().to(new.dtype), new.detach())
    )


def following(old: Tensor, new: Tensor, kept: Tensor) -> Tensor:
    """What is kept as a copy of weights, for other weights: with its digits where these are the same.

    Args:
        old: the weights that ``kept`` is a copy of; in the shape of the new ones.
        new: the new weights.
        kept: the copy; of that shape, and maybe of another dtype.
    """
    return torch.where(old.to(kept.device) == new.to(kept.device), kept, new.to(kept.device, kept.dtype))


def kept_keys(optimizer: Optimizer, parameter: nn.Parameter) -> frozenset[str]:
    """What an optimizer of these settings keeps for a parameter after a step; empty if it is not known."""
    return frozenset(_first_state(optimizer, parameter)[1])


def _first_state(
    optimizer: Optimizer, parameter: nn.Parameter, first: float = 0.0
) -> tuple[Tensor | None, Mapping[str, object]]:
    """A new parameter, and what is kept of it after one step, by one of that class and those settings.

    Its elements are ``first`` and twice, three times that, and so on.
    """
    group = next(groups_with([optimizer], parameter), None)
    if group is None:  # it keeps a state of what it does not train
        return None, {}
    kind = type(optimizer)
    accepted = inspect.signature(kind.__init__).parameters
    settings = {k: v for k, v in group.items() if k in accepted and k != "params"}
    shape = [2] * parameter.dim()
    values = first * torch.arange(1, math.prod(shape) + 1, dtype=torch.float32, device=parameter.device)
    new = nn.Parameter(values.view(shape).to(parameter.dtype))
    try:
        twin = kind([new], **settings)
        new.grad = torch.zeros_like(new)
        kind.step(twin)
        kept = twin.state[new]
    except Exception:  # of another signature: a wrapper, say
        return None, {}
    return new, kept
