"""A seed whose backward pass would end the process is refused, and trains where it would not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.errors import BlueprintError


class PooledNorm(nn.Module):
    """It normalises a value that it makes itself of what it reads, without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(F.relu(x), 2, self.weight)


class ConvNorm(nn.Sequential):
    """It normalises what its own weights make: that requires a gradient."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 1), nn.GroupNorm(1, 4))


def training(last: bool) -> tuple[SeedManager, Tensor]:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    x = torch.randn(2, 3, 8, 8)
    if last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    host = fxgraft.trace(model, (x,))
    return SeedManager(host, torch.optim.SGD(host.parameters(), 0.1)), x


@pytest.mark.parametrize("blueprint", ["norm", lambda slot: PooledNorm(), lambda slot: nn.GroupNorm(2, 4)])
def test_a_channels_last_group_norm_on_a_cpu_is_refused_by_name(blueprint):
    manager, _ = training(last=True)
    with pytest.raises(BlueprintError, match=r"slot '1'.*group_norm of a channels-last value.*contiguous"):
        manager.germinate("1", blueprint)
    assert not manager.seeds


@pytest.mark.parametrize(
    ("blueprint", "last"),
    [("norm", False), (lambda slot: PooledNorm(), False), (lambda slot: ConvNorm(), True), ("mlp", True)],
)
def test_others_train(blueprint, last):
    manager, x = training(last)
    seed = manager.germinate("1", blueprint)
    before = [parameter.detach().clone() for parameter in seed.module.parameters()]
    for _ in range(2):
        manager.host(x).square().sum().backward()
        manager.optimizers[0].step()
        manager.step()
    assert any(not torch.equal(a, b) for a, b in zip(seed.module.parameters(), before, strict=True))
