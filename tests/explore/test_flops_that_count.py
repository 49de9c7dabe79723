"""What a budget of FLOPs counts: each call of a slot, and the host alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.util.flops import count_flops

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = torch.sin(3 * X[:, :1]) * X[:, 1:2]


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))


class Repeated(nn.Module):
    """One cell, run eight times."""

    def __init__(self):
        super().__init__()
        self.i, self.cell, self.o = nn.Linear(6, 8), Cell(), nn.Linear(8, 1)

    def forward(self, x):
        x = self.i(x)
        for _ in range(8):
            x = self.cell(x)
        return self.o(x)


def flops(host: fxgraft.Host) -> int:
    with torch.no_grad():
        return count_flops(lambda: host(X[:4]))


def test_a_plan_counts_each_call_of_its_slot():
    torch.manual_seed(0)
    host = fxgraft.trace(Repeated(), (X[:4],))
    manager = fxgraft.SeedManager(host, torch.optim.AdamW(host.parameters()))
    planned, before = manager.plan("cell.b", "mlp", hidden=32).forward_flops, flops(host)
    manager.germinate("cell.b", "mlp", hidden=32)
    assert flops(host) - before == planned


def test_a_budget_holds_where_a_block_is_run_several_times():
    torch.manual_seed(0)
    host = fxgraft.trace(Repeated(), (X[:4],))
    optimizer = torch.optim.AdamW(host.parameters(), 3e-3)
    manager = fxgraft.SeedManager(host, optimizer)
    before = flops(host)
    growth = manager.autogrow(
        lambda: (host(X) - Y).pow(2).mean(), ["cell.b"], {"flops": 12.0}, lambda _: True, steps=2, blend=1,
        hold=4, gain=-1e9, blueprints=["mlp"], patience=5, score="contribution",
    )  # fmt: skip
    for _ in range(60):
        optimizer.zero_grad()
        loss = (host(X) - Y).pow(2).mean()
        loss.backward()
        optimizer.step()
        manager.step(loss)
        if growth.done:
            break
    assert any(entry["what"] == "kept" for entry in growth.history)
    assert 1 < flops(host) / before <= 12


@pytest.mark.parametrize("calls", [lambda host: host, lambda host: host.forward])
def test_the_flops_of_the_host_are_not_those_of_a_teacher(calls):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 256), nn.Tanh(), nn.Linear(256, 1))
    host = fxgraft.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), (X[:4],))
    manager = fxgraft.SeedManager(host, torch.optim.AdamW(host.parameters()))
    call = calls(host)
    growth = manager.autogrow(
        lambda: (call(X) - teacher(X).detach()).pow(2).mean(), ["0"], {"parameters": 20.0},
        blueprints=["mlp"],
    )  # fmt: skip
    known = growth.state_dict()["flops"]
    if call is host:
        assert known == flops(host)
    else:
        assert known > flops(host), "without the host's call there is no telling them apart"
    hooks = (host._forward_hooks, host._forward_pre_hooks)
    assert not any(hooks)
