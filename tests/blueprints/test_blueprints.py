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
from fxgraft.blueprints import registry
from fxgraft.blueprints._shapes import LAYOUTS
from fxgraft.errors import BlueprintError
from fxgraft.optimizers.gradients import norm_of
from fxgraft.util.bits import same_bits
from fxgraft_passes import Slot
from fxgraft_passes.objectives import OBJECTIVES
from tests.covering import covering_pairs
from tests.harness import traced_once

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


NAMES = [name for name in blueprints.names() if name != "parallel"]  # which needs a source: `test_parallel`
FITTING = [(name, shape) for name, shape in product(NAMES, SHAPES) if takes(name, shape)]
UNFIT = [(name, shape) for name, shape in product(NAMES, SHAPES) if (name, shape) not in FITTING]
ALLOWED = [(name, shape, mode) for name, shape in FITTING for mode in blueprints.get(name).modes]
LEARNING = [case for case in ALLOWED if case[0] != "identity"]  # which has nothing to learn


class Model(nn.Module):
    """A slot ``mul`` whose value has any shape."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return (x * self.scale).tanh()


@traced_once
def traced(shape):
    return fxgraft.trace(Model(), (torch.randn(shape),))


def grown(name, shape, mode="residual", objective="trust", **config):
    x = torch.randn(shape)
    host = traced(shape)
    manager = fxgraft.SeedManager(host)
    seed = manager.germinate("mul", name, mode=mode, objective=objective, **config)
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
    assert {"identity", "norm", "conv_depthwise", "squeeze_excite", "attention"} <= set(NAMES)


OF_LAYOUT = {"NC": (3, 8), "NLC": (2, 5, 8), "NCHW": (2, 8, 4, 4), "...C": (2, 3, 2, 2, 8), "any": (4,)}


@pytest.mark.parametrize(("name", "layout"), list(product(NAMES, OF_LAYOUT)))
def test_it_takes_the_layouts_that_it_says(name, layout):
    accepts = blueprints.get(name).accepts
    assert OF_LAYOUT.keys() == LAYOUTS.keys()
    if layout in accepts or "any" in accepts:
        assert takes(name, OF_LAYOUT[layout])
    elif not (layout == "NCHW" and "...C" in accepts):
        assert not takes(name, OF_LAYOUT[layout])


@pytest.mark.parametrize("name", NAMES)
def test_its_source_is_known(name):
    assert ("arXiv" in blueprints.get(name).source) == (name != "identity")


@pytest.mark.parametrize(("name", "shape"), FITTING)
def test_the_shape_of_the_slot_comes_out_and_a_branch_is_zero(name, shape):
    blueprint = blueprints.get(name)
    module, x = blueprint.build(slot_of(shape)), torch.randn(shape)
    out = module(x)
    assert out.shape == x.shape
    if blueprint.branch:
        assert not out.any()
        assert same_bits(x + out, x)


@pytest.mark.parametrize(("name", "shape", "mode"), covering_pairs(ALLOWED))
def test_at_birth_nothing_changes_at_any_alpha(name, shape, mode):
    host, manager, seed, x = grown(name, shape, mode)
    without = Model()(x)
    assert same_bits(host(x), without)
    if blueprints.get(name).branch or blueprints.get(name).replaces:
        with manager.at_alpha(seed, 0.5):
            torch.testing.assert_close(host(x), without)


@pytest.mark.parametrize(
    ("name", "shape", "mode", "objective"),
    covering_pairs((*case, objective) for case, objective in product(LEARNING, OBJECTIVES)),
)
def test_a_gradient_at_birth(name, shape, mode, objective):
    host, manager, seed, x = grown(name, shape, mode, objective)
    if objective == "shadow":
        with manager.shadow():
            learnt(host, x)
    else:
        learnt(host, x)
    check_gradients(seed)


@pytest.mark.parametrize(("name", "shape", "mode"), covering_pairs(LEARNING))
def test_a_gradient_while_blending(name, shape, mode):
    host, manager, seed, x = grown(name, shape, mode)
    manager.blend(seed, steps=2, schedule="linear")
    manager.step()
    assert seed.alpha == pytest.approx(0.5)
    learnt(host, x)
    check_gradients(seed)


class Widening(nn.Module):
    """Slots ``first`` and ``second`` of other widths: rows, tokens or images."""

    def __init__(self, *layers):
        super().__init__()
        self.first, self.second = layers

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def rows():
    return Widening(nn.Linear(4, 6), nn.Linear(6, 3)), torch.randn(2, 4)


def images():
    return Widening(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 3, 1)), torch.randn(2, 4, 5, 5)


@pytest.mark.parametrize(
    ("name", "made"),
    [("mlp", rows), ("low_rank", rows), ("low_rank", images), ("conv_bottleneck", images)],
)
def test_a_branch_from_a_value_of_another_width(name, made):
    model, x = made()
    host = fxgraft.trace(model, (x,))
    manager = fxgraft.SeedManager(host)
    seed = manager.germinate("second", name, source="first", objective="straight_through")
    learnt(host, x)
    check_gradients(seed)
    with manager.at_alpha(seed, 1.0):
        assert torch.equal(host(x), model(x))


@pytest.mark.parametrize("name", ["norm", "squeeze_excite", "conv_depthwise", "attention", "net2net"])
def test_a_blueprint_that_keeps_the_width_refuses_another(name):
    model, x = images()
    host = fxgraft.trace(model, (x,))
    with pytest.raises(BlueprintError, match=rf"{name} at slot 'second', source 'first': expected a module"):
        fxgraft.SeedManager(host).germinate("second", name, source="first")
    assert same_bits(host(x), model(x))


REZERO = [
    case
    for case in ALLOWED
    if case[0] in ("conv_bottleneck", "conv_depthwise", "mlp", "attention")
    and case[1] != (2, 1, 1, 1)  # the ReLU of a branch with one channel may be zero for both values
]


@pytest.mark.parametrize(
    ("name", "shape", "mode", "objective"),
    covering_pairs((*case, objective) for case, objective in product(REZERO, ["trust", "straight_through"])),
)
def test_rezero_adds_nothing_and_learns(name, shape, mode, objective):
    torch.manual_seed(1)
    host, manager, seed, x = grown(name, shape, mode, objective, init="rezero")
    with manager.at_alpha(seed, 0.5):
        torch.testing.assert_close(host(x), Model()(x))
    learnt(host, x)
    alive = {n.rpartition(".")[2] for n, p in seed.module.named_parameters() if p.grad.any()}
    assert alive == {"scale"}


@pytest.mark.parametrize("name", ["conv_bottleneck", "conv_depthwise", "mlp", "attention"])
def test_an_unknown_initialisation(name):
    with pytest.raises(BlueprintError, match=r"init: expected one of zero, rezero; got 'random'"):
        blueprints.get(name).build(slot_of((2, 8, 4, 4)), init="random")


def test_a_mode_that_is_not_allowed():
    with pytest.raises(BlueprintError, match=r"identity at slot 'mul': expected a mode of .*; got 'gated'"):
        grown("identity", (3, 8), "gated")


@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 8), (2, 8, 4, 4)])
@pytest.mark.parametrize("relu", [False, True])
def test_net2net_is_the_identity(shape, relu):
    x = torch.randn(shape)
    x = x.relu() if relu else x
    module = blueprints.get("net2net").build(slot_of(shape), relu=relu)
    torch.testing.assert_close(module(x), x)


def test_a_position_sees_itself_and_earlier_ones_unless_it_is_a_pixel():
    def reach(shape, **config):
        module = blueprints.get("attention").build(slot_of(shape), init="rezero", **config).branch
        x = torch.randn(shape, requires_grad=True)
        module(x).flatten(2).select(2 if len(shape) == 4 else 1, 1).sum().backward()
        return x.grad.flatten(2).abs().sum(1 if len(shape) == 4 else 2)[0].bool().tolist()

    assert reach((1, 4, 8)) == [True, True, False, False]
    assert reach((1, 4, 8), causal=False) == [True] * 4
    assert reach((1, 8, 2, 2)) == [True] * 4
    assert reach((1, 8, 2, 2), causal=True) == [True, True, False, False]


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


OPTIONS = [
    ("conv_bottleneck", "reduction"),
    ("conv_depthwise", "kernel"),
    ("mlp", "hidden"),
    ("low_rank", "rank"),
    ("attention", "heads"),
    ("squeeze_excite", "reduction"),
    ("norm", "groups"),
    ("net2net", "kernel"),
]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True])
def test_options_that_cannot_be(name, option, value):
    with pytest.raises(BlueprintError, match=rf"{option}: expected a positive whole number; got {value!r}"):
        blueprints.get(name).build(slot_of((2, 8, 4, 4)), **{option: value})


@pytest.mark.parametrize(
    ("name", "shape", "config", "expected"),
    [
        ("attention", (2, 5, 8), {"heads": 3}, "heads that divide 8 features; got 3"),
        ("norm", (2, 8, 4, 4), {"groups": 3}, "groups that divide .* got 3"),
        ("norm", (2, 5, 8), {"groups": 2}, "or 1; got 2"),
        ("conv_depthwise", (2, 8, 4, 4), {"kernel": 2}, "kernel: expected an odd number"),
        ("net2net", (2, 8, 4, 4), {"kernel": 4}, "kernel: expected an odd number"),
    ],
)
def test_options_that_do_not_fit(name, shape, config, expected):
    with pytest.raises(BlueprintError, match=expected):
        blueprints.get(name).build(slot_of(shape), **config)


IMAGE, TOKENS, PIXELS = (2, 8, 4, 4), (2, 5, 8), 2 * 4 * 4
COSTS = [
    ("conv_bottleneck", IMAGE, {}, 2 * 8 * 4 + 9 * 16 + 2 * 4 + 8, 2 * PIXELS * (2 * 8 * 4 + 9 * 16)),
    ("conv_bottleneck", IMAGE, {"reduction": 1}, 2 * 64 + 9 * 64 + 24, 2 * PIXELS * 11 * 64),
    (
        "conv_bottleneck",
        IMAGE,
        {"init": "rezero"},
        2 * 8 * 4 + 9 * 16 + 17,
        2 * PIXELS * (2 * 8 * 4 + 9 * 16),
    ),
    ("conv_depthwise", IMAGE, {}, 8 * 9 + 64 + 16, 2 * PIXELS * (8 * 9 + 64)),
    ("conv_depthwise", IMAGE, {"kernel": 5}, 8 * 25 + 64 + 16, 2 * PIXELS * (8 * 25 + 64)),
    ("low_rank", IMAGE, {"rank": 3}, 2 * 3 * 8, PIXELS * 4 * 3 * 8),
    ("low_rank", TOKENS, {"rank": 3}, 2 * 3 * 8, 10 * 4 * 3 * 8),
    ("mlp", TOKENS, {}, 2 * 64 + 8 + 8, 10 * 4 * 64),
    ("mlp", TOKENS, {"hidden": 3}, 2 * 24 + 3 + 8, 10 * 4 * 24),
    ("attention", TOKENS, {"heads": 2}, 4 * 64 + 32, 2 * (8 * 5 * 64 + 4 * 25 * 8)),
    ("attention", IMAGE, {}, 4 * 64 + 32, 2 * (8 * 16 * 64 + 4 * 256 * 8)),
    ("squeeze_excite", IMAGE, {}, 2 * 8 * 4 + 4 + 8, 4 * 2 * 8 * 4),
    ("norm", IMAGE, {}, 16, 0),
    ("norm", TOKENS, {}, 16, 0),
    ("scale_shift", TOKENS, {}, 16, 0),
    ("net2net", IMAGE, {}, 64 * 9 + 8, 2 * PIXELS * 64 * 9),
    ("net2net", TOKENS, {}, 64 + 8, 10 * 2 * 64),
    ("identity", TOKENS, {}, 0, 0),
]


@pytest.mark.parametrize(("name", "shape", "config", "parameters", "flops"), COSTS)
def test_it_costs_what_is_written(name, shape, config, parameters, flops):
    before = torch.get_rng_state()
    cost = blueprints.get(name).cost(slot_of(shape), **config)
    assert (cost.parameters, cost.flops) == (parameters, flops)
    module = blueprints.get(name).build(slot_of(shape), **config)
    assert sum(p.numel() for p in module.parameters()) == parameters
    torch.set_rng_state(before)
    blueprints.get(name).cost(slot_of(shape), **config)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_costs_of_all_are_written():
    assert {name for name, *_ in COSTS} == set(NAMES)


def test_an_unknown_option_names_the_slot():
    host = fxgraft.trace(Model(), (torch.randn(3, 4),))
    with pytest.raises(BlueprintError, match=r"low_rank at slot 'mul': .*'width'; its options: rank"):
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
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"accepts": ("NHWC",)}, r"accepts: expected NC, .*; got \['NHWC'\]"),
        ({"modes": ("residual", "added")}, r"modes: expected residual, .*; got \['added'\]"),
        ({"branch": True, "replaces": True}, "branch or replaces, or neither; got both"),
    ],
)
def test_what_cannot_be_said_of_a_blueprint(options, expected):
    with pytest.raises(BlueprintError, match=f"'odd': (expected )?{expected}"):
        blueprints.register("odd", lambda slot: nn.Identity(), **options)
    assert "odd" not in blueprints.names()


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
