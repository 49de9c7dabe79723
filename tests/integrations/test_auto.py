"""``GrowCallback("auto")``: the real Trainers let a host grow by itself, and go on with that."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer

import fxgraft
from fxgraft.integrations import accelerate, hugging_face, lightning
from tests.harness import assert_same_bits
from tests.integrations.trainers import arguments, data, host, plain

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:lightning"),
]

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] * X[:, 1] > 0).long()
QUICK: dict[str, Any] = {
    "when": [0.1, 0.5], "steps": 3, "blend": 2, "hold": 2, "gain": -10.0, "budget": 9.0,
    "blueprints": ["mlp", "norm"],
}  # fmt: skip


class Module(pl.LightningModule):
    """It logs, draws, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.host = fxgraft.trace(
            nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 2)), (X[:4],)
        )
        self.calls = 0

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.calls += 1
        loss = nn.functional.cross_entropy(self.host(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-2)

    def held_out(self) -> torch.Tensor:
        self.host.eval()
        return nn.functional.cross_entropy(self.host(X[32:]), Y[32:])


def fit(folder: Path, epochs: int, resume: Path | None = None, own: bool = False) -> Any:
    module = Module()
    grow = {**QUICK, "total_steps": 32, **({"evaluate": module.held_out} if own else {})}
    callback = lightning.GrowCallback("auto", grow=grow)
    saver = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[callback, saver], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(X, Y), batch_size=6, generator=torch.Generator().manual_seed(3))
    trainer.fit(module, loader, ckpt_path=resume)
    return module, callback


def test_lightning_grows_by_itself_and_resumes_to_the_bit(tmp_path: Path) -> None:
    module, callback = fit(tmp_path / "a", 4, own=True)
    assert callback.growth.done
    assert any(entry["what"] == "kept" for entry in callback.growth.history)
    again, resumed = fit(tmp_path / "b", 4, tmp_path / "a" / "epoch=1.ckpt", own=True)
    assert resumed.growth.history == callback.growth.history
    assert_same_bits(dict(again.host.state_dict()), dict(module.host.state_dict()), "resumed")


def test_lightning_without_an_evaluation_measures_on_the_latest_batches(tmp_path: Path) -> None:
    module, callback = fit(tmp_path, 4)
    assert any(entry["what"] == "kept" for entry in callback.growth.history)
    assert module.calls == 32, "what was measured left a trace in the module"
    assert "log" not in module.__dict__


@pytest.mark.parametrize("own", [True, False])
def test_the_trainer_of_transformers_grows_by_itself(tmp_path: Path, own: bool) -> None:
    net = host("bert")
    rows = data("bert")
    batch = {key: torch.stack([row[key] for row in rows[16:]]) for key in rows[0]}
    grow = {**QUICK, "candidates": net.slots.select("bert.encoder.layer.0.output.*"), "when": [0.1]}
    if own:
        grow["evaluate"] = lambda: net.eval()(**batch).loss
    callback = hugging_face.GrowCallback("auto", grow=grow)
    trainer = Trainer(
        net, arguments(tmp_path, max_steps=14), train_dataset=rows[:16], callbacks=[callback]
    )  # found when the trainer is made
    trainer.train()
    assert callback.growth is not None
    assert any(entry["what"] == "kept" for entry in callback.growth.history), callback.growth


def bert_trainer(folder: Path) -> tuple[fxgraft.Host, Trainer, hugging_face.GrowCallback]:
    """A host that grows by itself, with an evaluation of its own, and saves on the way."""
    net, rows = host("bert"), data("bert")
    batch = {key: torch.stack([row[key] for row in rows[16:]]) for key in rows[0]}
    grow = {
        **QUICK, "candidates": net.slots.select("bert.encoder.layer.0.output.*"), "total_steps": 24,
        "evaluate": lambda: net.eval()(**batch).loss,
    }  # fmt: skip
    callback = hugging_face.GrowCallback("auto", grow=grow)
    trainer = Trainer(
        net, arguments(folder, max_steps=24, save_steps=4), train_dataset=rows[:16], callbacks=[callback]
    )
    return net, trainer, callback


def test_the_trainer_of_transformers_resumes_a_growth_to_the_bit(tmp_path: Path) -> None:
    net, whole, callback = bert_trainer(tmp_path)
    whole.train()
    assert callback.growth is not None
    steps = {entry["what"]: entry["step"] for entry in reversed(callback.growth.history)}
    assert steps["exploring"] < 4 < steps["kept"] < 12, "one resumes on the way to it, one after it"
    for at in (4, 12):
        again, resumed, other = bert_trainer(tmp_path)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
        assert other.growth is not None
        assert other.growth.history == callback.growth.history
        assert_same_bits(dict(again.state_dict()), dict(net.state_dict()), f"resumed at {at}")


class Loop:
    """A loop of Accelerate's kind whose host grows by itself."""

    def __init__(self, named: bool = False) -> None:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        self.accelerator = Accelerator(cpu=True)
        host = Module().host
        optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        self.host, self.optimizer, self.schedule = self.accelerator.prepare(host, optimizer, schedule)
        grow = {**QUICK, "total_steps": 32, "evaluate": self.held_out}
        self.callback = accelerate.GrowCallback(self.host if named else "auto", self.accelerator, grow=grow)

    def held_out(self) -> torch.Tensor:
        self.host.eval()
        return nn.functional.cross_entropy(self.host(X[32:]), Y[32:])

    def train(self, steps: range) -> None:
        for i in steps:
            at = slice(i % 5 * 6, i % 5 * 6 + 6)
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.host(X[at]), Y[at])
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.schedule.step()
            self.callback.step(loss)


@pytest.mark.parametrize("at", [5, 9])
def test_accelerate_grows_by_itself_and_resumes_to_the_bit(at: int, tmp_path: Path) -> None:
    whole = Loop()
    whole.train(range(at))
    whole.accelerator.save_state(str(tmp_path))
    whole.train(range(at, 32))
    assert whole.callback.growth is not None
    assert any(entry["what"] == "kept" for entry in whole.callback.growth.history), whole.callback.growth
    resumed = Loop(named=True)
    resumed.train(range(2))  # it goes on with the state in the place of what it began
    resumed.accelerator.load_state(str(tmp_path))
    resumed.train(range(at, 32))
    assert resumed.callback.growth is not None
    assert resumed.callback.growth.history == whole.callback.growth.history
    assert_same_bits(dict(resumed.host.state_dict()), dict(whole.host.state_dict()), "resumed")


def test_accelerate_says_what_is_missing() -> None:
    loop = Loop()
    with pytest.raises(ValueError, match="evaluate"):
        accelerate.GrowCallback("auto", loop.accelerator, grow={})
    with pytest.raises(ValueError, match="the only word is 'auto'"):
        accelerate.GrowCallback("soon", loop.accelerator, grow={"evaluate": loop.held_out})
    with pytest.raises(ValueError, match="this host has one already"):
        accelerate.GrowCallback("auto", loop.accelerator, grow={"evaluate": loop.held_out})
    loop.accelerator._optimizers.clear()
    with pytest.raises(ValueError, match="an optimizer of the host's parameters; it has none"):
        accelerate.GrowCallback("auto", loop.accelerator, grow={"evaluate": loop.held_out})
    loop.accelerator.prepare(Module().host)
    with pytest.raises(ValueError, match="there are 2"):
        accelerate.GrowCallback("auto", loop.accelerator, grow={"evaluate": loop.held_out})


def test_what_cannot_grow_by_itself_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a Trainer of a host"):
        Trainer(plain("bert"), arguments(tmp_path), callbacks=[hugging_face.GrowCallback("auto")])
    with pytest.raises(ValueError, match="the only word is 'auto'"):
        lightning.GrowCallback("soon")
    with pytest.raises(ValueError, match="grow"):
        lightning.GrowCallback(Module().host, grow={"budget": 2.0})

    class Two(Module):
        def __init__(self) -> None:
            super().__init__()
            self.other = fxgraft.trace(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), (X[:4],))

    trainer = pl.Trainer(
        max_epochs=1, callbacks=[lightning.GrowCallback("auto")], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="there are 2"):
        trainer.fit(Two(), DataLoader(TensorDataset(X, Y)))


@pytest.mark.parametrize(
    ("grow", "error", "said"),
    [
        (
            {"budgett": 2.0},
            ValueError,
            "SeedManager.autogrow has no argument 'budgett'; did you mean 'budget'?",
        ),
        (
            {"lr": 2.0},
            ValueError,
            "has no argument 'lr'. Expected some of evaluate, candidates, budget, when",
        ),
        (2.0, TypeError, "expected arguments of SeedManager.autogrow, as {'budget': 2.0}; got 2.0"),
    ],
)
def test_what_growth_does_not_take_is_refused_at_once(grow: Any, error: type[Exception], said: str) -> None:
    model = fxgraft.trace(nn.Sequential(nn.Linear(6, 2), nn.ReLU()), (X[:4],))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    begins: list[tuple[str, Callable[[], Any]]] = [
        ("GrowCallback(grow): ", lambda: hugging_face.GrowCallback("auto", grow=grow)),
        ("GrowCallback(grow): ", lambda: lightning.GrowCallback("auto", grow=grow)),
        ("Trainer(grow): ", lambda: fxgraft.training.Trainer(model, optimizer, nn.MSELoss(), grow=grow)),
    ]
    for where, begin in begins:
        with pytest.raises(error, match=re.escape(where) + ".*" + re.escape(said)):
            begin()
