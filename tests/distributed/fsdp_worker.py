"""Every promise about hosts that fully_shard has sharded, on every rank. Started by test_fsdp.py."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

import fxgraft
from fxgraft import Stage
from fxgraft.commands import SEED
from fxgraft.errors import BlueprintError, DistributedError, SlotError, TraceError
from tests.distributed.fsdp_run import Run, assert_close, assert_same, gathered, model, shard
from tests.distributed.ranks import RANK, SIZE, group, say

SLOT = "1.relu"
FOLDER = Path(sys.argv[1])


def sgd(parameters):  # type: ignore[no-untyped-def]
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


def a_host_without_seeds_is_that_of_fully_shard_alone() -> None:
    run, plain = Run(), model()
    for child in (plain[1], plain[2]):
        fully_shard(child)
    fully_shard(plain)
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-2)
    for _ in range(3):
        x, y = run.batch()
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        optimizer.step()
        run.train()
    theirs = {name: gathered(tensor) for name, tensor in plain.state_dict().items()}
    assert_same({n: t for n, t in run.weights().items() if " of " not in n}, theirs)


class Scaled(nn.Module):
    """With a parameter of the root's own, which is then the host's own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.linear = nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x * self.scale)


def a_state_dict_after_a_forward_pass_is_sharded() -> None:
    x = torch.zeros(4, 6)
    host = fully_shard(fxgraft.trace(Scaled(), (x,)))
    host(x)
    assert not isinstance(host.scale, DTensor), "gathered until the backward pass"
    assert all(isinstance(tensor, DTensor) for tensor in host.state_dict().values())


def large_parameters_are_sharded_and_small_ones_replicated_with_equal_values() -> None:
    run = Run()
    torch.manual_seed(1000 + RANK)  # another for each rank: what it draws must not matter
    handed_in = nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 24))
    seed = run.manager.germinate(SLOT, handed_in, name="a")
    run.manager.germinate("2.relu", "mlp", name="b", hidden=8)
    parts = dict(seed.module.named_parameters())
    assert all(isinstance(p, DTensor) for p in parts.values())
    assert [p.placements for p in parts.values()] == [
        (Shard(0),) if p.numel() >= 64 else (Replicate(),) for p in parts.values()
    ]
    assert {p.placements[0].is_shard() for p in parts.values()} == {True, False}
    run.train(2)
    found = [torch.empty_like(flat) for flat in [_flat(run)] * dist.get_world_size()]
    dist.all_gather(found, _flat(run))
    assert all(torch.equal(found[0], other) for other in found)


def _flat(run: Run) -> torch.Tensor:
    return torch.cat([t.double().reshape(-1) for t in run.weights().values()])


def the_whole_life_is_that_of_one_process() -> None:
    run, single = (Run(sharded, torch.float64, optimizer=sgd) for sharded in (True, False))
    for each in (run, single):
        each.train(2)
        each.manager.germinate(SLOT, "mlp", name="a", hidden=8)
        each.manager.blend("a", steps=3)
        each.train(4)
        assert each.manager.seeds["a"].stage is Stage.HOLDING
        each.manager.germinate("2.relu", "low_rank", name="b", rank=2)
        each.train(2)
        each.manager.fossilize("a")
        each.manager.cull("b")
        each.train(2)
    assert_close(run.weights(), single.weights())


def gradients_accumulate() -> None:
    run, single = (Run(sharded, torch.float64, optimizer=sgd) for sharded in (True, False))
    for each in (run, single):
        each.manager.germinate(SLOT, "mlp", name="a", hidden=8)
        each.manager.blend("a", steps=1)
        each.train(2)
        each.optimizer.zero_grad()
        for last in (False, True):
            if each is run:
                run.host.set_requires_gradient_sync(last)
            each.backward()
        each.optimizer.step()
        each.manager.step()
    assert_close(run.weights(), single.weights())


def the_host_does_not_feel_an_isolated_seed() -> None:
    run, without = Run(), Run()
    seed = run.manager.germinate(SLOT, "mlp", name="a", hidden=8)
    before = {n: gathered(p) for n, p in seed.module.named_parameters()}
    for _ in range(4):
        run.train()
        without.train()
        assert_same(run.host_gradients(), without.host_gradients())
    assert any(not torch.equal(before[n], gathered(p)) for n, p in seed.module.named_parameters())
    kept = {n: t for n, t in run.weights().items() if "_seeds." not in n}
    assert_same(kept, without.weights())


def a_culled_seed_leaves_nothing() -> None:
    run, without = Run(), Run()
    run.train(2)
    without.train(2)
    names = [name for name, _ in run.host.named_modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in run.host.modules()]
    states = sum(len(m._get_fsdp_state()._state_ctx.all_states) for m in (run.host,))
    seed = run.manager.germinate(SLOT, "mlp", name="a", hidden=8)
    run.train(2)
    without.train(2)
    gone = weakref.ref(seed.module)
    run.manager.cull(seed)
    del seed
    gc.collect()
    assert gone() is None
    assert names == [name for name, _ in run.host.named_modules()]
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in run.host.modules()]
    assert states == sum(len(m._get_fsdp_state()._state_ctx.all_states) for m in (run.host,))
    run.train(1)
    without.train(1)
    assert_same(run.weights(), without.weights())


def a_nan_on_one_rank_drops_the_gradients_of_all() -> None:
    run = Run()
    seed = run.manager.germinate(SLOT, "mlp", name="a", hidden=8)
    run.train(1)
    parameter = next(p for p in seed.module.parameters() if p.placements[0].is_shard())
    if RANK == 0:  # in its part of the reduced gradient, and nowhere else
        parameter.register_hook(lambda grad: grad * float("nan"))
    run.optimizer.zero_grad()
    run.backward()
    assert all(p.grad is None for p in seed.module.parameters())
    assert all(bool(g.isfinite().all()) for g in run.host_gradients().values())


def a_paused_seed_stands_still_and_metrics_can_be_read() -> None:
    run = Run()
    seed = run.manager.germinate(SLOT, "mlp", name="a", hidden=8)
    run.train(1)
    norm = run.manager.metrics()["fxgraft/seed/gradient_norm"]["a"]
    whole = torch.cat([gathered(p.grad).reshape(-1) for p in seed.module.parameters() if p.grad is not None])
    assert norm == pytest.approx(float(whole.norm()))
    run.manager.pause("a")
    before = {n: gathered(p) for n, p in seed.module.named_parameters()}
    run.train(2)
    assert_same(before, {n: gathered(p) for n, p in seed.module.named_parameters()})
    x, y = run.batch()
    run.manager.measure("a", lambda: nn.functional.cross_entropy(run.host(x), y))


def commands_and_the_background_apply_together() -> None:
    run = Run()
    run.manager.germinate(SLOT, "mlp", name="a", wait=False, hidden=8)
    if RANK == 0:
        run.manager.handle(SEED(slot="2.relu", blueprint="low_rank", name="b", config={"rank": 2}))
    for _ in range(200):
        run.train()
        if all(n in run.manager.seeds and run.manager.seeds[n].is_live for n in "ab"):
            break
    assert {n: s.stage for n, s in run.manager.seeds.items()} == dict.fromkeys("ab", Stage.TRAINING)


def a_failed_germination_changes_nothing() -> None:
    run, without = Run(), Run()
    module = nn.LSTM(24, 24)
    weight = module.weight_ih_l0
    shared = next(iter(run.host.parameters()))

    class Borrows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(shared.to_local().detach())  # the same memory

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0]

    with pytest.raises(BlueprintError, match="keeps them in a second place"):
        run.manager.germinate(SLOT, First(), name="a")
    assert module.weight_ih_l0 is weight
    late = nn.Linear(24, 24)
    parameters, registry = list(late.parameters()), run.manager.registry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "join", _raise)  # after the seed was distributed
        with pytest.raises(RuntimeError, match="too late"):
            run.manager.germinate(SLOT, late, name="a")
    assert [a is b for a, b in zip(late.parameters(), parameters, strict=True)] == [True, True]
    assert not late._forward_hooks
    assert not late._forward_pre_hooks
    with pytest.raises(BlueprintError, match="belongs to the host"):
        run.manager.germinate(SLOT, Borrows(), name="a")
    with pytest.raises(DistributedError, match="objective 'trust'"):
        run.manager.germinate(SLOT, "mlp", name="a", objective="shadow")
    with pytest.raises(DistributedError, match=r"shadow\(\)"):
        run.manager.shadow()
    with pytest.raises(SlotError, match="'1' has hooks"):  # without its own call nothing gathers it
        run.manager.germinate("2.relu", "mlp", source="1.relu", name="a", hidden=8)
    run.train(2)
    without.train(2)
    assert_same(run.weights(), without.weights())


def _raise(*_: object, **__: object) -> None:
    raise RuntimeError("too late")


def growing_the_own_layers_is_refused() -> None:
    """With what to do, and nothing changes."""
    run = Run()
    run.manager.germinate("1.narrow", _wing(), source="1.norm", name="wing", isolated=False)
    run.manager.blend("wing", steps=0)
    run.train(1)
    run.manager.fossilize("wing")
    before = run.weights()
    for change in (
        lambda: run.manager.widen("1.wide", 4),
        lambda: run.manager.widen("1.wide", 4, wait=False),
        lambda: run.manager.fuse("wing"),
        lambda: _in_one_act(run),
    ):
        with pytest.raises(DistributedError, match=r"load .* one process|one process.*load"):
            change()
        assert_same(run.weights(), before)
        assert list(run.manager.seeds) == ["wing"]
    run.train(1)


def _wing() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 12))


def _in_one_act(run: Run) -> None:
    with run.manager.together():
        run.manager.germinate(SLOT, "mlp", hidden=8, name="other")
        run.manager.widen("1.wide", 4)


def other_orders_and_options_are_refused() -> None:
    example = (torch.zeros(4, 6),)
    with pytest.raises(TraceError, match="Trace it first"):
        fxgraft.trace(fully_shard(model()), example)
    host = fxgraft.trace(model(), example)
    fully_shard(host.get_submodule("1"))
    with pytest.raises(DistributedError, match="the host itself is not"):
        fxgraft.SeedManager(host)
    host = fxgraft.trace(model(), example)
    early = torch.optim.AdamW(host.parameters())
    with pytest.raises(DistributedError, match="none of the host's parameters"):
        fxgraft.SeedManager(shard(host), early)
    with pytest.raises(DistributedError, match="strict=True"):
        Run(strict=True)
    host = fully_shard(fxgraft.trace(model(), example), mp_policy=MixedPrecisionPolicy(torch.bfloat16))
    with pytest.raises(DistributedError, match="without a param_dtype"):
        fxgraft.SeedManager(host)
    host = fully_shard(fxgraft.trace(model(), example), offload_policy=CPUOffloadPolicy(pin_memory=False))
    with pytest.raises(DistributedError, match="without offloading"):
        fxgraft.SeedManager(host)
    mesh = init_device_mesh("cpu", (1, SIZE), mesh_dim_names=("replicas", "shards"))
    host = fully_shard(fxgraft.trace(model(), example), mesh=mesh)
    with pytest.raises(DistributedError, match="one mesh of one dimension"):
        fxgraft.SeedManager(host)
    host = fxgraft.trace(model(), example)
    host.compile(backend="eager")
    with pytest.raises(DistributedError, match="compiled and sharded"):
        fxgraft.SeedManager(shard(host))
    run = Run()
    run.host.compile(backend="eager")
    with pytest.raises(DistributedError, match="compiled and sharded"):
        run.manager.germinate(SLOT, "mlp", hidden=8)


def main() -> None:
    for case in (
        a_host_without_seeds_is_that_of_fully_shard_alone,
        a_state_dict_after_a_forward_pass_is_sharded,
        large_parameters_are_sharded_and_small_ones_replicated_with_equal_values,
        the_whole_life_is_that_of_one_process,
        gradients_accumulate,
        the_host_does_not_feel_an_isolated_seed,
        a_culled_seed_leaves_nothing,
        a_nan_on_one_rank_drops_the_gradients_of_all,
        a_paused_seed_stands_still_and_metrics_can_be_read,
        commands_and_the_background_apply_together,
        a_failed_germination_changes_nothing,
        growing_the_own_layers_is_refused,
        other_orders_and_options_are_refused,
    ):
        case()
        say(case.__name__)


if __name__ == "__main__":
    with group():
        main()
