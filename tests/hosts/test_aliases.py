"""Values that are the very tensor of another node: no slot where gradients would be summed up otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxgraft
from tests.hosts.hosts import Base, Given, Out, assert_same, ran
from tests.hosts.test_lives import Bend


class Outer(nn.Module):
    """A residual around an inner module, so that the value is read by other code, later."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(8, 8), inner, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(h + self.inner(h))


class Converts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.float32)
        return y * y.pow(2).mean(-1, keepdim=True)


class ConvertsOnce(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float32).tanh()


class Drops(nn.Module):
    """Passes its input on in eval mode only."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(x, 0.1, self.training)
        return y.sin() + y.cos()


class Inside(Base):
    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        y = self.same(h)
        return h.exp() + y.sin() * y.cos()


class ReadBefore(Inside):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        before = h.exp()
        y = self.same(h)
        return before + y.sin() * y.cos()


class Held(Base):
    """By a dataclass, whose parts are taken out twice."""

    class Makes(Base):
        def forward(self, x: Tensor) -> Out:
            return Out(self.fc1(x))

    def __init__(self) -> None:
        super().__init__()
        self.makes = self.Makes()

    def forward(self, x: Tensor) -> Tensor:
        out = self.makes(x)
        y = out.value
        return y.sin() * y.cos() + out.value.exp()


class OfAWeight(Base):
    def forward(self, x: Tensor) -> Tensor:
        w = self.fc1.weight.to(x.dtype)
        return F.linear(x, w.tanh() * w) + self.fc1(x)


class Unseen(nn.Module):
    """No graph for what reads the value a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Linear(8, 8), Converts()

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        if h.sum() > 1e9:
            return h
        return h + self.inner(h)


CASES = {
    "read by the code around": (lambda: Outer(Converts()), {"inner.to": "add"}),
    "one term of the gradient": (lambda: Outer(ConvertsOnce()), {}),
    "in eval mode": (lambda: Outer(Drops()), {"inner.dropout": "add"}),
    "an identity": (Inside, {"same": "exp"}),
    "read before": (ReadBefore, {}),
    "held by a dataclass": (Held, {"getattr": "getattr_2"}),
    "a parameter": (OfAWeight, {"to": "whoever else reads that parameter"}),
    "read by code without a graph": (Unseen, {"inner.to": "code that has no graph, perhaps"}),
}


@pytest.mark.parametrize("name", CASES)
def test_only_where_it_matters_is_there_no_slot(name):
    made, refused = CASES[name]
    host = fxgraft.trace(made(), (torch.randn(4, 8),))
    found = {place: why for place, why in host.rejected.items() if "in another order" in why}
    assert found.keys() == refused.keys(), (dict(host.rejected), list(host.slots))
    for place, reader in refused.items():
        assert f"which {reader} reads as well" in found[place]


@pytest.mark.parametrize("name", CASES)
def test_behind_every_slot_the_gradients_are_the_same_to_the_bit(name):
    given = Given(CASES[name][0](), (torch.randn(64, 8, requires_grad=True),))
    host = fxgraft.trace(given.model, given.args)
    manager = fxgraft.SeedManager(host, check_every=0)
    for training in (True, False):
        expected = ran(host, given, {}, training, given.model)
        for slot in host.slots:
            seed = manager.germinate(slot, Bend)
            assert_same(ran(host, given, {}, training, given.model), expected, f"{slot}, training={training}")
            manager.cull(seed)
