"""Models that call modules inside ``torch.func`` transforms, or TorchScript: traced, grown around that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from tests.harness import assert_same_bits, frozen


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.outer = nn.Linear(8, 8)


class Mapped(Base):
    """Both layers are called row by row."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: self.outer(torch.tanh(self.inner(row))))(x)


class MappedWrites(Base):
    """What a layer returned is written into, inside."""

    def forward(self, x: Tensor) -> Tensor:
        def row(x: Tensor) -> Tensor:
            y = self.inner(x).clone()
            y.add_(1)
            return self.outer(y)

        return torch.vmap(row)(x)


class Jacobian(Base):
    def forward(self, x: Tensor) -> Tensor:
        rows = torch.func.vmap(torch.func.jacrev(lambda row: torch.tanh(self.inner(row))))(x)
        return self.outer(rows.sum(1))


class Force(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.func.grad(lambda x: torch.tanh(self.inner(x)).sum())(x))


class Scripted(Base):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))


def run(model: nn.Module, x: Tensor) -> object:
    model.zero_grad()
    out = model(x)
    out.square().sum().backward()
    return frozen([out, {name: p.grad for name, p in model.named_parameters() if "_seeds" not in name}])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "slots"),
    [
        (Mapped, []),
        (MappedWrites, []),
        (Jacobian, ["outer"]),
        (Force, ["outer"]),
        (Scripted, ["inner", "outer"]),
    ],
)
def test_it_is_the_model_and_grows_where_a_seed_can_learn(kind: type[Base], slots: list[str]) -> None:
    torch.manual_seed(0)
    plain, x = kind(), torch.randn(4, 8)
    torch.manual_seed(0)
    host = fxgraft.trace(kind(), (x,))
    assert [name for name in host.slots if name in ("inner", "outer")] == slots
    assert "inner" in str(host.explain())
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1), strict=True, check_every=1)
    for slot in slots:
        manager.germinate(slot, "low_rank")
    for step in range(3):
        batch = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        assert_same_bits(run(host, batch), run(plain, batch), "the host with isolated seeds")
        manager.step()
    assert [seed.runs >= 3 for seed in manager.seeds.values()] == [True] * len(slots)


@pytest.mark.parametrize("kind", [Mapped, Force])
def test_why_there_is_no_slot_is_said(kind: type[Base]) -> None:
    host = fxgraft.trace(kind(), (torch.randn(4, 8),))
    with pytest.raises(fxgraft.errors.SlotError, match=r"inside a transform of torch\.func"):
        host.slot("inner")
