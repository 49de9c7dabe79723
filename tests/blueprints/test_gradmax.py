"""GradMax: the largest gradient that a branch of that form can begin with, and a host that feels nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import blueprints
from fxgraft.errors import BlueprintError, SlotError
from fxgraft.optimizers.gradients import norm_of
from fxgraft.util.bits import same_bits
from tests.harness import assert_same_bits, loss_of, snapshot


class Images(nn.Module):
    """Slots of two forms, with batch norm and dropout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(6 * 16, 5)

    def forward(self, x):
        return self.fc(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))


@pytest.fixture
def grown():
    """Host, manager, batch: with a seed in training, one that is blended and the gradients of a step."""
    x = torch.randn(4, 2, 4, 4)
    host = fxgraft.trace(Images(), (x,))
    manager = fxgraft.SeedManager(host, torch.optim.AdamW(host.parameters(), 1e-2))
    manager.germinate("norm", "mlp", name="a")
    manager.blend("a", to=0.5, steps=1)
    manager.step()
    manager.germinate("fc", "mlp", name="b")
    loss_of(host(x)).backward()
    return host, manager, x


CASES = [("conv", "low_rank"), ("norm", "low_rank"), ("fc", "low_rank"), ("fc", "mlp"), ("norm", "mlp")]


@pytest.mark.parametrize("where", ["conv", "fc"])
def test_the_host_is_untouched(grown, where):
    host, manager, x = grown
    before = snapshot(host, x, manager._optimizers)
    blueprints.gradmax(host, where, lambda model: loss_of(model(x)))
    assert_same_bits(snapshot(host, x, manager._optimizers), before)


def test_nor_where_the_loss_raises(grown):
    host, manager, x = grown
    before = snapshot(host, x, manager._optimizers)
    with pytest.raises(ZeroDivisionError):
        blueprints.gradmax(host, "conv", lambda model: model(x).sum() / (1 // 0))
    assert_same_bits(snapshot(host, x, manager._optimizers), before)


@pytest.mark.parametrize(("where", "blueprint"), CASES)
def test_no_other_orthogonal_columns_begin_with_a_larger_gradient(where, blueprint):
    x = torch.randn(4, 2, 4, 4)
    host = fxgraft.trace(Images().eval(), (x,))
    manager = fxgraft.SeedManager(host)
    gradmax = blueprints.gradmax(host, where, lambda m: loss_of(m(x)), blueprint=blueprint, rank=2)

    def norm_at_birth(factory):
        """Of the gradient of the weights of a seed that trains in the open; the formula has no biases."""
        seed = manager.germinate(where, factory, objective="straight_through")
        loss_of(host(x)).backward()
        norm = norm_of(p for n, p in seed.module.named_parameters() if n.endswith("weight"))
        manager.cull(seed)
        return norm

    def leading(slot):
        torch.manual_seed(0)  # what it draws itself is always the same
        return gradmax(slot)

    def other(slot):
        branch = leading(slot)
        last = branch.up if blueprint == "low_rank" else branch.down
        columns, _ = torch.linalg.qr(torch.randn(last.weight.shape[:2], generator=draws))
        last.weight.data = (columns / 2**0.5).view_as(last.weight)
        return branch

    draws = torch.Generator().manual_seed(0)
    best = norm_at_birth(leading)
    assert best > 0
    others = [norm_at_birth(other) for _ in range(10)]
    assert len({float(norm) for norm in others}) == len(others)
    assert max(others) <= best * (1 + 1e-5)


@pytest.mark.parametrize(("where", "blueprint"), CASES)
def test_it_adds_nothing_and_has_the_norm_asked_for(where, blueprint):
    x = torch.randn(4, 2, 4, 4)
    torch.manual_seed(0)
    host = fxgraft.trace(Images().eval(), (x,))
    factory = blueprints.gradmax(host, where, lambda m: loss_of(m(x)), blueprint=blueprint, rank=3, norm=2.0)
    expected = host(x)
    manager = fxgraft.SeedManager(host)
    seed = manager.germinate(where, factory)
    with manager.at_alpha(seed, 1.0):
        assert torch.equal(host(x), expected)
    last = seed.module.up if blueprint == "low_rank" else seed.module.down
    matrix = last.weight.flatten(1)
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(3) * 4 / 3)


def test_the_gradient_norm_is_that_of_the_leading_singular_values():
    """Against the formula, on a host whose value and gradient at the slot are known."""
    h, g = torch.randn(8, 5), torch.randn(8, 5)
    scale = nn.Linear(5, 5, bias=False)
    scale.weight.data = torch.eye(5)
    host = fxgraft.trace(nn.Sequential(scale), (h,))
    factory = blueprints.gradmax(host, "0", lambda model: (model(h) * g).sum(), rank=2)
    module = factory(host.slots["0"])
    (module(h) * g).sum().backward()
    leading = torch.linalg.svdvals(g.T @ h)[:2]
    torch.testing.assert_close(module.down.weight.grad.norm(), (leading.square().sum() / 2).sqrt())
    assert not module.up.weight.grad.any()


def test_calls_of_a_shared_module_are_summed():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(5, 5, bias=False))

        def forward(self, x):
            return self.block(self.block(x))

    model, x = Twice(), torch.randn(8, 5)
    host = fxgraft.trace(model, (x,))
    module = blueprints.gradmax(host, "block.0", lambda m: loss_of(m(x)), rank=1)(host.slots["block.0"])
    first = model.block(x)
    second = model.block(first)
    gradients = torch.autograd.grad(loss_of(second), [first, second])
    moment = gradients[0].T @ first + gradients[1].T @ second
    leading = torch.linalg.svd(moment).U[:, :1]
    torch.testing.assert_close((module.up.weight.T @ leading).abs(), torch.ones(1, 1))


def test_a_slot_in_a_region_that_runs_as_part_of_another():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block = nn.Linear(5, 5), nn.Sequential(nn.Linear(5, 5), nn.Tanh())

        def forward(self, x):
            return self.block(self.first(x))

    x = torch.randn(8, 5)
    host = fxgraft.trace(Nested(), (x,))
    expected = blueprints.gradmax(host, "block.0", lambda m: loss_of(m(x)))(host.slots["block.0"])
    manager = fxgraft.SeedManager(host)
    manager.germinate("block.1", "mlp", source="first", name="a")
    before = snapshot(host, x)
    factory = blueprints.gradmax(host, "block.0", lambda m: loss_of(m(x)))
    assert_same_bits(snapshot(host, x), before)
    assert same_bits(factory(host.slots["block.0"]).up.weight, expected.up.weight)


def test_a_compiled_host(fresh_compiler):
    x = torch.randn(4, 2, 4, 4)
    host = fxgraft.trace(Images(), (x,))
    host.compile(backend="aot_eager")
    expected = blueprints.gradmax(host, "fc", lambda m: loss_of(m(x)))(host.slots["fc"])
    host(x)
    actual = blueprints.gradmax(host, "fc", lambda m: loss_of(m(x)))(host.slots["fc"])
    torch.manual_seed(0)
    assert same_bits(actual.down.weight, expected.down.weight)
    with torch.compiler.set_stance("fail_on_recompile"):
        host(x)


@pytest.mark.parametrize(
    ("where", "options", "expected"),
    [
        ("fc", {"blueprint": "conv_bottleneck"}, "blueprint: expected 'low_rank' or 'mlp'"),
        ("fc", {"rank": 6}, "rank: expected at most the 5 features of 'fc'; got 6"),
        ("fc", {"rank": 0}, "rank: expected a positive whole number; got 0"),
        ("fc", {"loss": lambda m: 0 * m(torch.ones(2, 2, 4, 4)).sum()}, "not zero throughout; got zero"),
        ("fc", {"loss": lambda m: m(torch.ones(2, 2, 4, 4)).sum() * float("nan")}, "got NaN or inf"),
    ],
)
def test_what_cannot_be(where, options, expected):
    x = torch.randn(2, 2, 4, 4)
    host = fxgraft.trace(Images(), (x,))
    loss = options.pop("loss", lambda model: loss_of(model(x)))
    with pytest.raises(BlueprintError, match=expected):
        blueprints.gradmax(host, where, loss, **options)


def test_no_such_slot_and_another_slot():
    x = torch.randn(2, 2, 4, 4)
    host = fxgraft.trace(Images(), (x,))
    with pytest.raises(SlotError, match="no slot 'cnv'; did you mean 'conv'"):
        blueprints.gradmax(host, "cnv", lambda model: loss_of(model(x)))
    factory = blueprints.gradmax(host, "fc", lambda model: loss_of(model(x)))
    with pytest.raises(BlueprintError, match="gradmax for slot 'fc' at slot 'conv': expected 5 features"):
        factory(host.slots["conv"])


def test_a_saved_one_is_loaded_into_any_blueprint_of_that_form(tmp_path):
    x = torch.randn(4, 2, 4, 4)
    host = fxgraft.trace(Images(), (x,))
    manager = fxgraft.SeedManager(host)
    factory = blueprints.gradmax(host, "fc", lambda m: loss_of(m(x)), rank=3)
    seed = manager.germinate("fc", factory, name="steep")
    manager.save(tmp_path / "run")
    again = fxgraft.trace(Images(), (x,))
    form = {"steep": lambda slot: blueprints.get("low_rank").build(slot, rank=3)}
    loaded = fxgraft.SeedManager.load(tmp_path / "run", again, blueprints=form).seeds["steep"]
    assert_same_bits(dict(loaded.module.state_dict()), dict(seed.module.state_dict()))
