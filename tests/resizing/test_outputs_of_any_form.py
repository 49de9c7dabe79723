"""Whether a wider model computes the same is seen on whatever it returns; where nothing is, it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.errors import ChannelError

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


@dataclass(slots=True)
class Slotted:
    logits: torch.Tensor


class Plain:
    def __init__(self, logits: torch.Tensor):
        self.inside = [{"logits": logits}]
        self.me = self  # a cycle


FORMS: dict[str, Any] = {
    "tensor": lambda y: y,
    "namespace": lambda y: SimpleNamespace(logits=y),
    "dataclass with slots": Slotted,
    "object": Plain,
    "distribution": lambda y: torch.distributions.Categorical(logits=y),
    "array": lambda y: y.detach().numpy(),
    "number": lambda y: y.square().mean().item(),
    "nested": lambda y: {"a": [SimpleNamespace(logits=y), 3, "text", None]},
}


class Returning(nn.Module):
    def __init__(self, form: str, depends: bool):
        super().__init__()
        torch.manual_seed(0)
        self.form, self.depends = form, depends
        self.up, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        h = torch.relu(self.up(x))
        if self.depends:  # on how many channels there are
            h = h / h.shape[-1]
        return FORMS[self.form](self.head(h))


@pytest.mark.parametrize("form", FORMS)
def test_a_function_that_would_change_is_seen_in_what_is_returned(form: str):
    host = fxgraft.trace(Returning(form, depends=True), (X,))
    with pytest.raises(ChannelError, match="expected the outputs of before"):
        fxgraft.SeedManager(host).widen("up", 8)
    assert host.get_parameter("up.weight").shape == (8, 4)


@pytest.mark.parametrize("form", FORMS)
def test_one_that_is_kept_may_be_returned_in_any_form(form: str):
    host = fxgraft.trace(Returning(form, depends=False), (X,))
    assert fxgraft.SeedManager(host).widen("up", 8).size == 16
    assert host.get_parameter("up.weight").shape == (16, 4)


class Detector(Returning):
    """Returns what it is sure of, in eval mode: nothing, before it has learnt."""

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.head(torch.relu(self.up(x)))
        if self.training:
            return logits
        found = logits.softmax(-1)
        return found[found > 0.999]


def test_where_nothing_is_returned_it_cannot_be_seen():
    host = fxgraft.trace(Detector("tensor", depends=False), (X,))
    with pytest.raises(ChannelError, match="in eval mode, that have numbers; there are none"):
        fxgraft.SeedManager(host).widen("up", 8)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 8, sparse=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x))


def test_a_sparse_gradient_that_waits_grows_along():
    x = torch.tensor([[1, 2], [3, 1]])
    host = fxgraft.trace(Tokens(), (x,))
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    host(x).sum().backward()
    before = host.get_parameter("table.weight").grad.to_dense()
    manager.widen("table", 4)
    grad = host.get_parameter("table.weight").grad
    assert grad.is_sparse
    assert grad.shape == (10, 12)
    assert torch.equal(grad.to_dense()[:, :8], before)
    assert not grad.to_dense()[:, 8:].any()
