"""Every registered blueprint: nothing at birth, a gradient at once, and errors that say what it takes."""

from __future__ import annotations

import inspect
from itertools import product

import pytest
import torch
import torch.fx as fx
from torch import nn

import fxgraft
from fxgraft import blueprints
from fxgraft.bits import same_bits
from fxgraft.blueprints import registry
from fxgraft.errors import BlueprintError
from fxgraft.gradients import norm_of
from fxgraft_passes import Slot
from fxgraft_passes.graft import MODES
from fxgraft_passes.objectives import OBJECTIVES

SHAPES = [(4,), (3, 8), (3, 1), (2, 5, 8), (2, 8, 4, 4), (2, 3, 5, 7), (2, 1, 1, 1)]


def slot_of(shape):
    graph = fx.symbolic_trace(nn.Sequential(nn.ReLU())).graph
    (node,) = graph.find_nodes(op="call_module", target="0")
    return Slot("place", node, torch.Size(shape), torch.float32, torch.device("cpu"))


def takes(name, shape):
    try:
        blueprints.get(name).build(slot_of(shape))
    except BlueprintError:
        return False
    return True


NAMES = blueprints.names()
FITTING = [(name, shape) for name, shape in product(NAMES, SHAPES) if takes(name, shape)]
UNFIT = [(name, shape) for name, shape in product(NAMES, SHAPES) if (name, shape) not in FITTING]


class Model(nn.Module):
    """A slot ``mul`` whose value has any shape."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return (x * self.scale).tanh()


def grown(name, shape, mode="residual", objective="trust"):
    x = torch.randn(shape)
    host = fxgraft.trace(Model(), (x,))
    manager = fxgraft.SeedManager(host)
    seed = manager.germinate("mul", name, mode=mode, objective=objective)
    return host, manager, seed, x


def learnt(host, x):
    out = host(x)
    (out * torch.linspace(0.5, 1.5, out.numel()).view_as(out)).sum().backward()


def check_gradients(seed):
    gradients = [p.grad for p in seed.module.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert norm_of(seed.module.parameters()) > 0


def test_every_blueprint_takes_some_value():
    assert {name for name, _ in FITTING} == set(NAMES)
    assert {"conv_bottleneck", "mlp", "low_rank"} <= set(NAMES)


@pytest.mark.parametrize(("name", "shape"), FITTING)
def test_the_shape_of_the_slot_comes_out_and_a_branch_is_zero(name, shape):
    blueprint = blueprints.get(name)
    module, x = blueprint.build(slot_of(shape)), torch.randn(shape)
    out = module(x)
    assert out.shape == x.shape
    if blueprint.branch:
        assert not out.any()
        assert same_bits(x + out, x)


@pytest.mark.parametrize(("name", "shape"), FITTING)
@pytest.mark.parametrize("mode", MODES)
def test_at_birth_nothing_changes_at_any_alpha(name, shape, mode):
    host, manager, seed, x = grown(name, shape, mode)
    without = Model()(x)
    assert same_bits(host(x), without)
    if blueprints.get(name).branch:
        with manager.at_alpha(seed, 0.5):
            torch.testing.assert_close(host(x), without)


@pytest.mark.parametrize(("name", "shape"), FITTING)
@pytest.mark.parametrize(("mode", "objective"), list(product(MODES, OBJECTIVES)))
def test_a_gradient_at_birth(name, shape, mode, objective):
    host, manager, seed, x = grown(name, shape, mode, objective)
    if objective == "shadow":
        with manager.shadow():
            learnt(host, x)
    else:
        learnt(host, x)
    check_gradients(seed)


@pytest.mark.parametrize(("name", "shape"), FITTING)
@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_while_blending(name, shape, mode):
    host, manager, seed, x = grown(name, shape, mode)
    manager.blend(seed, steps=2, schedule="linear")
    manager.step()
    assert seed.alpha == pytest.approx(0.5)
    learnt(host, x)
    check_gradients(seed)


@pytest.mark.parametrize(("name", "shape"), UNFIT)
def test_a_value_that_it_cannot_take(name, shape):
    wanted = rf"{name} at slot 'place': expected .*; got "
    with pytest.raises(BlueprintError, match=wanted) as caught:
        blueprints.get(name).build(slot_of(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize(("name", "shape"), UNFIT)
def test_a_host_refuses_it_and_stays_as_it_was(name, shape):
    x = torch.randn(shape)
    host = fxgraft.trace(Model(), (x,))
    manager = fxgraft.SeedManager(host)
    with pytest.raises(BlueprintError, match=r"at slot 'mul': expected"):
        manager.germinate("mul", name)
    assert not manager.seeds
    assert list(host.state_dict()) == ["scale"]
    assert same_bits(host(x), Model()(x))


@pytest.mark.parametrize("name", NAMES)
def test_what_it_is_and_costs_is_written_down(name):
    text = inspect.getdoc(blueprints.get(name).factory)
    assert "Accepts" in text
    assert "parameters" in text


@pytest.mark.parametrize(
    ("name", "option"), [("conv_bottleneck", "reduction"), ("mlp", "hidden"), ("low_rank", "rank")]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "8"])
def test_options_that_cannot_be(name, option, value):
    with pytest.raises(BlueprintError, match=rf"{option}: expected a positive whole number; got {value!r}"):
        blueprints.get(name).build(slot_of((2, 8, 4, 4)), **{option: value})


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("conv_bottleneck", {}, 2 * 8 * 4 + 9 * 16 + 2 * 4 + 8),
        ("conv_bottleneck", {"reduction": 1}, 2 * 8 * 8 + 9 * 64 + 2 * 8 + 8),
        ("low_rank", {"rank": 3}, 2 * 3 * 8),
    ],
)
def test_the_number_of_parameters_is_as_written(name, config, expected):
    module = blueprints.get(name).build(slot_of((2, 8, 4, 4)), **config)
    assert sum(p.numel() for p in module.parameters()) == expected


@pytest.mark.parametrize(("config", "hidden"), [({}, 8), ({"hidden": 3}, 3)])
def test_the_number_of_parameters_of_an_mlp(config, hidden):
    module = blueprints.get("mlp").build(slot_of((2, 5, 8)), **config)
    assert sum(p.numel() for p in module.parameters()) == 2 * 8 * hidden + hidden + 8


def test_an_unknown_option_names_the_slot():
    host = fxgraft.trace(Model(), (torch.randn(3, 4),))
    with pytest.raises(BlueprintError, match=r"low_rank at slot 'mul' could not be built: TypeError.*width"):
        fxgraft.SeedManager(host).germinate("mul", "low_rank", width=3)


@pytest.fixture
def table(monkeypatch):
    """Registrations that end with the test."""
    monkeypatch.setattr(registry, "_blueprints", dict(registry._blueprints))


@pytest.mark.usefixtures("table")
def test_register():
    blueprints.register("scaled", lambda slot, by=1.0: nn.Linear(slot.shape[-1], slot.shape[-1]))
    assert "scaled" in blueprints.names()
    assert blueprints.names() == sorted(blueprints.names())
    assert not blueprints.get("scaled").branch
    assert grown("scaled", (3, 8))[2].blueprint == "scaled"


@pytest.mark.usefixtures("table")
def test_a_duplicate_raises_and_keeps_the_first():
    first = blueprints.get("mlp")
    with pytest.raises(BlueprintError, match=r"'mlp'"):
        blueprints.register("mlp", lambda slot: nn.Identity())
    assert blueprints.get("mlp") is first


@pytest.mark.usefixtures("table")
def test_a_module_is_a_factory_by_mistake():
    with pytest.raises(BlueprintError, match=r"'seven': expected a callable .*; got int"):
        blueprints.register("seven", 7)
    assert "seven" not in blueprints.names()


@pytest.mark.parametrize(
    ("asked", "near"), [("mpl", "mlp"), ("lowrank", "low_rank"), ("conv_botleneck", "conv_b")]
)
def test_near_names(asked, near):
    with pytest.raises(BlueprintError, match=rf"no blueprint is named '{asked}'; did you mean .*{near}"):
        blueprints.get(asked)


def test_no_near_name_lists_all():
    with pytest.raises(BlueprintError) as caught:
        blueprints.get("zzz")
    assert all(name in str(caught.value) for name in blueprints.names())
