"""What leaves a slot in each stage, and which gradients go where: the table, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import Stage
from fxgraft.util.bits import same_tensor
from fxgraft_passes.objectives import DEFAULT_RADIUS, seed_gradient
from tests.harness import assert_same_bits, traced_once
from tests.networks import TanhBetween
from tests.seed_modules import Poison

VALUES = {
    "negative zero": -0.0,
    "zero": 0.0,
    "inf": float("inf"),
    "negative inf": float("-inf"),
    "nan": float("nan"),
}
MODES = ("residual", "convex")


SLOT = "tanh"
SPECIAL = torch.tensor([[0.0, -0.0, 1.0, -1.0], [1e-40, -1e-40, 3e38, -2.0]])


@traced_once
def traced() -> fxgraft.Host:
    return fxgraft.trace(TanhBetween(), (torch.randn(2, 4),))


def grown(mode: str, seed: nn.Module, stage: Stage, to: float = 0.5, **options: object) -> tuple:
    torch.manual_seed(0)
    host = traced()
    manager = fxgraft.SeedManager(host)
    manager.germinate(SLOT, seed, name="a", mode=mode, **options)
    if stage is not Stage.TRAINING:
        manager.blend("a", to=to, steps=1 if stage is not Stage.BLENDING else 2, schedule="linear")
        manager.step()
    if stage is Stage.FOSSILIZED:
        manager.fossilize("a")
    assert manager.seeds["a"].stage is stage
    return host, manager


def gradients_at(host: fxgraft.Host, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``h``, ``g`` at the slot's output, the gradient into ``before``'s weight, the output."""
    host.zero_grad()
    h = torch.tanh(host.before(x)).detach()
    slot_output: list[Tensor] = []
    handle = host.after.register_forward_pre_hook(lambda _, args: slot_output.append(args[0]))
    out = host(x)
    handle.remove()
    slot_output[0].retain_grad()
    (out * torch.linspace(-1, 1, 8).view(2, 4)).sum().backward()
    return h, slot_output[0].grad, host.before.weight.grad, slot_output[0].detach()


def upstream_gradient(host: fxgraft.Host, x: Tensor, g: Tensor) -> Tensor:
    """What ``before``'s weight gets if the gradient ``g`` arrives at the host's value."""
    value = torch.tanh(host.before(x))
    return torch.autograd.grad(value, host.before.weight, g)[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("training", [True, False])
def test_training_passes_the_host_whatever_the_seed_holds(mode: str, value: str, training: bool) -> None:
    host, _ = grown(mode, Poison(VALUES[value]), Stage.TRAINING)
    host.train(training)
    for x in (torch.randn(2, 4), SPECIAL):
        h, g, into_host, out = gradients_at(host, x)
        assert same_tensor(out, h)
        assert same_tensor(into_host, upstream_gradient(host, x, g))


@pytest.mark.parametrize("mode", MODES)
def test_training_passes_special_values_of_the_host(mode: str) -> None:
    class Special(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1.0

    x = torch.tensor([-0.0, 0.0, float("inf"), float("-inf"), float("nan")], requires_grad=True)
    host = fxgraft.trace(Special(), (torch.randn(5),))
    manager = fxgraft.SeedManager(host)
    manager.germinate("mul", Poison(1.0), mode=mode)
    g = torch.tensor([-0.0, 0.0, float("inf"), 1.0, float("nan")])
    out = host(x)
    assert same_tensor(out, x * 1.0)
    assert same_tensor(torch.autograd.grad(out, x, g)[0], torch.autograd.grad(x * 1.0, x, g)[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("beside_a_blend", [False, True])
@pytest.mark.parametrize("objective", ["trust", "trust_step", "straight_through", "shadow"])
def test_training_gives_the_seed_its_objective(mode: str, beside_a_blend: bool, objective: str) -> None:
    seed = nn.Linear(4, 4)
    host, manager = grown(mode, seed, Stage.TRAINING, objective=objective)
    if beside_a_blend:
        manager.germinate("before", nn.Linear(4, 4), name="b")
        manager.blend("b", steps=1)
        manager.step()
        # The value at "before" is another one now; keep b silent so that h stays what it was.
        manager.seeds["b"].module.requires_grad_(False).weight.zero_()
        manager.seeds["b"].module.bias.zero_()
    h, g, _, _ = gradients_at(host, torch.randn(2, 4))
    s = seed(h)
    d = s - h if mode == "convex" else s
    wanted = seed_gradient(objective, DEFAULT_RADIUS, g, h, d.detach())
    expected = torch.autograd.grad(s, seed.weight, wanted)[0]
    if objective == "shadow":
        assert seed.weight.grad is None or not seed.weight.grad.any()
    else:
        assert_same_bits(seed.weight.grad, expected, "the seed's gradient")
        assert seed.weight.grad.any()


@pytest.mark.parametrize("stage", [Stage.BLENDING, Stage.HOLDING], ids=lambda s: s.name)
@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_blends(mode: str, stage: Stage, isolated: bool) -> None:
    seed, x = nn.Linear(4, 4), torch.randn(2, 4)
    host, manager = grown(mode, seed, stage, to=0.75, isolated=isolated)
    alpha = manager.seeds["a"].alpha
    assert alpha == (0.375 if stage is Stage.BLENDING else 0.75)
    h, g, into_host, out = gradients_at(host, x)
    value = h.clone().requires_grad_()
    s = seed(value)
    blended = value + alpha * s if mode == "residual" else value + alpha * (s - value)
    torch.testing.assert_close(out, blended.detach())
    through_seed, into_seed = torch.autograd.grad(s, (value, seed.weight), alpha * g)
    torch.testing.assert_close(seed.weight.grad, into_seed)
    direct = g if mode == "residual" else (1 - alpha) * g
    released = not isolated or (mode == "convex" and stage is Stage.HOLDING)
    expected = upstream_gradient(host, x, direct + through_seed if released else direct)
    torch.testing.assert_close(into_host, expected)
    if mode == "residual" and isolated:
        assert same_tensor(into_host, expected)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("mode", MODES)
def test_a_blend_at_zero_is_the_host(mode: str, value: str) -> None:
    """Whatever the seed holds: BLENDING begins at alpha 0, and a fade-out ends there."""
    host, manager = grown(mode, Poison(VALUES[value]), Stage.TRAINING)
    manager.blend("a", to=0.0, steps=2)
    for stage in (Stage.BLENDING, Stage.BLENDING, Stage.HOLDING):
        assert manager.seeds["a"].stage is stage
        x = torch.randn(2, 4)
        h, g, into_host, out = gradients_at(host, x)
        assert same_tensor(out, h)
        assert same_tensor(into_host, upstream_gradient(host, x, g))
        manager.step()


@pytest.mark.parametrize("mode", MODES)
def test_a_blend_at_one_is_exactly_the_end_value(mode: str) -> None:
    seed = nn.Linear(4, 4)
    host, _ = grown(mode, seed, Stage.HOLDING, to=1.0)
    h, _, _, out = gradients_at(host, torch.randn(2, 4))
    assert same_tensor(out, (h + seed(h) if mode == "residual" else seed(h)).detach())


@pytest.mark.parametrize("to", [1.0, 0.75, 0.0])
@pytest.mark.parametrize("mode", MODES)
def test_a_fossil_is_a_plain_part_of_the_host(mode: str, to: float) -> None:
    seed, x = nn.Linear(4, 4), torch.randn(2, 4)
    host, manager = grown(mode, seed, Stage.HOLDING, to=to)
    held = host(x).detach()
    manager.fossilize("a")
    assert_same_bits(host(x).detach(), held, "the output before and after fossilizing")
    targets = {getattr(n.target, "__name__", n.target) for n in host.regions[""].graph.nodes}
    assert not targets & {"isolated", "residual", "convex", "release", "detach"}
    h, g, into_host, _ = gradients_at(host, x)
    value = h.clone().requires_grad_()
    s = seed(value)
    blended = value + to * s if mode == "residual" else value + to * (s - value)
    into_value, into_seed = torch.autograd.grad(blended, (value, seed.weight), g)
    torch.testing.assert_close(into_host, upstream_gradient(host, x, into_value))
    if to == 0:
        assert seed.weight.grad is None, "a seed that is held at nothing does not run"
    else:
        torch.testing.assert_close(seed.weight.grad, into_seed)
    assert {id(p) for p in seed.parameters()} <= {id(p) for p in host.host_parameters()}
    assert not list(manager.seed_parameters())
