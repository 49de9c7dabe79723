"""What a reader who wrote none of this tried: parameters with two owners, gradients that are None."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.errors import BlueprintError

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def small() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def held(*optimizers: torch.optim.Optimizer) -> list[list[nn.Parameter]]:
    return [list(group["params"]) for optimizer in optimizers for group in optimizer.param_groups]


def test_a_fossil_is_the_hosts_and_no_new_seed():
    host = fxgraft.trace(small(), (X,))
    optimizer = torch.optim.SGD(host.parameters(), 0.05, momentum=0.9)
    manager = fxgraft.SeedManager(host, optimizer)
    first = manager.germinate("1", "mlp")
    manager.blend(first, steps=0)
    fossil = first.module
    with pytest.raises(BlueprintError, match="belongs to seed 'mlp_at_1'"):
        manager.germinate("0", fossil)
    manager.fossilize(first)
    before = held(optimizer)
    with pytest.raises(BlueprintError, match="belongs to the host, whose training it would change"):
        manager.germinate("0", fossil)
    with pytest.raises(BlueprintError, match="belongs to the host"):
        manager.germinate("0", nn.Sequential(fossil, nn.Linear(8, 8)))
    assert held(optimizer) == before
    manager.germinate("0", copy.deepcopy(fossil))


def test_what_an_optimizer_has_already_is_not_trained_twice():
    host = fxgraft.trace(small(), (X,))
    mine = nn.Linear(8, 8)
    optimizer = torch.optim.SGD([*host.parameters(), *mine.parameters()], 0.1)
    manager = fxgraft.SeedManager(host, optimizer)
    before = held(optimizer)
    with pytest.raises(BlueprintError, match="is in group 0 of SGD already, and would be updated twice"):
        manager.germinate("1", mine)
    assert (held(optimizer), manager.seeds) == (before, {})
    seed = manager.germinate("1", copy.deepcopy(mine))
    manager.cull(seed)
    assert held(optimizer) == before


def test_a_module_is_the_seed_of_one_host():
    hosts = [fxgraft.trace(small(), (X,)) for _ in range(2)]
    optimizer = torch.optim.SGD([p for host in hosts for p in host.parameters()], 0.1)
    first, second = (fxgraft.SeedManager(host, optimizer) for host in hosts)
    shared = nn.Linear(8, 8)
    first.germinate("1", shared)
    with pytest.raises(BlueprintError, match="is in group 0 of SGD already"):
        second.germinate("1", shared)


class _Stop(torch.autograd.Function):
    """An operation of a user that has no gradient for what it reads."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return None


class _Stopped(nn.Module):
    def forward(self, x):
        return _Stop.apply(x)


class _HalfTrained(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.stop = nn.Linear(6, 8), nn.Linear(8, 3), _Stopped()

    def forward(self, x):
        return self.b(self.stop(torch.relu(self.a(x))))


@pytest.mark.parametrize("objective", ["straight_through", "shadow"])
@pytest.mark.parametrize("stage", ["TRAINING", "BLENDING", "HOLDING", "FOSSILIZED"])
def test_a_gradient_that_is_none_stays_none(stage: str, objective: str):
    plain, host = _HalfTrained(), fxgraft.trace(_HalfTrained(), (X,))
    ours, theirs = (torch.optim.AdamW(n.parameters(), 0.1, weight_decay=0.5) for n in (host, plain))
    manager = fxgraft.SeedManager(host, ours, strict=True)
    seed = manager.germinate("relu", "mlp", objective=objective)
    if stage != "TRAINING":
        manager.blend(seed, steps=10 if stage == "BLENDING" else 0)
    if stage == "FOSSILIZED":
        manager.fossilize(seed)
    for network, optimizer in ((host, ours), (plain, theirs)):
        network(X).sum().backward()
        optimizer.step()
    assert host.get_parameter("a.weight").grad is None
    assert torch.equal(host.get_parameter("a.weight"), plain.a.weight), "weight decay alone would move it"
    manager.step()
    assert manager.monitor.violations == 0


class _FailsOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fails):
        ctx.fails = fails
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        if ctx.fails:
            raise RuntimeError("out of memory")
        return g, None


@pytest.mark.parametrize("fails", [False, True])
def test_a_backward_pass_that_failed_does_not_hide_the_overflow_of_the_next_one(fails: bool):
    host = fxgraft.trace(small(), (X,))
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    manager = fxgraft.SeedManager(host, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    seed = manager.germinate("1", "mlp")
    loss = host(_FailsOnce.apply(X.clone().requires_grad_(), fails)).sum()
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            scaler.scale(loss).backward()
    optimizer.zero_grad()
    seed.module.down.weight.register_hook(lambda g: g * float("inf"))
    before = host.get_parameter("0.weight").detach().clone()
    scaler.scale(host(X).sum()).backward()
    assert all(p.grad is None for p in seed.module.parameters())
    scaler.step(optimizer)
    assert not torch.equal(before, host.get_parameter("0.weight")), "the host makes its step"


def test_a_look_inside_of_another_backward_pass_does_not_replace_its_own():
    """Reentrant checkpointing runs a backward pass in a backward pass."""
    host = fxgraft.trace(small(), (X,))
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    manager = fxgraft.SeedManager(host, optimizer)
    seed = manager.germinate("1", "mlp")
    seed.module.up.weight.register_hook(lambda g: g * float("nan"))
    x = X.clone().requires_grad_()
    inner = torch.utils.checkpoint.checkpoint(host, x, use_reentrant=True)
    (host(inner @ torch.ones(3, 6)).sum() + inner.sum()).backward()
    assert all(p.grad is None for p in seed.module.parameters())
    assert all(p.grad.isfinite().all() for p in host.host_parameters())


def test_a_lazy_module_is_refused_by_name():
    host = fxgraft.trace(small(), (X,))
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    with pytest.raises(
        BlueprintError, match="expected weights that have a shape; weight gets it in the first"
    ):
        manager.germinate("1", lambda slot: nn.LazyLinear(8))
    assert not manager.seeds


@pytest.mark.parametrize(
    "convert", [lambda host: host.double(), lambda host: host.load_state_dict(host.state_dict())]
)
def test_parameters_that_torch_swaps_are_followed(convert, monkeypatch):
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    host = fxgraft.trace(small(), (X,))
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    manager = fxgraft.SeedManager(host, optimizer)
    seed = manager.germinate("1", "mlp")
    convert(host)
    assert len({p.dtype for p in host.parameters()}) == 1
    before = [p.detach().clone() for p in seed.module.parameters()]
    host(X.to(next(host.parameters()).dtype)).square().sum().backward()
    optimizer.step()
    manager.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, seed.module.parameters(), strict=True))
    manager.cull(seed)
    assert held(optimizer) == [list(host.parameters())]


def test_a_schedule_that_raises_moves_no_seed():
    broken = []

    def fails(progress: float) -> float:
        if broken:
            raise ZeroDivisionError("mine")
        return progress

    host = fxgraft.trace(small(), (X,))
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    first, second = manager.germinate("0", "mlp"), manager.germinate("1", "mlp")
    manager.blend(first, steps=10)
    manager.blend(second, steps=10, schedule=fails)
    manager.step()
    before = [(seed.alpha, seed.ramp_step, seed.steps) for seed in (first, second)]
    broken.append(True)
    with pytest.raises(ZeroDivisionError):
        manager.step()
    assert [(seed.alpha, seed.ramp_step, seed.steps) for seed in (first, second)] == before


@pytest.mark.parametrize(
    ("network", "x", "slot"),
    [
        (nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU()), torch.randn(2, 3, 10), "1"),
        (nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU()), torch.randn(2, 3, 10), "2"),
        (nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU()), torch.randn(2, 3, 5, 5, 5), "1"),
    ],
)
def test_an_alpha_for_each_channel_is_refused_where_the_last_axis_is_a_place(network, x, slot: str):
    host = fxgraft.trace(network, (x,))
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    size = host.slots[slot].shape[-1]
    with pytest.raises(BlueprintError, match=r'mode="channelwise" takes values .* comes from (Conv|Batch)'):
        manager.germinate(slot, lambda _: nn.Linear(size, size), mode="channelwise")
    assert not manager.seeds


def test_an_alpha_for_each_channel_of_tokens():
    network, x = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU()), torch.randn(2, 5, 6)
    host = fxgraft.trace(network, (x,))
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    assert len(manager.germinate("2", "mlp", mode="channelwise").alphas) == 8
