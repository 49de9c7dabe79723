"""``manager.plan_together()``: what several changes would be together, and nothing is changed."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn

import fxgraft
from fxgraft import Stage
from fxgraft.errors import ChannelError, SlotError, StageError
from fxgraft.host import engine
from fxgraft.telemetry import Memory
from fxgraft.util.flops import count_flops
from tests.harness import assert_same_bits, snapshot, traced_once
from tests.manager.test_together import OPERATIONS, Run, carry_out

CODES = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(0))


class ResidualMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.blocks = nn.ModuleList([ResidualMlp(), ResidualMlp()])

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        x = self.embed(codes)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@traced_once
def traced() -> fxgraft.Host:
    return fxgraft.trace(Embedded(), (CODES,))


class Grown:
    """A run of `Embedded`, with a linear fossil if asked for."""

    def __init__(self, fossil: bool = False, compiles: bool = False):
        self.host, self.memory = traced(), Memory()
        if compiles:
            self.host.compile(backend="aot_eager")
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.manager = fxgraft.SeedManager(self.host, self.optimizer, sinks=[self.memory], helper="off")
        self.train()
        if fossil:
            self.manager.germinate("blocks.0.up", nn.Linear(12, 12), name="linear", isolated=False)
            self.manager.blend("linear", steps=0)
            self.manager.fossilize("linear")
            self.train()

    def train(self) -> None:
        self.optimizer.zero_grad()
        self.host(CODES).square().mean().backward()
        self.optimizer.step()
        self.manager.step()

    def seen(self) -> dict[str, Any]:
        manager = self.manager
        return {
            **snapshot(self.host, CODES, [self.optimizer]),
            "random": torch.get_rng_state(),
            "seeds": [(n, s.stage, s.alphas) for n, s in manager.seeds.items()],
            "names": dict(manager._memory.names.next_numbers),
            "widenings": self.host.widenings,
            "structure": self.host.structure.key,
            "groups": [len(group["params"]) for group in self.optimizer.param_groups],
            "objects": [id(p) for p in self.host.parameters()],
            "events": len(self.memory.events),
        }


def grow(manager: fxgraft.SeedManager) -> None:
    manager.deepen("blocks", 2, at="end", name="new")
    manager.widen("blocks.0.up", 4)
    manager.germinate("blocks.1.up", "mlp", hidden=3, name="branch")


@pytest.mark.parametrize("compiles", [False, True])
def test_it_tells_what_then_happens(compiles: bool) -> None:
    run = Grown(compiles=compiles)
    before, graphs = run.seen(), compiles and fxgraft.compile_report(run.host).graphs
    with run.manager.plan_together() as plan:
        assert not plan.done
        grow(run.manager)
        assert_same_bits(run.seen(), {**before, "names": run.seen()["names"], "seeds": run.seen()["seeds"]})
    assert_same_bits(run.seen(), before)
    assert (compiles and fxgraft.compile_report(run.host).graphs) == graphs

    sizes = {n: tuple(p.shape) for n, p in run.host.named_parameters()}
    flops = _flops(run.host)
    with run.manager.together():
        grow(run.manager)
    now = {n: tuple(p.shape) for n, p in run.host.named_parameters()}
    assert plan.done
    expected = {n: (sizes.get(n), now.get(n)) for n in (*sizes, *now) if sizes.get(n) != now.get(n)}
    assert dict(plan.tensors) == expected
    assert plan.parameter_count[1] == sum(p.numel() for p in run.host.parameters())
    assert plan.parameter_bytes[1] == sum(p.nbytes for p in run.host.parameters())
    assert plan.forward_flops == (flops, _flops(run.host))
    assert dict(plan.seeds) == {n: s.stage.name for n, s in run.manager.seeds.items()}
    assert plan.seeds["new_0"] == "FOSSILIZED"
    assert {n for n in now if n not in sizes} == plan.groups.keys()
    assert {where.group for where in plan.groups.values()} == {0}
    text = str(plan)
    for part in ("new_1", "FOSSILIZED", "blocks.0.up.weight", "(12, 8)", "(16, 8)", "AdamW", "branch"):
        assert part in text
    assert json.loads(json.dumps(plan.to_dict()))["parameter_count"] == list(plan.parameter_count)


def _flops(host: fxgraft.Host) -> int:
    root, *_ = engine.trees(host)
    with host.compiled.stopped() if host.compiled else nullcontext():
        return count_flops(lambda: root(CODES))


def test_a_fusion_says_into_what() -> None:
    run = Grown(fossil=True)
    before = run.seen()
    with run.manager.plan_together() as plan:
        run.manager.fuse()
    assert_same_bits(run.seen(), before)
    assert plan.changes == ("the fusion of linear into blocks.0.up",)
    assert plan.tensors["_seeds.linear.module.weight"] == ((12, 12), None)
    assert not plan.seeds
    assert run.manager.fuse() == {"linear": "blocks.0.up"}


def test_what_cannot_be_is_an_error_and_nothing_has_changed() -> None:
    run = Grown()
    before = run.seen()
    with pytest.raises(ChannelError, match="the seed 'branch' works on it"), run.manager.plan_together():  # noqa: PT012
        run.manager.germinate("blocks.1.up", "mlp", hidden=3, name="branch")
        run.manager.widen("blocks.1.up", 4)
    assert_same_bits(run.seen(), before)
    with pytest.raises(SlotError, match="nowhere"), run.manager.plan_together() as plan:  # noqa: PT012
        run.manager.deepen("blocks")
        run.manager.germinate("nowhere", "mlp")
    assert_same_bits(run.seen(), before)
    assert not plan.done
    assert "has raised" in str(plan)
    run.train()


def test_seeds_and_records_say_that_they_were_planned_only() -> None:
    run = Grown()
    with run.manager.plan_together():
        seeds = run.manager.deepen("blocks", 2)
        widening = run.manager.widen("blocks.0.up", 4)
    assert {seed.stage for seed in seeds} == {Stage.CULLED}
    assert widening.failed == "it was only planned"
    assert not run.manager.seeds


def test_blocks_are_no_part_of_each_other() -> None:
    run = Grown()
    with pytest.raises(StageError, match="inside manager"), run.manager.together():  # noqa: PT012
        run.manager.germinate("blocks.1.up", "mlp", name="branch")
        with run.manager.plan_together():
            run.manager.germinate("blocks.0.up", "mlp")
    made_before = run.manager.plan_together()
    with run.manager.together():
        run.manager.germinate("blocks.1.up", "mlp", name="outer")
        with pytest.raises(StageError, match="inside manager"), made_before:
            run.manager.germinate("blocks.0.up", "mlp")
    assert {name: seed.stage for name, seed in run.manager.seeds.items()} == {"outer": Stage.TRAINING}
    run.manager.cull("outer")
    with run.manager.plan_together() as plan, run.manager.together():
        run.manager.germinate("blocks.1.up", "mlp", name="branch")
    assert plan.seeds == {"branch": "TRAINING"}
    assert not run.manager.seeds


def test_an_empty_block_says_nothing() -> None:
    run = Grown()
    with run.manager.plan_together() as plan:
        pass
    assert plan.done
    assert "nothing" in str(plan)
    assert plan.parameter_count[0] == plan.parameter_count[1] > 0


def test_a_seed_that_comes_and_goes_is_no_change() -> None:
    run = Grown()
    with run.manager.plan_together() as plan:
        run.manager.germinate("blocks.1.up", "mlp", name="short")
        run.manager.cull("short")
    assert plan.changes == ()
    assert "nothing" in str(plan)


def test_without_an_optimizer_nothing_goes_to_a_group() -> None:
    host = traced()
    manager = fxgraft.SeedManager(host)
    with manager.plan_together() as plan:
        grow(manager)
    assert not plan.groups
    assert "they go to" not in str(plan)


@given(first=OPERATIONS, then=OPERATIONS)
def test_any_calls_are_planned_without_a_trace(
    first: list[tuple[str, int, int]], then: list[tuple[str, int, int]]
) -> None:
    run = Run()
    carry_out(run, first, "a")
    run.train()
    before = run.seen()
    with run.manager.plan_together() as plan:
        carry_out(run, then, "b")
    assert_same_bits(run.seen(), before)
    with run.manager.together():
        carry_out(run, then, "b")
    assert dict(plan.seeds) == {n: s.stage.name for n, s in run.manager.seeds.items()}
    run.train()


def test_where_torch_cannot_count_the_plan_says_so_and_the_act_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cannot(*_: object) -> int:
        raise RuntimeError("no formula")

    monkeypatch.setattr("fxgraft.lifecycle.act_plan.count_flops", cannot)
    run = Grown()
    with run.manager.plan_together() as plan:
        grow(run.manager)
    assert plan.forward_flops is None
    assert "FLOPs" not in str(plan)
    assert plan.parameter_count[1] > plan.parameter_count[0]
