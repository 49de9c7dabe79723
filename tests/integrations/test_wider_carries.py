"""A host that grew wider in a training that a framework leads: its files carry it, and a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxgraft
from fxgraft import SeedManager
from fxgraft.errors import CheckpointError
from fxgraft.integrations import lightning as of_lightning
from fxgraft.integrations.accelerate import Growth
from tests.harness import assert_same_bits
from tests.integrations.test_hugging_face import BEST, Scores, resumed_and_whole
from tests.integrations.trainers import host, trainer

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*:{kind}:lightning")
    for kind in ("UserWarning", "DeprecationWarning", "FutureWarning")
]

WIDE = {
    "gpt2": ("transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.act"),
    "llama": ("model.embed_tokens", "model.layers.0.mlp.act_fn"),
}


def growing(name: str, at: int = 1) -> Callable[[SeedManager], None]:
    """Wider, then a seed there, then wider again."""
    group, slot = WIDE[name]

    def decide(manager: SeedManager) -> None:
        if manager.steps == at:
            manager.widen(group, 8)
            manager.germinate(slot, "scale_shift", name="a", isolated=False)
            manager.blend("a", steps=0)
            manager.fossilize("a")
        if manager.steps == at + 3:
            manager.widen(group, 8)

    return decide


# transformers' Trainer


@pytest.mark.parametrize("name", WIDE)
def test_a_resumed_run_of_the_trainer_is_the_whole_run(name: str, tmp_path: Path) -> None:
    other = resumed_and_whole(name, tmp_path, growing(name))
    assert other.manager is not None
    assert [w.by for w in other.manager.host.widenings] == [8, 8]


def test_a_folder_of_the_trainer_grows_a_fresh_host(tmp_path: Path) -> None:
    net = host("gpt2")
    run, _ = trainer("gpt2", tmp_path / "run", net, growing("gpt2"))
    run.train()
    run.save_model(str(tmp_path / "grown"))
    with pytest.raises(ValueError, match=r"this model has grown.*load_file"):
        type(net._root).from_pretrained(tmp_path / "grown")
    again = host("gpt2", use_cache=False)
    again.load_state_dict(load_file(tmp_path / "grown" / "model.safetensors"), strict=False)
    assert_same_bits(dict(again.state_dict()), dict(net.state_dict()), "carried")
    evaluating, _ = trainer("gpt2", tmp_path / "again", again)
    assert evaluating.evaluate()["eval_loss"] == run.evaluate()["eval_loss"]
    trained = evaluating.train()  # another training leads it
    assert trained.global_step == 6


def test_a_best_model_from_before_is_refused(tmp_path: Path) -> None:
    scores = Scores(1.0, 0.0, 0.0, 0.0)
    decide = growing("gpt2", at=3)
    run, _ = trainer("gpt2", tmp_path, host("gpt2"), decide, also={"compute_metrics": scores}, **BEST)
    with pytest.raises((CheckpointError, RuntimeError), match=r"grown wider|size mismatch"):
        run.train()


# Lightning


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.host = fxgraft.trace(model, (torch.randn(4, 6),))

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.cross_entropy(self.host(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-2)


def widening(manager: SeedManager) -> None:
    if manager.steps == 2:
        manager.widen("0", 3)
    if manager.steps == 4:
        manager.germinate("1", "low_rank", name="a", rank=2)
    if manager.steps == 9:
        manager.cull("a")
        manager.widen("0", 1)


def fit(folder: Path, resume: Path | None = None) -> Module:
    module = Module()
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(
        torch.randn(24, 6, generator=generator), torch.randint(0, 3, (24,), generator=generator)
    )
    run = pl.Trainer(
        default_root_dir=folder, max_epochs=2, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[
            of_lightning.GrowCallback(module.host, widening),
            ModelCheckpoint(folder, "{epoch}", save_top_k=-1),
        ],
    )  # fmt: skip
    run.fit(module, DataLoader(data, batch_size=4), ckpt_path=resume)
    return module


def test_a_run_of_lightning_goes_on(tmp_path: Path) -> None:
    whole = fit(tmp_path / "a")
    resumed = fit(tmp_path / "b", tmp_path / "a" / "epoch=0.ckpt")
    assert whole.host.get_submodule("0").out_features == 12
    assert_same_bits(dict(resumed.state_dict()), dict(whole.state_dict()), "weights")
    loaded = Module.load_from_checkpoint(tmp_path / "a" / "epoch=0.ckpt")
    assert loaded.host.get_submodule("0").out_features == 11


# Accelerate


class World:
    def __init__(self) -> None:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        self.accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        net = fxgraft.trace(model, (torch.randn(4, 6),))
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        self.host, self.optimizer = self.accelerator.prepare(net, optimizer)
        self.growth = Growth(self.accelerator, self.host, self.optimizer)

    def train(self, steps: range) -> dict[str, Tensor]:
        for i in steps:
            torch.manual_seed(i)
            self.accelerator.backward(self.host(torch.randn(4, 6)).square().mean())
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.growth.step()
            widening(self.growth.manager)
        return dict(self.host.state_dict())


@pytest.mark.parametrize("at", [3, 7])
def test_a_state_of_accelerate_goes_on(at: int, tmp_path: Path) -> None:
    whole = World()
    whole.train(range(at))
    whole.accelerator.save_state(str(tmp_path))
    expected = whole.train(range(at, 12))
    resumed = World()
    resumed.accelerator.load_state(str(tmp_path))
    assert_same_bits(resumed.train(range(at, 12)), expected, "resumed")
    assert resumed.host.get_submodule("0").out_features == 12
