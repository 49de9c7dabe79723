"""Second derivatives of the blend operators: of the value; where isolated, of the direct path alone."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fxgraft.util.bits import same_bits
from fxgraft_passes import operators

BLENDS = {"residual": operators.residual, "convex": operators.convex}
LAW = ("trust", 0.1)
FLAGS = {"none": None, "off": False, "on": True}


@pytest.fixture(params=["looked at", "never looked at"], autouse=True)
def flags(request, monkeypatch):
    """Flags whose values are free to look at (eager, on a CPU), and as they are everywhere else."""
    if request.param == "never looked at":
        monkeypatch.setattr(operators, "is_free_to_look_at", lambda flag: False)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def gradients(operator, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Of a loss that is not linear, so that ``g`` has a history."""
    return torch.autograd.grad(operator(h * 1, s * 1).pow(3).sum(), (h, s), create_graph=True)


def blended(mode: str, alpha: float, flag: bool | None, isolated: bool):
    learning = None if flag is None else torch.tensor(flag)
    share = torch.tensor(alpha, dtype=torch.float64)
    return lambda h, s: BLENDS[mode](h, s, share, learning, *LAW, isolated)


def by_hand(mode: str, alpha: float):
    return lambda h, s: h + alpha * (s if mode == "residual" else s - h)


@pytest.mark.parametrize(("mode", "alpha"), list(product(BLENDS, (0.0, 0.3, 1.0))))
@pytest.mark.parametrize("flag", ["none", "off"])
def test_what_is_not_isolated_has_the_derivatives_of_the_value(mode: str, alpha: float, flag: str) -> None:
    h, s = numbers(3), numbers(3)
    found = gradients(blended(mode, alpha, FLAGS[flag], isolated=False), h, s)
    expected = gradients(by_hand(mode, alpha), h, s)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(found, expected, strict=True):
        for wanted in (h, s):
            second = [torch.autograd.grad(g.sum(), wanted, retain_graph=True)[0] for g in (ours, theirs)]
            torch.testing.assert_close(*second)


@pytest.mark.parametrize(("mode", "alpha"), list(product(BLENDS, (0.0, 0.3, 1.0))))
@pytest.mark.parametrize("flag", FLAGS)
def test_the_gradient_of_an_isolated_seed_is_a_constant(mode: str, alpha: float, flag: str) -> None:
    h, s = numbers(3), numbers(3)
    to_host, to_seed = gradients(blended(mode, alpha, FLAGS[flag], isolated=True), h, s)
    plain = blended(mode, alpha, FLAGS[flag], isolated=False)
    assert same_bits((to_host, to_seed), gradients(plain, h, s)), "in value it is what it was"
    assert not to_seed.requires_grad
    cut = s.detach() * alpha if mode == "residual" else torch.lerp(h.detach() * 0, s.detach(), alpha)
    direct = (h + cut if mode == "residual" else (1 - alpha) * h + cut).pow(3).sum()
    (expected,) = torch.autograd.grad(direct, h, create_graph=True)
    for found, wanted in zip((to_host, to_host.sum()), (expected, expected.sum()), strict=True):
        torch.testing.assert_close(found, wanted)
    second = torch.autograd.grad(to_host.sum(), h)[0], torch.autograd.grad(expected.sum(), h)[0]
    torch.testing.assert_close(*second)


@pytest.mark.parametrize("objective", ["trust", "trust_step", "straight_through"])
@pytest.mark.parametrize("mode", BLENDS)
@pytest.mark.parametrize("isolated_input", [True, False])
def test_what_an_objective_gives_is_a_constant(objective: str, mode: str, isolated_input: bool) -> None:
    h, s = numbers(3), numbers(3)

    def operator(value: Tensor, seed: Tensor) -> Tensor:
        source = value.detach() if isolated_input else value
        return operators.isolated(value, seed + 0 * source, mode, objective, 0.1)

    to_host, to_seed = gradients(operator, h, s)
    assert not to_seed.requires_grad
    (second,) = torch.autograd.grad(to_host.sum(), h)
    torch.testing.assert_close(second, 6 * h.detach())


@pytest.mark.parametrize("mode", BLENDS)
def test_hooks_of_others_stay_where_they_are(mode: str) -> None:
    """On what a seed returns: before the blend, after it, and on a parameter that is returned itself."""
    alpha, seen = torch.tensor(0.3, dtype=torch.float64), []
    for s in (numbers(3), numbers(3) * 1, numbers(3) * 1):
        s.register_hook(lambda g: seen.append(g.clone()))
        h = numbers(3)
        out = BLENDS[mode](h * 1, s, alpha, None, *LAW)
        s.register_hook(lambda g: seen.append(g.clone()))
        out.sum().backward(create_graph=False)
        assert len(seen) == 2
        torch.testing.assert_close(seen, [torch.full_like(h, 0.3).detach()] * 2)
        seen.clear()
        if s.is_leaf:
            s.sum().backward()
            assert len(seen) == 2, "nothing of the blend's is left at a parameter"
            seen.clear()


@pytest.mark.parametrize("released", [False, True])
def test_release_to_any_order(released: bool) -> None:
    h = numbers(3)
    flag = torch.tensor(released)
    value = h.pow(2) + operators.release(h * 1, flag).pow(3)
    (first,) = torch.autograd.grad(value.sum(), h, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), h)
    x = h.detach()
    torch.testing.assert_close(first.detach(), 2 * x + (3 * x**2 if released else 0))
    torch.testing.assert_close(second, 2 + (6 * x if released else 0 * x))


@pytest.mark.parametrize("mode", BLENDS)
@pytest.mark.parametrize("vectorize", [False, True])
def test_functional_derivatives(mode: str, vectorize: bool) -> None:
    """As ``torch.autograd.functional`` takes them, in batches as well."""
    s, alpha = numbers(3), torch.tensor(0.3, dtype=torch.float64)

    def of_host(h: Tensor) -> Tensor:
        return BLENDS[mode](h * 1, s * h.detach(), alpha, None, *LAW).pow(3).sum()

    def direct(h: Tensor) -> Tensor:
        added = alpha * s.detach() * h.detach()
        return (h + added if mode == "residual" else (1 - alpha) * h + added).pow(3).sum()

    h = torch.randn(3, dtype=torch.float64)
    found, expected = (
        torch.autograd.functional.hessian(f, h, vectorize=vectorize) for f in (of_host, direct)
    )
    torch.testing.assert_close(found, expected)
    found, expected = (
        torch.autograd.functional.hvp(f, h, torch.ones(3).double())[1] for f in (of_host, direct)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", BLENDS)
def test_a_trace_of_operations_does_not_hold_the_values_of_steering_tensors(mode: str) -> None:
    """As ``make_fx`` makes one, or a model on fake tensors."""
    alpha, released = torch.tensor(0.3), torch.tensor(False)

    def run(h: Tensor, s: Tensor, alpha: Tensor, released: Tensor) -> Tensor:
        return BLENDS[mode](h, s * operators.release(h, released), alpha, None, *LAW)

    operands = torch.randn(3), torch.randn(3)
    traced = make_fx(run, pre_dispatch=False)(*operands, alpha, released)
    alpha.fill_(0.6)
    assert same_bits(traced(*operands, alpha, released), run(*operands, alpha, released))
    with FakeTensorMode() as fake:
        faked = [fake.from_tensor(t) for t in (*operands, alpha, released)]
        assert run(*faked).shape == (3,)
