"""Every host: in randomly chosen slots a seed that is no identity is not felt, and leaves no trace."""

from __future__ import annotations

import random

import pytest
import torch
import transformers
from torch import Tensor, nn

import fxgraft
import tests.hosts.hard  # noqa: F401 - registers its hosts
from tests.hosts.hosts import HOSTS, Given, assert_same, ran
from tests.hosts.transformer_models import MODELS

EVERY = HOSTS | MODELS
SLOTS = 4


class Bend(nn.Module):
    """Fits every slot: element by element, far from the identity, and counts its calls."""

    def __init__(self, slot: fxgraft.Slot) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(-1.5))
        self.shift = nn.Parameter(torch.tensor(0.7))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(x) * self.gain + self.shift


def chosen(name: str, host: fxgraft.Host) -> list[str]:
    # FlexAttention has no backward pass on a CPU, and one would be needed for a seed that is in front of it.
    slots = [slot for slot in host.slots if name != "flex attention" or slot != "attention.qkv"]
    return random.Random(name).sample(slots, min(SLOTS, len(slots)))


def both_modes(host: fxgraft.Host, given: Given, buffers: dict[str, Tensor]) -> list[dict[str, object]]:
    return [ran(host, given, buffers, training, given.model) for training in (True, False)]


@pytest.mark.parametrize("name", EVERY)
def test_a_seed_is_not_felt_and_leaves_no_trace(name):
    transformers.logging.set_verbosity_error()
    given = EVERY[name]()
    host = fxgraft.trace(given.model, given.args, given.kwargs)
    optimizer = torch.optim.SGD(list(host.parameters()) or [nn.Parameter(torch.zeros(1))], 0.0)
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    buffers = {n: b.clone() for n, b in given.model.named_buffers()}
    before, code = both_modes(host, given, buffers), {n: r.code for n, r in host.regions.items()}
    seeds = [manager.germinate(slot, Bend) for slot in chosen(name, host)]
    assert seeds or not host.slots
    for _ in range(2):  # the second time with other weights
        for i, record in enumerate(both_modes(host, given, buffers)):
            assert_same(record, before[i], f"TRAINING at {[s.slot for s in seeds]}, training={not i}")
        for seed in seeds:
            assert seed.module.calls, seed.slot
            with torch.no_grad():
                seed.module.gain.mul_(-2)
    for seed in seeds:
        manager.blend(seed, to=0.7, steps=1)
    manager.step()
    both_modes(host, given, buffers)
    for seed in seeds:
        manager.cull(seed)
    for i, record in enumerate(both_modes(host, given, buffers)):
        assert_same(record, before[i], f"CULLED from {[s.slot for s in seeds]}, training={not i}")
    assert {n: r.code for n, r in host.regions.items()} == code
