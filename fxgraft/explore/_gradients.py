"""The gradients of candidates at their initial parameters: how fast the loss would fall with them.

    E[g], E[g^2] over some steps    ->    sum of E[g]^2 / sqrt(E[g^2])

To first order that is what steps of Adam take from the loss, by learning rate: a parameter whose gradient has
one sign in all batches counts by its size, one whose gradient is noise does not. The gradients are taken as
they arrive, so that a loop may clear them before ``manager.step()``; a loss scale is in all of them alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fxgraft.util import validate

TINY = 1e-12


class InitialGradients:
    """Keeps the parameters of a module at their initial values, and sums up their gradients.

    Args:
        module: a seed's.
    """

    def __init__(self, module: nn.Module):
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._initial = [p.detach().clone() for p in self._parameters]
        self._first = [torch.zeros_like(p) for p in self._initial]
        self._second = [torch.zeros_like(p) for p in self._initial]
        self._arrived: dict[nn.Parameter, Tensor] = {}
        self._steps = 0
        self.norm: float | None = None
        self._hooks: list[RemovableHandle] = [
            p.register_post_accumulate_grad_hook(self._see)  # type: ignore[no-untyped-call]
            for p in self._parameters
        ]

    def _see(self, parameter: nn.Parameter) -> None:
        """A gradient has arrived; the last one of a step is that of all its batches."""
        if parameter.grad is not None:
            self._arrived[parameter] = parameter.grad.detach().clone()

    @torch.no_grad()
    def step(self) -> None:
        """After a training step: take the gradients, and reset the parameters."""
        if self._arrived:
            for parameter, first, second in zip(self._parameters, self._first, self._second, strict=True):
                if (gradient := self._arrived.get(parameter)) is not None:
                    first.add_(gradient)
                    second.addcmul_(gradient, gradient)
            if self.norm is None:
                self.norm = math.sqrt(sum(float(g.double().square().sum()) for g in self._arrived.values()))
            self._steps += 1
            self._arrived.clear()
        for parameter, initial in zip(self._parameters, self._initial, strict=True):
            parameter.copy_(initial)

    def state(self) -> dict[str, Any]:
        """The sums so far."""
        return {"first": self._first, "second": self._second, "steps": self._steps, "norm": self.norm}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; the parameters have their initial values."""
        for name, ours in (("first", self._first), ("second", self._second)):
            theirs = list(state[name])
            if [one.shape for one in ours] != [other.shape for other in theirs]:
                raise ValueError(f"{name}: expected a tensor like each parameter of the candidate")
            for one, other in zip(ours, theirs, strict=True):
                one.copy_(other)
        self._steps, self.norm = validate.integer("steps", state["steps"]), state["norm"]

    def end(self) -> float | None:
        """Stop resetting the parameters; return the score, None where no gradient has arrived."""
        for hook in self._hooks:
            hook.remove()
        if not self._steps:
            return None
        total = sum(map(self._expected, self._first, self._second))
        return total if math.isfinite(total) else None

    def _expected(self, first: Tensor, second: Tensor) -> float:
        mean, square = first.double() / self._steps, second.double() / self._steps
        return float((mean.square() / (square.sqrt() + TINY)).sum())
