"""The real Accelerate trains a host that germinates, blends, saves and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

import fxgraft
from fxgraft import Stage
from fxgraft.errors import CheckpointError
from fxgraft.integrations.accelerate import FILE, Growth
from tests.harness import assert_same_bits

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:accelerate")

X = torch.randn(20, 4, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (20, 4), generator=torch.Generator().manual_seed(2))


class Job:
    """A training job of Accelerate's kind."""

    def __init__(self, **options: Any):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        self.accelerator = Accelerator(cpu=True, **options)
        host = fxgraft.trace(model, (X[0],))
        optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
        self.host, self.optimizer, self.scheduler = self.accelerator.prepare(host, optimizer, scheduler)
        self.growth = Growth(self.accelerator, self.host, self.optimizer, [self.scheduler])

    def train(self, batches: range, rank: int = 0) -> None:
        for i in batches:
            with self.accelerator.accumulate(self.host):
                own = (i + rank) % len(X)  # each rank its own
                loss = nn.functional.cross_entropy(self.host(X[own]), Y[own])
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
                self.growth.step(loss)
            manager = self.growth.manager
            if i == 2:  # of one shape, in another order than that of their names, with a gap
                for name in ("z", "gone", "a"):
                    manager.germinate("1", "mlp", name=name, hidden=4)
            if i == 4:
                manager.cull("gone")
                manager.germinate("1", "mlp", name="b", hidden=4)
            if i == 6:
                manager.blend("z", steps=6)

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(sorted(self.host.state_dict().items()))

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        names = {parameter: name for name, parameter in self.host.named_parameters()}
        states = self.optimizer.optimizer.state.items()
        found = [(names[p], key, value) for p, state in states for key, value in state.items()]
        return {f"{name}.{key}": value for name, key, value in sorted(found, key=lambda state: state[:2])}


@pytest.mark.parametrize("at", [4, 6, 9, 14])
def test_accelerate_grows_saves_and_resumes_bit_for_bit(at: int, tmp_path: Path) -> None:
    whole = Job()
    whole.train(range(at))
    whole.accelerator.save_state(str(tmp_path))
    assert (tmp_path / FILE).exists()
    assert (tmp_path / "model.safetensors").stat().st_size < 1000, "the weights are in our file alone"
    whole.train(range(at, 20))
    resumed = Job()
    resumed.accelerator.load_state(str(tmp_path))
    assert resumed.growth.manager.seeds.keys() >= {"z", "a"}
    resumed.train(range(at, 20))
    assert resumed.growth.manager.seeds["z"].stage is Stage.HOLDING
    assert_same_bits(resumed.weights(), whole.weights(), "resumed and whole")
    assert_same_bits(resumed.optimizer_state(), whole.optimizer_state(), "optimizer state")
    assert resumed.scheduler.scheduler.state_dict() == whole.scheduler.scheduler.state_dict()


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    job = Job(gradient_accumulation_steps=2)
    job.train(range(8))
    assert job.growth.manager.steps == 4


def test_another_model_beside_it_keeps_its_own_file(tmp_path: Path) -> None:
    job = Job()
    other = job.accelerator.prepare(nn.Linear(2, 2))
    job.accelerator.save_state(str(tmp_path))
    expected = {name: value.clone() for name, value in other.state_dict().items()}
    with torch.no_grad():
        other.weight.zero_()
    job.accelerator.load_state(str(tmp_path))
    assert_same_bits(dict(other.state_dict()), expected, "the other model")


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    job = Job()
    job.train(range(4))
    job.accelerator.save_state(str(tmp_path))
    (tmp_path / FILE).unlink()
    with pytest.raises(CheckpointError, match="not saved with a Growth"):
        Job().accelerator.load_state(str(tmp_path))
    with pytest.raises(ValueError, match="this host has one already"):
        Growth(job.accelerator, job.host, torch.optim.SGD(job.host.parameters(), 0.1))
    job.accelerator.free_memory()
    with pytest.raises(CheckpointError, match="prepare the host again"):
        job.accelerator.save_state(str(tmp_path))
    foreign = fxgraft.trace(nn.Linear(2, 2), (torch.randn(1, 2),))
    with pytest.raises(ValueError, match=r"accelerator\.prepare\(host\)"):
        Growth(job.accelerator, foreign, torch.optim.SGD(foreign.parameters(), 0.1))
