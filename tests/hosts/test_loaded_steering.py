"""Stage and alpha of seeds, where a ``state_dict`` of another moment is loaded: graph and manager agree."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft_passes import Phase
from tests.harness import assert_same_bits, frozen

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
MODES = ("residual", "convex", "gated", "channelwise")
SAID = "at another alpha or in another stage"


class Training:
    def __init__(self, mode: str = "residual"):
        torch.manual_seed(0)
        self.host = fxgraft.trace(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), (X,))
        self.optimizer = torch.optim.SGD(self.host.parameters(), 0.1)
        self.manager = fxgraft.SeedManager(self.host, self.optimizer)
        self.manager.germinate("1", "mlp", name="a", mode=mode)
        self.steps(3)

    def steps(self, number: int) -> None:
        for _ in range(number):
            self.optimizer.zero_grad()
            self.host(X).square().mean().backward()
            self.optimizer.step()
            self.manager.step()

    def steering(self) -> dict[str, Tensor]:
        graft = self.host.graft("a")
        return frozen({name: getattr(graft, name) for name in ("alpha", "learning", "released")})


def load(host: fxgraft.Host, state: dict[str, Any]) -> None:
    host.load_state_dict(state)


def load_around(host: fxgraft.Host, state: dict[str, Any]) -> None:
    around = nn.ModuleDict({"inner": host})
    around.load_state_dict({f"inner.{name}": value for name, value in state.items()})


def load_assigned(host: fxgraft.Host, state: dict[str, Any]) -> None:
    host.load_state_dict(state, assign=True)


def load_in_place(host: fxgraft.Host, state: dict[str, Any]) -> None:
    """As torch.distributed.checkpoint does: into the tensors of the host's own state, then it loads that."""
    own = host.state_dict()
    for name, value in state.items():
        own[name].copy_(value)
    host.load_state_dict(own)


@pytest.mark.parametrize("loads", [load, load_around, load_assigned, load_in_place])
@pytest.mark.parametrize("mode", MODES)
def test_earlier_weights_leave_stage_and_alpha_to_the_manager(
    mode: str, loads: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    run = Training(mode)
    best = copy.deepcopy(run.host.state_dict())
    run.manager.blend("a", to=0.75, steps=4)
    run.steps(2)
    for is_at_target in (False, True):
        expected = run.steering()
        with caplog.at_level(logging.WARNING, "fxgraft"):
            caplog.clear()
            loads(run.host, best)
        assert sum(SAID in text for text in caplog.messages) == 1, caplog.messages
        assert_same_bits(run.steering(), expected, "what steers")
        state = run.host.state_dict()
        weights = {name: value for name, value in state.items() if name.split(".")[-1] not in expected}
        assert_same_bits(frozen(weights), {name: best[name] for name in weights}, "weights")
        if not is_at_target:
            run.steps(2)
    assert run.manager.seeds["a"].stage is fxgraft.Stage.HOLDING
    before = run.host(X).detach()
    run.manager.fossilize("a")
    torch.testing.assert_close(run.host(X).detach(), before)


@pytest.mark.parametrize("mode", MODES)
def test_its_own_state_is_loaded_without_a_word(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    run = Training(mode)
    for steps in (0, 3):
        run.manager.blend("a", to=0.5 + steps / 10, steps=steps)
        for _ in range(steps + 1):
            expected = frozen(run.host.state_dict())
            run.host.load_state_dict(copy.deepcopy(run.host.state_dict()))
            assert_same_bits(frozen(run.host.state_dict()), expected, "state")
            run.steps(1)
    run.manager.fossilize("a")
    run.host.load_state_dict(copy.deepcopy(run.host.state_dict()))
    assert not [text for text in caplog.messages if SAID in text]


def test_a_culled_seed_that_is_still_in_the_graph_stays_without_effect() -> None:
    run = Training()
    run.manager.blend("a", steps=0)
    state = copy.deepcopy(run.host.state_dict())
    run.manager.cull("a", wait=False)
    run.host.load_state_dict(state)
    assert run.host.graft("a").alpha == 0


def test_a_state_that_is_loaded_while_alpha_is_moved_for_a_moment() -> None:
    run = Training()
    state = copy.deepcopy(run.host.state_dict())
    with run.manager.at_alpha("a", 0.5):
        run.host.load_state_dict(state)
        assert run.host.graft("a").alpha == 0.5
    assert run.host.graft("a").alpha == 0
    assert run.host.graft("a").learning


def test_a_host_that_nobody_leads_runs_as_the_state_says() -> None:
    """A target network, say: a copy, into which the weights of a later moment are loaded."""
    run = Training()
    target = copy.deepcopy(run.host)
    assert target.phase is Phase.ISOLATED
    run.manager.blend("a", steps=0)
    target.load_state_dict(copy.deepcopy(run.host.state_dict()))
    assert_same_bits(frozen(target(X)), frozen(run.host(X)), "output")
    run = Training()
    learning = copy.deepcopy(run.host.state_dict())
    target.load_state_dict(learning)
    assert_same_bits(frozen(target(X)), frozen(run.host(X)), "output")
