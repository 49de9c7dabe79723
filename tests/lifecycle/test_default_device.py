"""What grows is on the host's device, with the same bits, whatever the default device of torch is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager, Slot
from fxgraft.errors import BlueprintError

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
SLOT = "1.0.relu"


class ReluBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.relu, self.down = nn.Linear(5, 10), nn.ReLU(), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.relu(self.up(x)))  # type: ignore[no-any-return]


def managed() -> SeedManager:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Sequential(ReluBlock(), ReluBlock()), nn.Linear(5, 2))
    host = fxgraft.trace(model, (X,))
    return SeedManager(host, torch.optim.AdamW(host.parameters(), 1e-2))


def learn(manager: SeedManager, steps: int = 3) -> None:
    for _ in range(steps):
        manager.optimizers[0].zero_grad()
        manager.host(X).square().mean().backward()
        manager.optimizers[0].step()
        manager.step()


def with_dropout(slot: Slot) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.1), nn.Linear(slot.shape[-1], slot.shape[-1]))


def explored(manager: SeedManager) -> None:
    exploration = manager.explore(
        evaluate=lambda: manager.host(X).square().mean(), steps=2, keep=1, blueprints=["mlp"]
    )
    learn(manager, 2)
    assert exploration.best(1)


def life(manager: SeedManager) -> None:
    manager.germinate(SLOT, "mlp", name="a", mode="channelwise")
    learn(manager)
    manager.blend("a", steps=2)
    learn(manager)
    manager.measure("a", lambda: manager.host(X).square().mean())
    manager.fossilize("a")


GROWTHS: dict[str, Callable[[SeedManager], Any]] = {
    **{mode: lambda m, mode=mode: m.germinate(SLOT, "mlp", mode=mode) for mode in ("residual", "gated")},
    "dropout": lambda m: m.germinate(SLOT, with_dropout),
    "a layer": lambda m: m.germinate("1.0.up", "scale_shift"),
    "deepen": lambda m: m.deepen("1"),
    "widen": lambda m: m.widen("1.0.up", 2, init="split"),
    "explore": explored,
    "a life": life,
}


def bits(manager: SeedManager) -> dict[str, Tensor]:
    learn(manager)
    return dict(manager.host.state_dict())


@pytest.mark.parametrize("by", ["context", "set_default_device"])
@pytest.mark.parametrize("growth", GROWTHS)
def test_a_default_device_changes_nothing(growth: str, by: str) -> None:
    ordinary, other = managed(), managed()
    GROWTHS[growth](ordinary)
    if by == "context":
        with torch.device("meta"):
            GROWTHS[growth](other)
    else:
        torch.set_default_device("meta")
        try:
            GROWTHS[growth](other)
        finally:
            torch.set_default_device(None)
    expected, found = bits(ordinary), bits(other)
    assert expected.keys() == found.keys()
    assert {tensor.device for tensor in found.values()} == {torch.device("cpu")}
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_run_is_loaded_where_its_host_is(tmp_path: Path) -> None:
    manager = managed()
    manager.germinate(SLOT, "mlp", name="a")
    learn(manager)
    manager.save(tmp_path / "run")
    fresh = managed()
    with torch.device("meta"):
        loaded = SeedManager.load(tmp_path / "run", fresh.host, fresh.optimizers[0])
    expected, found = bits(manager), bits(loaded)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "blueprint",
    [nn.Linear(10, 10, device="meta"), lambda slot: nn.Linear(10, 10, device="meta")],
    ids=["a module", "a factory"],
)
def test_a_module_without_data_is_refused_by_name(blueprint: Any) -> None:
    manager = managed()
    with pytest.raises(
        BlueprintError,
        match=r"slot '1\.0\.relu': expected weights with data.*cpu; weight is on the meta device",
    ):
        manager.germinate(SLOT, blueprint, name="a")
    manager.germinate(SLOT, "mlp", name="a")
