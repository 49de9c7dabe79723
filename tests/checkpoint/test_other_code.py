"""A file that is loaded into a model of the same tensors that computes something else: it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgraft
from fxgraft.checkpoint import file
from fxgraft.errors import CheckpointError
from tests.harness import warnings_in

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
SAID = "the code of the model is not that of the saved run: "


class Base(nn.Module):
    act: type[nn.Module] = nn.ReLU

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest, self.last = nn.Linear(4, 12), self.act(), nn.Linear(12, 2)
        self.blocks = nn.ModuleList([ResidualRelu() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        for block in self.blocks:
            hidden = block(hidden)
        return self.last(self.rest(hidden))


class ResidualRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.linear(x))


class OtherModule(Base):
    act = nn.GELU


class OtherSetting(Base):
    def __init__(self) -> None:
        super().__init__()
        self.rest = nn.LeakyReLU(0.3)


class OtherOperation(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class OtherOrder(Base):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.rest(self.first(x))
        for block in self.blocks:
            hidden = block(hidden)
        return self.last(hidden)


class OtherInModes(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.1, self.training)


OTHERS = {
    OtherModule: "rest is GELU(approximate='none'), and was ReLU()",
    OtherSetting: "rest is LeakyReLU(negative_slope=0.3), and was ReLU()",
    OtherOperation: "the model's forward has `%tanh = call_method[target=tanh](args = (%last,), "
    "kwargs = {})`, where it was `return last`",
    OtherOrder: "the model's forward has `%rest = call_module[target=rest](args = (%first,), kwargs = {})`, "
    "where it was `%blocks_0 = call_module[target=blocks.0](args = (%first,), kwargs = {})`",
}


def made(model: type[nn.Module]) -> tuple[fxgraft.Host, torch.optim.Optimizer]:
    torch.manual_seed(0)
    host = fxgraft.trace(model(), (X,))
    return host, torch.optim.SGD(host.parameters(), 0.1)


def saved(path: Path, model: type[nn.Module] = Base) -> fxgraft.SeedManager:
    """With a seed, whose code is not the model's."""
    manager = fxgraft.SeedManager(*made(model))
    manager.germinate("first", "mlp", name="a")
    manager.blend("a", steps=0)
    manager.deepen("blocks")
    manager.save(path)
    return manager


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in warnings_in(caplog) if SAID in text]


@pytest.mark.parametrize("model", OTHERS)
def test_what_differs_is_said(
    model: type[nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path / "run")
    host, optimizer = made(model)
    fxgraft.SeedManager.load(tmp_path / "run", host, optimizer)
    fxgraft.load_model(tmp_path / "run", model())
    assert len(said(caplog)) == 2
    assert all(text.startswith(f"{tmp_path / 'run'}: {SAID}{OTHERS[model]}. Load") for text in said(caplog))


def test_the_same_model_is_loaded_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path / "run")
    host, optimizer = made(Base)
    resumed = fxgraft.SeedManager.load(tmp_path / "run", host, optimizer)
    resumed.save(tmp_path / "again")
    fxgraft.load_model(tmp_path / "again", Base().eval(), (X[:3],))
    assert warnings_in(caplog) == []


def test_files_of_before_and_damaged_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path / "run")
    manifest, tensors = file.read(tmp_path / "run")
    code = manifest.pop("code")
    assert len(json.dumps(code)) < len(json.dumps(manifest))
    assert len(set(code["texts"])) == len(code["texts"])
    file.write(tmp_path / "run", manifest, tensors)
    fxgraft.SeedManager.load(tmp_path / "run", *made(OtherModule))
    assert not said(caplog)
    damaged: list[Any] = [3, {}, {**code, "texts": []}, {**code, "graphs": {"": "x"}}, {**code, "modules": 3}]
    for one in damaged:
        file.write(tmp_path / "run", {**manifest, "code": one}, tensors)
        with pytest.raises(CheckpointError, match=r"cannot be read.*Load another checkpoint"):
            fxgraft.SeedManager.load(tmp_path / "run", *made(Base))


def test_operators_under_their_names_of_before_are_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path / "run", OtherInModes)
    manifest, tensors = file.read(tmp_path / "run")
    texts = manifest["code"]["texts"]
    before = [text.replace("fxgraft.capture.trace_operators", "fxgraft_passes.operators") for text in texts]
    assert before != texts
    manifest["code"]["texts"] = before
    file.write(tmp_path / "run", manifest, tensors)
    fxgraft.SeedManager.load(tmp_path / "run", *made(OtherInModes))
    assert not said(caplog)
