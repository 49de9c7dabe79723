"""A compiled host under compiled autograd, and inside a training step that is compiled itself."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo import compiled_autograd
from torch._dynamo.utils import counters

import fxgraft
from fxgraft import SeedManager, Stage
from tests.harness import assert_same_bits, frozen
from tests.networks import ResidualMLP
from tests.seed_modules import Scale

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Training:
    """Steps of training whose backward pass is compiled; what they showed is in ``seen``."""

    def __init__(self, granularity: str | None, around: str | None) -> None:
        torch.manual_seed(0)
        self.inputs = torch.Generator().manual_seed(1)
        self.host = fxgraft.trace(nn.Sequential(ResidualMLP(), ResidualMLP()), (torch.randn(3, 4),))
        if granularity is not None:
            self.host.compile(backend="aot_eager", granularity=granularity)
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.manager = SeedManager(self.host, self.optimizer)
        self.seen: list[Any] = []
        self._around = around
        with self.compiled_autograd():  # which is an option of the compiled step
            self._run = torch.compile(self.run, backend="eager") if around == "step" else self.run
        self.train(2)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        out = self.host(x)
        out.square().mean().backward()
        return out

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            x = torch.randn(3, 4, generator=self.inputs)
            with self.compiled_autograd():
                out = self._run(x)
            self.seen.append(frozen([out, *(p.grad for p in self.host.parameters())]))
            self.optimizer.step()
            self.manager.step()

    def compiled_autograd(self) -> AbstractContextManager[Any]:
        if self._around == "step":
            return torch._dynamo.config.patch(compiled_autograd=True)
        if self._around == "context":
            return compiled_autograd._enable(torch.compile(backend="eager"))
        return nullcontext()

    def germinate(self, slot: str, name: str, wait: bool) -> None:
        seed = self.manager.germinate(slot, Scale(), name=name, wait=wait)
        while seed.stage is Stage.GERMINATED:
            self.manager._background.wait(60)
            self.manager._background.step()
        assert seed.stage is Stage.TRAINING


def life(granularity: str | None, around: str | None, wait: bool = True) -> Training:
    training = Training(granularity, around)
    training.germinate("0.relu", "a", wait)
    training.train(3)
    training.manager.blend("a", to=0.5, steps=2)
    training.train(3)
    training.manager.fossilize("a", force=True)
    training.train(2)
    return training


@pytest.mark.parametrize(
    ("around", "granularity", "wait"),
    [
        ("context", "host", True),
        ("context", "region", False),
        ("step", "host", False),
        ("step", "region", True),
    ],
)
def test_live_seeds_have_the_gradients_of_eager_mode(
    around: str, granularity: str, wait: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Isolated, blending and fossilized; and the host's are those that it has without the seed."""
    eager = life(None, None)
    ours = life(granularity, around, wait)
    assert counters["compiled_autograd"]["captures"] > 0
    for i, (a, b) in enumerate(zip(ours.seen, eager.seen, strict=True)):
        assert_same_bits(a, b, f"step {i}")
    assert (ours.manager.monitor.checks, ours.manager.monitor.violations) == (eager.manager.monitor.checks, 0)
    report = fxgraft.compile_report(ours.host)
    assert [row.distrusted for row in report.variants if row.distrusted] == []
    assert report.uncompiled_calls == 0
    assert bool(report.artifacts) is not wait
    assert not [record for record in caplog.records if record.name == "fxgraft"]


@pytest.mark.parametrize("granularity", ["host", "region"])
def test_a_training_step_that_is_compiled_runs_the_hosts_own_code(granularity: str) -> None:
    """Whatever grows: it is compiled around the host, and not anew for another structure."""
    torch.manual_seed(0)
    host = fxgraft.trace(nn.Sequential(ResidualMLP(), ResidualMLP()), (torch.randn(3, 4),))
    host.compile(backend="aot_eager", granularity=granularity)
    manager = SeedManager(host)
    step = torch.compile(lambda x: host(x).square().mean(), backend="aot_eager")
    x = torch.randn(3, 4)
    for _ in range(3):
        step(x).backward()
    manager.germinate("0.relu", Scale(), name="a")
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(3):
            step(x).backward()
    assert all(p.grad is not None for p in manager.seed_parameters())
    assert fxgraft.compile_report(host).uncompiled_calls == 0
    whole = torch.compile(lambda x: host(x).sum(), backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"compiled code of its own, by host\.compile"):
        whole(x)
