"""What is new in wider layers can learn, with the state of a new parameter; where it cannot, that is said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgraft
from fxgraft.errors import ChannelError
from tests.resizing.models import Gpt
from tests.resizing.test_widening import TOKENS

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))

OPTIMIZERS = {
    "Rprop": (partial(torch.optim.Rprop, lr=1e-2), {"prev": 0.0, "step_size": 1e-2}),
    "Adagrad": (partial(torch.optim.Adagrad, lr=1e-2, initial_accumulator_value=0.5), {"sum": 0.5}),
    "AdamW": (partial(torch.optim.AdamW, lr=1e-2, amsgrad=True), {"exp_avg": 0.0, "max_exp_avg_sq": 0.0}),
    "RMSprop": (partial(torch.optim.RMSprop, momentum=0.9), {"square_avg": 0.0, "momentum_buffer": 0.0}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_new_entries_of_the_state_are_those_of_a_new_parameter(name: str) -> None:
    make, begins = OPTIMIZERS[name]
    torch.manual_seed(0)
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), (X,))
    optimizer: Any = make(host.parameters())
    manager = fxgraft.SeedManager(host, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        (host(X) - X[:, :2] ** 2).pow(2).mean().backward()
        optimizer.step()
        manager.step()
    weight = host.get_submodule("2").weight
    old = {key: optimizer.state[weight][key].clone() for key in begins}
    manager.widen("0", 4)
    weight = host.get_submodule("2").weight
    for key, begin in begins.items():
        now = optimizer.state[weight][key]
        torch.testing.assert_close(now[:, 8:], torch.full((2, 4), begin))
        assert torch.equal(now[:, :8], old[key]), "old entries stay to the bit"


class Tied(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 8, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.gelu(self.encoder(x)), self.encoder.weight.t())


def test_a_weight_on_both_sides_is_refused_where_zeros_would_stay() -> None:
    host = fxgraft.trace(Tied(bias=False), (X,))
    manager = fxgraft.SeedManager(host)
    (name,) = (name for name, group in host.channels.items() if group.size == 8)
    before = {key: value.clone() for key, value in host.state_dict().items()}
    with pytest.raises(ChannelError, match=r"encoder\.weight both makes and reads them"):
        manager.widen(name, 8)
    assert all(torch.equal(value, before[key]) for key, value in host.state_dict().items())
    biased = fxgraft.trace(Tied(bias=True), (X,))
    (name,) = (name for name, group in biased.channels.items() if group.size == 8)
    fxgraft.SeedManager(biased).widen(name, 8)
    biased(X).square().sum().backward()
    assert biased.get_submodule("encoder").weight.grad[8:].abs().sum() > 0, "through the bias it learns"


@pytest.mark.parametrize(
    ("grow", "told"),
    [
        (lambda manager: manager.deepen("blocks", name="n"), "seed 'n' cannot learn"),
        (lambda manager: manager.widen("blocks.0.mlp.0", 4), "what is new in 'blocks.0.mlp.0' cannot learn"),
    ],
)
def test_what_grows_of_frozen_layers_is_said(
    grow: Callable[[Any], object], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Gpt(nn.LayerNorm, depth=2)
    model.blocks.requires_grad_(False)
    host = fxgraft.trace(model, (TOKENS,))
    trained = [parameter for parameter in host.parameters() if parameter.requires_grad]
    manager = fxgraft.SeedManager(host, torch.optim.AdamW(trained))
    with caplog.at_level(logging.WARNING, logger="fxgraft"):
        grow(manager)
    assert [told in record.message for record in caplog.records] == [True]
