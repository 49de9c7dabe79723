"""A small host in training, for explorations of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.explore import Exploration
from tests.harness import frozen, state, traced_once
from tests.networks import NormNet

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] * X[:, 1] > 0).long()


@traced_once
def traced(model: type[nn.Module]) -> fxgraft.Host:
    return fxgraft.trace(model(), (X[:4],))


class Run:
    """A host in training."""

    def __init__(self, **options: Any):
        self.host = traced(NormNet)
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.manager = SeedManager(self.host, self.optimizer, **options)
        torch.manual_seed(0)

    def evaluate(self) -> list[Tensor]:
        self.host.eval()
        return [F.cross_entropy(self.host(x), y) for x, y in zip(X.split(12), Y.split(12), strict=True)]

    def train(self, steps: int) -> list[Tensor]:
        losses = []
        for _ in range(steps):
            now = torch.randint(0, len(X), (16,))
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.host(X[now]), Y[now])
            loss.backward()
            self.optimizer.step()
            self.manager.step(loss)
            losses.append(loss.detach())
        return losses

    def explored(self, candidates: Any = "auto", steps: int = 5, **options: Any) -> Exploration:
        exploration = self.manager.explore(candidates, evaluate=self.evaluate, steps=steps, **options)
        self.train(steps)
        assert exploration.done
        return exploration

    def state(self) -> tuple[Any, ...]:
        moments = [frozen(self.optimizer.state[p]) for p in self.host.host_parameters()]
        return state(self.host), moments, torch.get_rng_state()


class Hidden(nn.Module):
    """A block of a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))
