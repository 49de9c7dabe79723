"""The ways to compile, on each device that is there: what is computed is what eager mode computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import Stage
from fxgraft.host import engine
from fxgraft.testing import no_recompiles
from fxgraft_passes import devices
from tests.harness import frozen
from tests.networks import ResidualMLP

pytestmark = pytest.mark.usefixtures("fresh_compiler")

on_devices = pytest.mark.parametrize(
    ("device", "backend"),
    [("cpu", "aot_eager"), pytest.param("cuda", "inductor", marks=[pytest.mark.gpu, pytest.mark.inductor])],
)


class World:
    """A host in training whose results are compared with eager mode."""

    def __init__(self, device: str, backend: str, granularity: str, autocast: torch.dtype | None) -> None:
        torch.manual_seed(0)
        self.device, self.autocast = device, autocast
        self.x = torch.randn(6, 4).to(device)
        model = nn.Sequential(*(ResidualMLP() for _ in range(4)), nn.Linear(4, 2)).to(device)
        self.host = fxgraft.trace(model, (self.x,))
        self.host.compile(backend=backend, granularity=granularity)
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-3)
        self.manager = fxgraft.SeedManager(self.host, self.optimizer)
        self.train(3)

    def _around(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device, self.autocast)

    def _results(self, model: nn.Module) -> list[Tensor | None]:
        self.optimizer.zero_grad()
        with self._around():
            out = model(self.x)
        out.float().square().mean().backward()
        return frozen([out, *(parameter.grad for parameter in self.host.parameters())])

    def train(self, steps: int) -> None:
        for _ in range(steps):
            ours = self._results(self.host)
            with engine.probing(self.host, self.host.structure, self.host.phase) as model:
                theirs = self._results(model)
            loose = {} if self.autocast is None else {"rtol": 5e-2, "atol": 5e-3}
            torch.testing.assert_close(ours, theirs, **loose)
            self.optimizer.step()
            self.manager.step()

    def assert_trusted(self) -> None:
        assert [v.distrusted for v in fxgraft.compile_report(self.host).variants if v.distrusted] == []

    def settle(self, seed: fxgraft.Seed) -> None:
        while seed.stage is Stage.GERMINATED:
            self.manager._background.wait(60)
            self.train(1)


@on_devices
@pytest.mark.parametrize("granularity", ["host", "region"])
@pytest.mark.parametrize("wait", [True, False])
def test_a_life_computes_what_eager_mode_does(
    device: str, backend: str, granularity: str, wait: bool
) -> None:
    world = World(device, backend, granularity, None)
    seed = world.manager.germinate("1.relu", "mlp", name="a", wait=wait)
    world.settle(seed)
    with no_recompiles():
        world.train(2)
        world.manager.blend("a", steps=2)
        world.train(4)
        assert seed.stage is Stage.HOLDING
        assert world.host.state_dict()["_seeds.a.alpha"].device.type == device
    world.assert_trusted()
    world.manager.fossilize("a")
    world.train(2)
    world.assert_trusted()


@on_devices
def test_under_autocast_of_the_device(device: str, backend: str) -> None:
    world = World(device, backend, "host", torch.bfloat16)
    world.manager.germinate("1.relu", "mlp", name="a")
    with no_recompiles():
        world.train(2)
        world.manager.blend("a", steps=1)
        world.train(2)
    assert devices.autocasts() == (True, ())
    world.assert_trusted()
