"""What tracing and editing cost, in instructions: an edit costs what its region costs, whatever the host."""

from __future__ import annotations

import gc
import linecache

import pytest
import torch
import torch.fx.graph_module
from torch import nn

import fxgraft
from fxgraft.capture.region import MAX_KNOWN
from tests.effort import Effort, effort


class TenNodes(nn.Module):
    """Ten nodes or so."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = torch.relu(self.up(x))
        h = h * 2 + torch.sigmoid(h) - 1
        return x + self.down(torch.tanh(h))


def modular(groups: int, blocks: int) -> fxgraft.Host:
    model = nn.Sequential(*(nn.Sequential(*(TenNodes() for _ in range(blocks))) for _ in range(groups)))
    return fxgraft.trace(model, (torch.randn(2, 4),))


def nodes_of(host: fxgraft.Host) -> int:
    return sum(len(region.base.nodes) for region in host.regions.values())


def a_life(host: fxgraft.Host) -> dict[str, Effort]:
    """The effort of each step in the lives of a few seeds."""
    optimizer = torch.optim.AdamW(host.parameters())
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    host(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    spent: dict[str, Effort] = {}

    def does(what, action):
        with effort() as spent[what]:
            return action()

    manager.cull(manager.germinate("1.1.add", "low_rank"))  # imports and caches of torch
    seed = does("germinate", lambda: manager.germinate("1.2.relu", "mlp", name="a"))
    does("plan", lambda: manager.plan("1.2.tanh", "mlp", name="b"))
    does("blend", lambda: manager.blend(seed, steps=1))
    does("step", manager.step)
    does("germinate another", lambda: manager.germinate("1.2.down", "low_rank", name="b"))
    does("cull", lambda: manager.cull("b"))
    does("fossilize", lambda: manager.fossilize(seed))
    host.to(torch.float64)
    does("germinate after a conversion", lambda: manager.germinate("1.1.relu", "mlp", name="c"))
    does("cull all", manager.cull_all)
    return spent


def test_an_edit_costs_the_same_in_a_large_host():
    small, large = modular(2, 5), modular(12, 12)
    assert nodes_of(large) > 13 * nodes_of(small)
    ours, theirs = a_life(small), a_life(large)
    for what, spent in theirs.items():
        more = (spent.by_function - ours[what].by_function).most_common(3)
        assert spent.total <= 1.02 * ours[what].total, f"{what}: {ours[what].total} -> {spent.total}: {more}"


@pytest.mark.parametrize("nested", [False, True])
def test_tracing_is_linear_in_the_number_of_layers(nested):
    def cost_of(layers):
        each = (TenNodes() if nested else nn.Linear(4, 4) for _ in range(layers))
        model, x = nn.Sequential(*each), torch.randn(2, 4)
        with effort() as spent:
            host = fxgraft.trace(model, (x,))
        assert len(host.regions) == (layers + 1 if nested else 1)
        return spent.total

    cost_of(5)
    first, second, third = map(cost_of, (4, 8, 12) if nested else (10, 40, 70))
    assert third - second <= 1.02 * (second - first)


def test_a_thousand_layers_are_traced_and_grown():
    host = fxgraft.trace(nn.Sequential(*(nn.Linear(4, 4) for _ in range(1000))), (torch.randn(2, 4),))
    assert len(host.slots) == 1000
    fxgraft.SeedManager(host).germinate("999", "low_rank")
    assert "low_rank_at_999" in host.grafts()


def cached_sources() -> tuple[int, int]:
    """Entries in the source caches: of torch.fx, and of ours."""
    gc.collect()
    ours = sum(name.startswith("<fxgraft") for name in linecache.cache)
    fx = len(torch.fx.graph_module._loader.eval_cache)
    return fx + sum("eval_with_key" in name for name in linecache.cache), ours


def test_hundreds_of_edits_leave_nothing_in_the_source_caches():
    host = fxgraft.trace(nn.Sequential(TenNodes(), TenNodes()), (torch.randn(2, 4),))
    manager = fxgraft.SeedManager(host)
    fx_before, ours_before = cached_sources()
    for i in range(300):  # each of another code: the radius is a constant of it
        law = fxgraft.Objective("trust", 0.01 + i * 1e-4)
        manager.cull(manager.germinate("0.relu", "low_rank", objective=law))
    fx_after, ours_after = cached_sources()
    assert fx_after == fx_before
    assert ours_after - ours_before <= MAX_KNOWN
    del host, manager, law
    assert cached_sources()[1] <= ours_before
