"""The real Lightning germinates, blends, saves and resumes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.errors import CheckpointError
from fxgraft.integrations.lightning import ENTRY, GrowCallback
from tests.harness import assert_same_bits

pytestmark = [
    # Lightning's advice about workers, loggers and log intervals, and its own use of what torch deprecates.
    pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:lightning"),
]

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(2))


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        self.host = fxgraft.trace(model, (X[:4],))
        self.batches: list[int] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.host(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def decide(manager: SeedManager) -> None:
    step = manager.steps
    if step == 3:
        manager.germinate("1", "mlp", name="a", hidden=4)
    if step == 7:
        manager.germinate("1", "mlp", name="b", hidden=4)
    if step == 12:
        manager.blend("a", steps=12)
    if step == 26:
        manager.fossilize("a")


def fit(
    folder: Path, epochs: int, resume: Path | None = None, on_step: Any = decide, **options: Any
) -> tuple[Module, GrowCallback]:
    module = Module()
    callback = GrowCallback(module.host, on_step)
    saver = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[callback, saver], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, generator=torch.Generator().manual_seed(3))
    trainer.fit(module, loader, ckpt_path=resume)
    return module, callback


def weights(module: Module) -> dict[str, torch.Tensor]:
    return dict(sorted(module.host.state_dict().items()))


def optimizer_state(callback: GrowCallback) -> dict[str, torch.Tensor]:
    manager = callback.manager
    assert manager is not None
    names = {parameter: name for name, parameter in manager.host.named_parameters()}
    (optimizer,) = manager._optimizers
    found = {
        f"{names[p]}.{key}": value for p, state in optimizer.state.items() for key, value in state.items()
    }
    return dict(sorted(found.items()))


@pytest.mark.parametrize("epoch", [0, 1, 2])  # 10 steps each: in TRAINING, in BLENDING, with a fossil
def test_lightning_grows_saves_and_resumes_bit_for_bit(epoch: int, tmp_path: Path) -> None:
    whole, callback = fit(tmp_path / "whole", 4)
    assert callback.manager is not None
    assert callback.manager.steps == 40
    assert callback.manager.seeds["a"].stage is Stage.FOSSILIZED
    resumed, other = fit(tmp_path / "resumed", 4, tmp_path / "whole" / f"epoch={epoch}.ckpt")
    assert other.manager is not None
    assert other.manager.steps == 40
    assert [(s.name, s.stage) for s in other.manager.seeds.values()] == [
        (s.name, s.stage) for s in callback.manager.seeds.values()
    ]
    assert_same_bits(weights(resumed), weights(whole), "resumed and whole")
    assert_same_bits(optimizer_state(other), optimizer_state(callback), "optimizer state")


def test_a_checkpoint_has_what_grew_and_no_pickled_seed(tmp_path: Path) -> None:
    fit(tmp_path, 1)
    found = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    names = {name.split(".")[1] for name in found["state_dict"]}
    assert names == {"0", "3", "_seeds"}
    assert found["state_dict"]["host._seeds._structure"].dtype == torch.uint8
    assert found[ENTRY]["host"].dtype == torch.uint8


def test_a_checkpoint_of_a_host_that_has_not_grown_is_a_plain_ones(tmp_path: Path) -> None:
    fit(tmp_path, 1, on_step=lambda manager: None)
    found = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["state_dict"]
    assert set(found) == {f"host.{i}.{name}" for i in (0, 3) for name in ("weight", "bias")}


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    _, callback = fit(tmp_path, 1, accumulate_grad_batches=5)
    assert callback.manager is not None
    assert callback.manager.steps == 2


def test_an_isolated_seed_is_not_felt_where_gradients_are_clipped(tmp_path: Path) -> None:
    def grow(manager: SeedManager) -> None:
        if not manager.seeds:
            manager.germinate("1", "mlp", name="a")

    grown, callback = fit(tmp_path / "a", 1, on_step=grow, gradient_clip_val=0.05)
    plain, _ = fit(tmp_path / "b", 1, on_step=lambda manager: None, gradient_clip_val=0.05)
    loose, _ = fit(tmp_path / "c", 1, on_step=lambda manager: None)
    assert callback.manager is not None
    assert callback.manager.seeds["a"].trained_steps == 9
    own = {name: value for name, value in grown.host.state_dict().items() if name[0].isdigit()}
    assert_same_bits(own, dict(plain.host.state_dict()), "with and without a seed")
    assert not torch.equal(loose.host.state_dict()["0.weight"], plain.host.state_dict()["0.weight"])


def test_a_run_that_failed_leaves_the_clipping_as_it_was() -> None:
    def fail(manager: SeedManager) -> None:
        raise RuntimeError("out of ideas")

    module = Module()
    callback = GrowCallback(module.host, fail)
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[callback], accelerator="cpu", logger=False, gradient_clip_val=0.5
    )
    with pytest.raises(RuntimeError, match="out of ideas"):
        trainer.fit(module, DataLoader(TensorDataset(X, Y)))
    assert trainer.gradient_clip_val == 0.5


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    callback = GrowCallback(Module().host)
    trainer = pl.Trainer(max_epochs=1, callbacks=[callback], accelerator="cpu", logger=False)
    with pytest.raises(ValueError, match="not among its modules"):
        trainer.fit(Module(), DataLoader(TensorDataset(X, Y)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False)
        plain.fit(Module(), DataLoader(TensorDataset(X, Y), batch_size=4))
        plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(CheckpointError, match="was not saved with GrowCallback"):
        fit(tmp_path / "new", 2, tmp_path / "plain.ckpt")


class _Saves(pl.Callback):
    """Saves a checkpoint at the end of a batch, or in the middle of one, behind the optimizer's step."""

    def __init__(self, file: Path, in_the_middle: bool):
        self.file, self.in_the_middle = file, in_the_middle

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 14 and not self.in_the_middle:
            trainer.save_checkpoint(self.file)

    def on_before_zero_grad(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        if self.in_the_middle and trainer.global_step == 14:
            optimizer.register_step_post_hook(self._save(trainer))

    def _save(self, trainer: pl.Trainer) -> Any:
        def save(*_: Any) -> None:
            if not self.file.exists():
                trainer.save_checkpoint(self.file)

        return save


@pytest.mark.parametrize("at", ["before", "behind"])
def test_a_checkpoint_of_another_callback_has_the_step(tmp_path: Path, at: str):
    def run(saves: list[Any], resume: Path | None = None) -> tuple[Module, GrowCallback]:
        module = Module()
        grow = GrowCallback(module.host, decide)
        trainer = pl.Trainer(
            max_steps=20, max_epochs=-1, callbacks=[*saves, grow] if at == "before" else [grow, *saves],
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False,
        )  # fmt: skip
        loader = DataLoader(TensorDataset(X, Y), batch_size=4, generator=torch.Generator().manual_seed(3))
        trainer.fit(module, loader, ckpt_path=resume)
        return module, grow

    file = tmp_path / "saved.ckpt"
    whole, ours = run([_Saves(file, in_the_middle=False)])
    resumed, theirs = run([], file)
    assert ours.manager.steps == theirs.manager.steps == 20
    assert ours.manager.seeds["a"].alpha == theirs.manager.seeds["a"].alpha > 0
    assert weights(whole).keys() == weights(resumed).keys()


def test_a_checkpoint_from_the_middle_of_a_batch_misses_no_step(tmp_path: Path):
    def run(saves: list[Any], resume: Path | None = None) -> GrowCallback:
        module = Module()
        grow = GrowCallback(module.host, decide)
        pl.Trainer(
            max_steps=20, max_epochs=-1, callbacks=[grow, *saves], accelerator="cpu", logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        ).fit(module, DataLoader(TensorDataset(X, Y), batch_size=4), ckpt_path=resume)  # fmt: skip
        return grow

    file = tmp_path / "saved.ckpt"
    whole = run([_Saves(file, in_the_middle=True)])
    entry = torch.load(file, weights_only=False)
    saved_at = entry["global_step"]
    resumed = run([], file)
    made = {key: value for key, value in entry["callbacks"].items() if "GrowCallback" in key}
    assert [value["is_behind"] for value in made.values()] == [True]
    assert whole.manager.steps == 20
    assert resumed.manager.steps == 20 - saved_at + next(value["steps"] for value in made.values()) + 1


class _WithData(Module):
    lr, batch_size = 0.01, 4

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(X, Y), batch_size=self.batch_size)


@pytest.mark.parametrize("name", ["LearningRateFinder", "BatchSizeFinder"])
def test_a_callback_that_trains_for_a_trial_is_refused(name: str):
    module = _WithData()
    trial = getattr(pl.callbacks, name)()
    trainer = pl.Trainer(
        max_steps=4, callbacks=[GrowCallback(module.host, decide), trial], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"{name} trains for a trial, and takes weights back, but not"):
        trainer.fit(module)
