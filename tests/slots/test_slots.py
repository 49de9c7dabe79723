"""Names and order of slots over the regions of a host."""

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.errors import SlotError


class Child(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class PastItsChild(nn.Module):
    """Calls its grandchild directly as well, so that two regions come to the name ``child.linear``."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Child()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.child(x) + self.child.linear(x).relu()


def test_two_regions_never_share_a_name() -> None:
    host = fxgraft.trace(PastItsChild(), (torch.randn(2, 4),))
    assert list(host.slots) == ["child.linear", "child", "child.linear_1", "relu", "add"]
    assert [host.slots[name].region for name in ("child.linear", "child.linear_1")] == ["child", ""]
    assert all(slot.name == name for name, slot in host.slots.items())


def test_a_seed_goes_to_the_one_that_was_named() -> None:
    host = fxgraft.trace(PastItsChild(), (torch.randn(2, 4),))
    before = {name: region.code for name, region in host.regions.items()}
    fxgraft.SeedManager(host).germinate("child.linear_1", "mlp")
    assert host.regions["child"].code == before["child"]
    assert host.regions[""].code != before[""]


def test_slots_are_in_execution_order() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), nn.Tanh())
    host = fxgraft.trace(model, (torch.randn(2, 4),))
    assert list(host.slots) == ["0", "1.0", "1.1", "1", "2"]


@pytest.mark.parametrize("name", [None, 3, ("0",)])
def test_what_is_no_name_is_refused(name: object) -> None:
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 4)), (torch.randn(2, 4),))
    with pytest.raises(SlotError, match="expected a name"):
        fxgraft.SeedManager(host).germinate(name, "mlp")  # type: ignore[arg-type]


@pytest.mark.parametrize("to", ["1", True, None, 1.5, float("nan")])
def test_a_target_that_is_no_share_changes_nothing(to: object) -> None:
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 4)), (torch.randn(2, 4),))
    manager = fxgraft.SeedManager(host)
    seed = manager.germinate("0", "mlp")
    with pytest.raises(ValueError, match="to: expected a number between 0 and 1"):
        manager.blend(seed, to=to)  # type: ignore[arg-type]
    assert seed.stage is fxgraft.Stage.TRAINING
