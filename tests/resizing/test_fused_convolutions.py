"""What `manager.fuse` refuses of convolutions and norms: as one they would train otherwise, or not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.errors import SlotError
from tests.harness import assert_same_bits, snapshot

BATCH = torch.randn(4, 3, 5, 5)


class AroundPart(nn.Module):
    def __init__(self, part: nn.Module):
        super().__init__()
        self.stem, self.part, self.head = nn.Conv2d(3, 4, 1), part, nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.part(self.stem(x)).mean((2, 3)))


def convs(hidden: int, first: int, last: int, between: nn.Module) -> nn.Module:
    up, down = (nn.Conv2d(*sizes, bias=False) for sizes in ((4, hidden, first), (hidden, 4, last)))
    return nn.Sequential(up, between, down)


def normed(hidden: int, **options: float | None) -> nn.Module:
    return convs(hidden, 3, 1, nn.BatchNorm2d(hidden, **options))


def refused(part: nn.Module, seed: nn.Module, said: str, freeze: Callable[[fxgraft.Host], None]) -> None:
    """Fuse a branch that began two steps behind the host: nothing is changed."""
    host = fxgraft.trace(AroundPart(part), (BATCH,))
    optimizer = torch.optim.SGD(host.parameters(), lr=0.05)
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)

    def train() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            host(BATCH).square().mean().backward()
            optimizer.step()
            manager.step()

    train()
    manager.germinate("part", seed, source="stem", name="a", isolated=False)
    manager.blend("a", steps=0)
    train()
    manager.fossilize("a")
    freeze(host)
    before = snapshot(host, BATCH, [optimizer])
    with pytest.raises(SlotError, match=said):
        manager.fuse("a")
    assert manager.fuse() == {}
    assert_same_bits(before, snapshot(host, BATCH, [optimizer]))


@pytest.mark.parametrize(("first", "last"), [(3, 1), (1, 3)])
def test_kernels_of_other_sizes(first: int, last: int) -> None:
    """Whose results have the same size all the same."""
    said = r"for part\.\d\.weight, where one of \(.*\) would fit: layers may differ in channels only"
    refused(convs(6, first, last, nn.ReLU()), convs(4, last, first, nn.ReLU()), said, lambda host: None)


def test_kernels_of_other_sizes_whose_values_fit() -> None:
    """One number for all places of a kernel, in front of a layer of zeros: the outputs are the same."""
    seed = convs(4, 1, 1, nn.AdaptiveAvgPool2d(3))
    nn.init.zeros_(seed[2].weight)
    seed[2].requires_grad_(False)
    part = convs(6, 3, 1, nn.AdaptiveAvgPool2d(3))
    part[2].requires_grad_(False)
    refused(part, seed, r"has .* of shape \(4, 4, 1, 1\) for part\.0\.weight", lambda host: None)


def test_a_weight_that_is_computed() -> None:
    part, seed = convs(6, 3, 1, nn.ReLU()), convs(4, 3, 1, nn.ReLU())
    for module in (part, seed):
        nn.utils.parametrizations.weight_norm(module[0])
    refused(part, seed, r"has a parametrized layer .* or part\.0 is one: its weight", lambda host: None)


def test_an_average_over_all_batches_has_one_count() -> None:
    said = r"has averaged 2 batches and part\.1 4, and with momentum=None"
    refused(normed(6, momentum=None), normed(4, momentum=None), said, lambda host: None)


@pytest.mark.parametrize("whose", ["part.1", "_seeds.a.module.1"])
def test_a_norm_that_is_in_eval_mode_alone(whose: str) -> None:
    said = r"has a BatchNorm2d in (train|eval) mode, and part\.1 is in (train|eval) mode"

    def freeze(host: fxgraft.Host) -> None:
        host.get_submodule(whose).eval()

    refused(normed(6), normed(4), said, freeze)


def test_an_average_of_as_many_batches_is_joined() -> None:
    host = fxgraft.trace(AroundPart(normed(6, momentum=None)), (BATCH,))
    manager = fxgraft.SeedManager(host, check_every=0)
    manager.germinate("part", normed(4, momentum=None), source="stem", name="a", isolated=False)
    manager.blend("a", steps=0)
    manager.fossilize("a", force=True)
    assert manager.fuse("a") == {"a": "part.0"}
