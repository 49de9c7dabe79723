"""The FLOPs of blocks and of channels are known before they are tried: what the host has more with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import fxgraft
from fxgraft import SeedManager
from fxgraft.explore import Exploration, Row
from fxgraft.util.flops import count_flops
from tests.explore import runs
from tests.explore.runs import Run
from tests.explore.test_exploration import PlacedStack
from tests.explore.test_price import Stack
from tests.explore.test_widths import HOSTS, SMALL
from tests.harness import assert_same_bits, frozen

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Attending(nn.Module):
    """A block with attention, dropout and batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.drop = nn.Linear(4, 12), nn.Linear(4, 4), nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.drop(self.out(F.scaled_dot_product_attention(q, k, v)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.blocks = nn.Linear(1, 4), nn.ModuleList([Attending(), Attending()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x[..., None])
        for block in self.blocks:
            x = block(x)
        return x


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=8, **SMALL))


IDS = torch.arange(12).reshape(2, 6)
STACKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear layers": (Stack, X),
    "attention": (Attention, X),
    "blocks that read more than a value": (lambda: PlacedStack(True), X),
    "gpt2": (gpt2, IDS),
}


def loss_of(host: fxgraft.Host, x: Tensor) -> Tensor:
    out = host(x)
    return getattr(out, "logits", out).square().mean()  # type: ignore[no-any-return]


def started(make: Callable[[], nn.Module], x: Tensor) -> SeedManager:
    torch.manual_seed(0)
    host = fxgraft.trace(make(), (x,))
    return SeedManager(host, torch.optim.SGD(host.parameters(), 0.01), check_every=0)


def explored(manager: SeedManager, x: Tensor, steps: int = 2, **options: Any) -> Exploration:
    host = manager.host
    (optimizer,) = manager.optimizers
    found = manager.explore(evaluate=lambda: loss_of(host.eval(), x), steps=steps, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(host.train(), x).backward()
        optimizer.step()
        manager.step()
    assert found.done
    return found


@torch.no_grad()
def flops_of(host: fxgraft.Host, x: Tensor) -> int:
    host.eval()
    return count_flops(lambda: host(x))


def layers(exploration: Exploration, kind: str) -> list[Row]:
    return [row for row in exploration.table if row[kind] and row.status == "measured"]


@pytest.mark.parametrize("name", STACKS)
def test_those_of_a_block_are_what_the_host_has_more_with_it(name: str) -> None:
    make, x = STACKS[name]
    manager = started(make, x)
    before = flops_of(manager.host, x)
    rows = layers(explored(manager, x, cap={"candidates": 200}), "deepens")
    assert len(rows) == sum(len(stack) for stack in manager.host.stacks.values())
    for row in rows:
        stack, at = row.deepens or ("", 0)
        grown = started(make, x)
        grown.deepen(stack, at=[at])
        assert row.flops == flops_of(grown.host, x) - before > 0, row
        assert row.step_cost is not None, row


@pytest.mark.parametrize("name", [name for name, (_, _, tried, _) in HOSTS.items() if tried])
def test_those_of_channels_are_what_the_host_has_more_with_them(name: str) -> None:
    make, x, tried, _ = HOSTS[name]
    manager = started(make, x)
    before = flops_of(manager.host, x)
    rows = layers(explored(manager, x), "widens")
    assert {row.widens[0] for row in rows if row.widens} == tried
    for row in rows:
        grown = started(make, x)
        grown.handle(row.command)
        assert row.flops == flops_of(grown.host, x) - before > 0, row


def test_what_has_grown_in_a_block_is_not_in_a_copy_of_it() -> None:
    manager = started(Stack, X)
    plain = {row.deepens: row.flops for row in layers(explored(manager, X), "deepens")}
    manager.germinate("blocks.0.up", "mlp", isolated=False, name="inside")
    manager.blend("inside", steps=0)
    manager.step()
    manager.fossilize("inside")
    (inserted,) = manager.deepen("blocks", 1, at=[0])
    rows = {row.deepens: row.flops for row in layers(explored(manager, X, cap={"candidates": 99}), "deepens")}
    assert rows == {("blocks", 0): plain["blocks", 0], ("blocks", 1): plain["blocks", 0]}, inserted


def test_a_block_is_ranked_by_them() -> None:
    manager = started(Stack, X)
    exploration = explored(manager, X, score="per_flop")
    (block,) = layers(exploration, "deepens")
    assert block.score == pytest.approx(block.contribution / block.flops)


def test_a_cap_counts_them() -> None:
    manager = started(Stack, X)
    (block,) = layers(explored(manager, X, score="per_flop"), "deepens")
    found = explored(manager, X, cap={"flops": (block.flops or 0) - 1})
    (left,) = [row for row in found.table if row.deepens]
    assert (left.status, left.flops) == ("left out", block.flops)
    assert left.reason == f"the cap of {(block.flops or 0) - 1:,} FLOPs for all candidates together"


def test_a_budget_of_them_has_no_room_for_a_block_that_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "NormNet", Stack)
    run = Run()
    growth = run.manager.autogrow(
        run.evaluate, "auto", {"flops": 1.2}, when=[0.1], total_steps=40, steps=2, blend=1, hold=1
    )
    run.train(6)
    assert growth.exploration is not None
    (block,) = [row for row in growth.exploration.table if row.deepens]
    room = int(1.2 * (growth._memory.flops or 0)) - (growth._memory.flops or 0)
    assert block.reason == f"it has {block.flops} FLOPs; one may have {room} at most"
    assert growth.cost["complete"]


def test_where_they_are_not_known_nothing_else_is_different() -> None:
    known = started(Stack, X)
    copied = copy.deepcopy(known.host)  # does not know the example call
    manager = SeedManager(copied, torch.optim.SGD(copied.parameters(), 0.01), check_every=0)
    (block,) = layers(explored(manager, X), "deepens")
    assert (block.flops, block.step_cost) == (None, None)
    assert block.parameters == 39


def test_to_count_leaves_no_trace() -> None:
    found = []
    for count in (False, True):
        manager = started(Attention, X)
        host = manager.host.train()
        torch.manual_seed(3)
        loss_of(host, X).backward()
        if count:
            exploration = manager.explore(evaluate=lambda: 1.0, steps=1)
            assert [row.flops for row in exploration.table if row.deepens] != [None, None]
            exploration.cancel()
        found.append([frozen(host.state_dict()), [p.grad for p in host.parameters()], torch.get_rng_state()])
        assert all(module.training for module in host.modules())
        assert not any(module._forward_hooks for module in host.modules())
    assert_same_bits(found[0], found[1], "the host's")
