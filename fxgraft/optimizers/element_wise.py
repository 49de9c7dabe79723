"""Whether an optimizer moves each entry of a parameter by itself, or by the others, too.

Muon makes the update of a matrix orthogonal, LAMB and LARS divide by a norm of the parameter. What such an
optimizer does to two matrices is not what it does to one that both are parts of.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from fxgraft.optimizers.census import groups_with

ELEMENT_WISE = (
    optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.Adagrad, optim.Adadelta,
    optim.RMSprop, optim.Rprop, optim.ASGD,
)  # fmt: skip
"""Those of torch that do."""

_KNOWN = {inspect.unwrap(kind.step) for kind in ELEMENT_WISE}
_STEPS, _SIDE = 3, 4


def is_element_wise(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Whether ``optimizer`` moves each entry of a ``parameter`` that it has by that entry alone.

    One that is not known is tried on a small stand-in. Where none of its class can be made, as of a wrapper,
    it is taken to do so.
    """
    if inspect.unwrap(type(optimizer).step) in _KNOWN:
        return True
    try:
        one, other = (_moved(optimizer, parameter, factor) for factor in (1.0, 10.0))
    except Exception:  # of another signature, or not made for such a parameter
        return True
    return torch.equal(one.flatten()[1:], other.flatten()[1:])


def _moved(optimizer: Optimizer, parameter: nn.Parameter, factor: float) -> Tensor:
    """A stand-in after a few steps; the gradient of its first entry is multiplied by ``factor``."""
    group = next(groups_with([optimizer], parameter))
    kind = type(optimizer)
    accepted = inspect.signature(kind.__init__).parameters
    settings = {key: value for key, value in group.items() if key in accepted and key != "params"}
    shape = [_SIDE] * parameter.dim()
    stream = torch.Generator().manual_seed(0)
    stand_in = nn.Parameter(torch.randn(shape, generator=stream).to(parameter.dtype))
    twin = kind([stand_in], **settings)
    for _ in range(_STEPS):
        gradient = torch.randn(shape, generator=stream).to(parameter.dtype)
        gradient.view(-1)[0] *= factor
        stand_in.grad = gradient
        kind.step(twin)
    return stand_in.detach()
