"""A gradient with respect to an input, while an isolated seed blends, is said to leave the seed out."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import fxgraft
from tests.seed_modules import Scale

WARNING = "an input of the host requires grad"
X = torch.linspace(-1, 1, 6).view(6, 1)


class Solution(nn.Module):
    """``u(t)``, as of a physics-informed network; takes its input in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 8), nn.Linear(8, 1)

    def forward(self, t: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(t)))


class Nested(Solution):
    def forward(self, batch: dict[str, list[Tensor]]) -> Tensor:
        return super().forward(batch["points"][0])


def grown(model: nn.Module | None = None, example: object = X, **options: object) -> tuple:
    torch.manual_seed(0)
    host = fxgraft.trace(model or Solution(), (example,))
    manager = fxgraft.SeedManager(host)
    manager.germinate("tanh", Scale(2.0, 0.1), name="a", **options)
    return host, manager


def said(caplog: pytest.LogCaptureFixture) -> int:
    return sum(WARNING in record.getMessage() for record in caplog.records)


def slope(host: nn.Module) -> tuple[Tensor, Tensor]:
    """By autograd, and by finite differences."""
    x = X.double().requires_grad_()
    (by_autograd,) = torch.autograd.grad(host(x).sum(), x)
    with torch.no_grad():
        return by_autograd, (host(X.double() + 1e-6) - host(X.double() - 1e-6)) / 2e-6


def test_the_gradient_of_an_input_leaves_out_a_blending_seed_and_that_is_said_once(caplog) -> None:
    host, manager = grown()
    host.double()
    torch.testing.assert_close(*slope(host))
    assert said(caplog) == 0, "in TRAINING it is the derivative"
    manager.blend("a", to=1.0, steps=3)
    for _ in range(5):
        found, true = slope(host)
        manager.step()
    assert (found - true).abs().max() > 0.1
    assert said(caplog) == 1
    message = next(r.getMessage() for r in caplog.records if WARNING in r.getMessage())
    assert "isolated=False" in message
    assert "'a'" in message
    assert caplog.records[-1].levelno == logging.WARNING


def test_the_remedy_is_one(caplog) -> None:
    host, manager = grown(isolated=False)
    host.double()
    manager.blend("a", to=1.0, steps=3)
    for _ in range(5):
        torch.testing.assert_close(*slope(host))
        manager.step()
    assert said(caplog) == 0


@pytest.mark.parametrize("mode", ["convex", "residual"])
def test_at_the_end_of_a_replacement_there_is_nothing_to_say(mode: str, caplog) -> None:
    host, manager = grown(mode=mode)
    manager.blend("a", to=1.0, steps=1)
    manager.step()
    host.double()
    found, true = slope(host)
    assert said(caplog) == (mode == "residual")
    if mode == "convex":
        torch.testing.assert_close(found, true)


@pytest.mark.parametrize("check_every", [0, 1])
def test_inputs_in_containers_by_name_and_made_by_another_model(check_every: int, caplog) -> None:
    host, manager = grown(Nested(), {"points": [X]})
    manager.blend("a", steps=9)
    host({"points": [X]})
    with torch.no_grad():
        host({"points": [X.clone().requires_grad_()]})
    assert said(caplog) == 0
    host({"points": [X * torch.ones(1, requires_grad=True)]})
    host({"points": [X * torch.ones(1, requires_grad=True)]})
    assert said(caplog) == 1
    host, manager = grown()
    manager.blend("a", steps=9)
    host(t=X.clone().requires_grad_())
    assert said(caplog) == 2


def jvp(host: nn.Module, x: Tensor) -> None:
    torch.func.jvp(host, (x,), (torch.ones_like(x),))


def dual(host: nn.Module, x: Tensor) -> None:
    with forward_ad.dual_level(), torch.no_grad():
        host(forward_ad.make_dual(x, torch.ones_like(x)))


def jacfwd(host: nn.Module, x: Tensor) -> None:
    torch.func.jacfwd(host)(x)


@pytest.mark.parametrize("derive", [jvp, dual, jacfwd])
def test_it_is_said_in_forward_mode(derive, caplog) -> None:
    host, manager = grown()
    with forward_ad.dual_level():
        host(X)
    manager.blend("a", to=1.0, steps=0)
    with forward_ad.dual_level():
        host(X)
    assert said(caplog) == 0, "no derivative of an input is asked for"
    derive(host, X)
    assert said(caplog) == 1


def test_looks_only_while_there_is_something_to_find() -> None:
    host, manager = grown()
    manager.step()
    manager.monitor._listen(False)
    assert host._links.on_call is None
    manager.blend("a", steps=9)
    assert host._links.on_call is not None
    manager.cull("a")
    manager.step()
    assert host._links.on_call is None


@pytest.mark.usefixtures("fresh_compiler")
def test_it_is_said_of_compiled_hosts_too(caplog) -> None:
    for whole in (True, False):
        host, manager = grown()
        manager.monitor._interval = 0
        manager.blend("a", steps=9)
        if whole:
            run = torch.compile(host, backend="eager", fullgraph=True)
        else:
            host.compile(backend="eager")
            run = host
        before = said(caplog)
        for _ in range(3):
            run(X.clone().requires_grad_())
        assert said(caplog) == before + 1
