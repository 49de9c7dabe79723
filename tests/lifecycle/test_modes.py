"""The modes gated and channelwise through a live host: closed forms, targets, autocast, fossils."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager, Stage
from tests.harness import assert_same_bits, traced_once
from tests.networks import TanhBetween

NEW_MODES = ("gated", "channelwise")
MODES = ("residual", "convex", *NEW_MODES)
SLOT = "tanh"
X = torch.tensor([[0.3, -1.0, 0.7, 2.0], [-0.2, 0.4, -1.5, 0.1]], dtype=torch.float64)


@traced_once
def traced() -> fxgraft.Host:
    return fxgraft.trace(TanhBetween(), (torch.randn(2, 4),))


def grown(mode: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, ...]:
    torch.manual_seed(0)
    host = traced().to(dtype)
    manager = SeedManager(host)
    module = nn.Linear(4, 4)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-0.5, 0.5, 16).view(4, 4))
        module.bias.fill_(0.1)
    seed = manager.germinate(SLOT, module, name="a", mode=mode, **options)
    return host, manager, seed, module


def closed_form(
    host: fxgraft.Host, module: nn.Module, mode: str, alpha: Tensor, gate: Tensor
) -> dict[str, Tensor]:
    """Value and gradients by the formulas of the concepts page, written by hand on copies of the weights."""
    w0, b0 = host.before.weight.detach().clone().requires_grad_(), host.before.bias.detach()
    w1 = host.after.weight.detach().clone().requires_grad_()
    ws, bs = (p.detach().clone().requires_grad_() for p in (module.weight, module.bias))
    gate = gate.detach().clone().requires_grad_()
    h = torch.tanh(X @ w0.T + b0)
    f = h.detach() @ ws.T + bs
    if mode == "gated":
        f = torch.sigmoid(gate) * f
    out = (h + alpha * f) @ w1.T + host.after.bias.detach()
    (out * torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4)).sum().backward()
    found = {"out": out.detach(), "before": w0.grad, "after": w1.grad, "seed": ws.grad, "bias": bs.grad}
    return found | ({"gate": gate.grad} if mode == "gated" else {})


def seen(host: fxgraft.Host, seed: Any, module: nn.Module, mode: str) -> dict[str, Tensor]:
    host.zero_grad()
    out = host(X)
    (out * torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4)).sum().backward()
    found = {
        "out": out.detach(),
        "before": host.before.weight.grad,
        "after": host.after.weight.grad,
        "seed": module.weight.grad,
        "bias": module.bias.grad,
    }
    return found | ({"gate": seed.module.gate.grad} if mode == "gated" else {})


@pytest.mark.parametrize("mode", NEW_MODES)
@pytest.mark.parametrize("to", [1.0, 0.3])
def test_value_and_gradients_are_those_of_the_closed_form(mode: str, to: float) -> None:
    host, manager, seed, module = grown(mode)
    if mode == "gated":
        with torch.no_grad():
            seed.module.gate.fill_(0.7)
    manager.blend(seed, to=to, steps=4, schedule="linear")
    for step in range(5):
        alpha = torch.tensor(seed.alphas, dtype=torch.float64)
        gate = seed.module.gate if mode == "gated" else torch.zeros((), dtype=torch.float64)
        expected = closed_form(host, module, mode, alpha, gate)
        found = seen(host, seed, module, mode)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-14, msg=name)
        assert seed.stage is (Stage.HOLDING if step == 4 else Stage.BLENDING)
        manager.step()
    assert seed.alphas == (to,) * len(seed.alphas)


def test_channels_follow_each_other() -> None:
    _, manager, seed, _ = grown("channelwise")
    manager.blend(seed, steps=10, schedule="linear")
    courses = [seed.alphas]
    for _ in range(10):
        manager.step()
        courses.append(seed.alphas)
    assert len(courses[0]) == 4
    for channel in zip(*courses, strict=True):
        assert list(channel) == sorted(channel)
    assert all(list(alphas) == sorted(alphas, reverse=True) for alphas in courses)
    assert courses[5][0] == 1.0
    assert courses[5][-1] == 0.0
    assert courses[-1] == (1.0,) * 4
    assert 0 < sum(courses[5]) / 4 < 1


def test_channels_of_images_are_their_second_axis() -> None:
    host = fxgraft.trace(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()), (torch.randn(2, 1, 5, 5),))
    manager = SeedManager(host)
    seed = manager.germinate("1", nn.Conv2d(3, 3, 1), mode="channelwise")
    manager.blend(seed, steps=4, schedule="linear")
    manager.step()
    manager.step()
    x = torch.randn(2, 1, 5, 5)
    h = torch.relu(host.get_submodule("0")(x))
    alpha = torch.tensor(seed.alphas).view(3, 1, 1)
    torch.testing.assert_close(host(x), h + alpha * seed.module(h))


@pytest.mark.parametrize("mode", MODES)
def test_alpha_0_and_1_are_exact(mode: str) -> None:
    host, manager, seed, module = grown(mode)
    h = torch.tanh(host.before(X))
    manager.blend(seed, to=0.0, steps=1)
    manager.step()
    assert_same_bits(host(X), host.after(h), "at 0")
    manager.blend(seed, to=1.0, steps=3)
    for _ in range(3):
        manager.step()
    branch = seed.module(h)
    assert_same_bits(host(X), host.after(branch if mode == "convex" else h + branch), "at 1")
    assert module is (seed.module.branch if mode == "gated" else seed.module)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("to", [1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_fossil_computes_what_the_seed_did(mode: str, to: float, dtype: torch.dtype) -> None:
    host, manager, seed, _ = grown(mode, dtype)
    x = X.to(dtype)
    manager.blend(seed, to=to, steps=2)
    manager.step()
    manager.step()
    before = host(x)
    manager.fossilize(seed)
    code = host.regions[""].code
    assert not [op for op in ("residual(", "convex(", "isolated(", "alpha", "detach") if op in code]
    if to == 1.0:
        assert_same_bits(host(x), before, "the fossil")
    else:
        torch.testing.assert_close(host(x), before)
    assert len(list(host.host_parameters())) == len(list(host.parameters()))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", ["TRAINING", "BLENDING", "HOLDING"])
def test_under_autocast(mode: str, stage: str) -> None:
    host, manager, seed, _ = grown(mode, torch.float32)
    x = X.float()
    plain = TanhBetween()
    plain.load_state_dict(host.model_state())
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(x)
        if stage != "TRAINING":
            manager.blend(seed, steps=2 if stage == "BLENDING" else 1)
            manager.step()
        out = host(x)
        loss = out.float().square().sum()
    loss.backward()
    assert out.dtype is expected.dtype
    if stage == "TRAINING":
        assert_same_bits(out, expected, "the host's value")
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in manager.seed_parameters())
    assert all(p.grad.dtype is torch.float32 for p in host.parameters())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(mode: str, dtype: torch.dtype) -> None:
    host, manager, seed, _ = grown(mode, dtype)
    x = X.to(dtype)
    manager.blend(seed, steps=4)
    for _ in range(4):
        manager.step()
        out = host(x)
        assert out.dtype is dtype
        out.float().sum().backward()
    h = torch.tanh(host.before(x))
    branch = seed.module(h)
    assert_same_bits(host(x), host.after(branch if mode == "convex" else h + branch), "at 1")


def test_the_gate_learns_and_is_the_seeds() -> None:
    host, manager, seed, _ = grown("gated")
    assert "_seeds.a.module.gate" in host.state_dict()
    assert any(p is seed.module.gate for p in manager.seed_parameters())
    host(X).square().sum().backward()
    assert float(seed.module.gate.grad) != 0


def test_a_blend_with_a_warm_up_reaches_its_target_after_both() -> None:
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (torch.randn(2, 4),))
    manager = fxgraft.SeedManager(host)
    seed = manager.germinate("1", "mlp")
    manager.blend(seed, steps=2, schedule="linear", warmup=3)
    course = []
    for _ in range(6):
        manager.step()
        course.append((seed.alpha, seed.stage.name))
    assert [alpha for alpha, _ in course] == [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]
    assert [stage for _, stage in course] == ["BLENDING"] * 4 + ["HOLDING"] * 2
