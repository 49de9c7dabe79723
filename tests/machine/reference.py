"""A slow reference of what seeds do: the table of stages in plain autograd, with no code of fxgraft.

A plain model gets forward hooks behind some of its modules. Each hook replaces the module's output by what a
slot with those seeds has to give, in the stage that each is in; gradients come from autograd.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

RHO = 0.03


class Learning(torch.autograd.Function):
    """TRAINING: the host's value and gradient as they are; the seed's gradient by trust, form ii."""

    @staticmethod
    def forward(ctx: Any, host: Tensor, seed: Tensor, convex: bool) -> Tensor:
        ctx.save_for_backward(host, seed - host if convex else seed)
        return host.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        host, d = ctx.saved_tensors
        size, ratio = d.norm(), d.norm() / (RHO * host.norm())
        if not ratio > 1:
            return g, g, None
        outward = torch.clamp((g * d).sum(), max=0.0)
        pulled = g - outward / size**2 * d + g.norm() * torch.clamp(ratio - 1, max=1.0) * d / size
        return g, pulled, None


@dataclass
class Planted:
    """A seed of the reference.

    Attributes:
        slot: the module behind which it is.
        module: computes its branch, or, in convex mode, the value's replacement.
        convex: its mode.
        stage: "TRAINING", "BLENDING", "HOLDING" or "FOSSILIZED".
        alpha, start, target, length, done: its share, and the linear ramp that it is on.
        paused: whether ramp and updates stand still.
    """

    slot: str
    module: nn.Module
    convex: bool
    stage: str = "TRAINING"
    alpha: float = 0.0
    start: float = 0.0
    target: float = 0.0
    length: int = 0
    done: int = 0
    paused: bool = False

    def value(self, host: Tensor) -> Tensor:
        """What leaves the slot, for the host's value."""
        attached = self.stage == "FOSSILIZED" or (self.stage == "HOLDING" and self.convex)
        seed = self.module(host if attached else host.detach())
        if self.stage == "TRAINING":
            return Learning.apply(host, seed, self.convex)
        if self.alpha == 0.0 and self.stage != "FOSSILIZED":
            return host + 0.0 * seed
        if self.convex:
            return seed + 0.0 * host if self.alpha == 1.0 else host + self.alpha * (seed - host)
        return host + self.alpha * seed

    def blend(self, target: float, steps: int) -> None:
        self.stage, self.start, self.target, self.length, self.done = "BLENDING", self.alpha, target, steps, 0

    def advance(self) -> None:
        if self.stage != "BLENDING" or self.paused:
            return
        self.done += 1
        share = self.done / self.length
        self.alpha = (
            self.target if self.done == self.length else self.start + (self.target - self.start) * share
        )
        if self.done == self.length:
            self.stage = "HOLDING"


class Reference:
    """A plain model in training, with seeds behind its modules."""

    def __init__(self, model: nn.Module, optimizer: Callable[[Any], torch.optim.Optimizer]):
        self.model = model
        self.optimizer = optimizer(model.parameters())
        self.seeds: dict[str, Planted] = {}
        for name, module in model.named_modules():
            module.register_forward_hook(self._hook(name))

    def _hook(self, slot: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            for seed in self.seeds.values():  # in the order of germination
                if seed.slot == slot:
                    output = seed.value(output)
            return output

        return hook

    def germinate(self, name: str, slot: str, module: nn.Module, convex: bool) -> None:
        seed = self.seeds[name] = Planted(slot, copy.deepcopy(module), convex)
        self.optimizer.param_groups[0]["params"] += list(seed.module.parameters())

    def cull(self, name: str) -> None:
        gone = {id(p) for p in self.seeds.pop(name).module.parameters()}
        group = self.optimizer.param_groups[0]
        for parameter in [p for p in group["params"] if id(p) in gone]:
            self.optimizer.state.pop(parameter, None)
        group["params"] = [p for p in group["params"] if id(p) not in gone]

    def step(self, loss: Callable[[Any], Tensor], batch: Any) -> Tensor:
        """One training step."""
        self.optimizer.zero_grad()
        found = loss(self.model(batch))
        found.backward()
        for seed in self.seeds.values():
            for parameter in seed.module.parameters() if seed.paused else ():
                parameter.grad = None
        self.optimizer.step()
        for seed in self.seeds.values():
            seed.advance()
        return found.detach()
