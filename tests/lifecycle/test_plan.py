"""`manager.plan`: what a germination would change is what it changes, and planning changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import blueprints
from fxgraft.errors import BlueprintError, SlotError
from tests.harness import assert_same_bits, snapshot, traced_once


class ConvAndLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        h = torch.relu(self.conv(x)).mean((2, 3))
        return self.fc2(torch.relu(self.fc1(h)))


@traced_once
def traced():
    return fxgraft.trace(ConvAndLayers(), (torch.randn(2, 3, 6, 6),))


@pytest.fixture
def setting():
    x = torch.randn(2, 3, 6, 6)
    host = traced()
    optimizer = torch.optim.AdamW(host.parameters())
    return host, x, optimizer, fxgraft.SeedManager(host, optimizer)


def test_planning_changes_nothing(setting):
    host, x, optimizer, manager = setting
    host(x).sum().backward()
    manager.germinate("fc2", "mlp", name="there")
    module = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5))
    before = snapshot(host, x, [optimizer])
    kept = [(p, p.data_ptr(), p.device.type) for p in module.parameters()]
    for blueprint in ("mlp", module, lambda slot: nn.Linear(16, 16)):
        manager.plan("fc1", blueprint)
    assert_same_bits(snapshot(host, x, [optimizer]), before)
    assert list(manager.seeds) == ["there"]
    assert [(p, p.data_ptr(), p.device.type) for p in module.parameters()] == kept
    assert type(module[1]) is nn.Dropout


def refused(action):
    """With what words `BlueprintError` was raised, or None."""
    try:
        action()
    except BlueprintError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", blueprints.names())
@pytest.mark.parametrize("mode", ["residual", "convex"])
@pytest.mark.parametrize("slot", ["conv", "fc1"])
def test_what_is_planned_is_what_is_done(setting, name, mode, slot):
    host, _, _, manager = setting
    refusal = refused(lambda: manager.plan(slot, name, mode=mode, name="a"))
    if refusal is not None:
        assert refused(lambda: manager.germinate(slot, name, mode=mode, name="a")) == refusal
        return
    plan = manager.plan(slot, name, mode=mode, name="a")
    before = {n: region.code for n, region in host.regions.items()}
    seed = manager.germinate(slot, name, mode=mode, name="a")
    trained = {n: tuple(p.shape) for n, p in seed.module.named_parameters() if p.requires_grad}
    assert plan.parameters == trained
    assert plan.parameter_count == sum(p.numel() for p in seed.module.parameters())
    assert plan.parameter_bytes == 4 * plan.parameter_count
    assert {f"_seeds.a.module.{n}" for n in plan.parameters} <= host.state_dict().keys()
    assert (plan.shape, plan.dtype) == (tuple(host.slots[slot].shape), torch.float32)
    changed = {n for n, region in host.regions.items() if region.code != before[n]}
    assert plan.diffs.keys() == changed == {""}
    added = [line[1:] for line in plan.diffs[""].splitlines()[2:] if line.startswith("+")]
    code = host.regions[""].code.splitlines()
    assert added
    assert all(line in code for line in added)
    assert all(line in str(plan) for line in plan.diffs[""].splitlines())


def test_flops_are_those_of_the_seed(setting):
    _, _, _, manager = setting
    plan = manager.plan("fc1", lambda slot: nn.Linear(16, 16))
    one = 2 * 2 * 16 * 16  # a product of (2, 16) and (16, 16), two for each multiply-add
    assert (plan.forward_flops, plan.backward_flops) == (one, one)  # isolated: no gradient of its input
    attached = manager.plan("fc1", lambda slot: nn.Linear(16, 16), isolated=False)
    assert (attached.forward_flops, attached.backward_flops) == (one, 2 * one)
    assert manager.plan("fc1", "scale_shift").forward_flops == 0


def test_a_branch_is_planned_with_its_source(setting):
    _, _, _, manager = setting
    plan = manager.plan("fc2", lambda slot: nn.Linear(16, 4), source="fc1", name="around")
    assert (plan.source, plan.reads, plan.shape) == ("fc1", (2, 16), (2, 4))
    assert "as seed 'around' at slot 'fc2' (residual, trust, isolated), reading 'fc1' (2, 16)" in str(plan)


def test_a_plan_is_data(setting):
    _, _, _, manager = setting
    plan = manager.plan("fc1", "low_rank", rank=2)
    told = json.loads(json.dumps(plan.to_dict()))
    assert (told["slot"], told["dtype"], told["parameter_count"]) == ("fc1", "float32", 64)
    with pytest.raises(AttributeError):
        plan.slot = "fc2"


def test_what_cannot_be_done_is_refused_as_in_a_germination(setting):
    _, _, _, manager = setting
    with pytest.raises(SlotError, match="did you mean"):
        manager.plan("fc3", "mlp")
    with pytest.raises(BlueprintError, match="no blueprint is named"):
        manager.plan("fc1", "mpl")
    with pytest.raises(BlueprintError, match="expected a module that takes"):
        manager.plan("fc1", nn.Linear(5, 5))
    with pytest.raises(ValueError, match="mode"):
        manager.plan("fc1", "mlp", mode="other")


def test_a_factory_that_computes_from_data_is_planned_where_there_is_data(setting):
    host, _, _, manager = setting

    def from_weights(slot):
        _, _, v = torch.linalg.svd(host.fc1.weight.detach() @ host.fc1.weight.detach().T)
        made = nn.Linear(16, 16)
        made.weight.data = v.clone()
        return made

    assert manager.plan("fc1", from_weights).parameters == {"weight": (16, 16), "bias": (16,)}
