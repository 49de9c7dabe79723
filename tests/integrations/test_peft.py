"""PEFT's LoRA as seeds: the numbers are PEFT's, and so is the adapter that is saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers.pytorch_utils import Conv1D

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.errors import BlueprintError
from fxgraft.integrations.peft import LoraBranch, adapter_state, lora, save_adapter
from tests.harness import assert_same_bits

CONFIG = LoraConfig(r=2, lora_alpha=8)
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (5,), generator=torch.Generator().manual_seed(2))


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


def grown(config: LoraConfig = CONFIG) -> tuple[TwoLayers, fxgraft.Host, SeedManager, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = TwoLayers()
    host = fxgraft.trace(model, (X,))
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    manager = SeedManager(host, optimizer)
    manager.germinate("fc2", lora(config, model.fc2), source="relu", name="a")
    return model, host, manager, optimizer


def train(host: nn.Module, optimizer: torch.optim.Optimizer, steps: int, after: Any = lambda: None) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(host(X), Y).backward()
        optimizer.step()
        after()


def peft_of(model: nn.Module, state: dict[str, torch.Tensor], config: LoraConfig) -> PeftModel:
    """PEFT's own model with those weights."""
    config = copy.copy(config)
    config.target_modules = ["fc2"]
    adapted = get_peft_model(copy.deepcopy(model), config)
    names = {name.replace(".default", ""): name for name in adapted.state_dict()}
    adapted.load_state_dict({names[name]: value for name, value in state.items()}, strict=False)
    return adapted


RSLORA = LoraConfig(r=4, lora_alpha=4, use_rslora=True)


@pytest.mark.parametrize("config", [CONFIG, RSLORA], ids=["lora", "rslora"])
def test_value_and_gradients_are_those_of_peft(config: LoraConfig) -> None:
    model, host, manager, optimizer = grown(config)
    train(host, optimizer, 3, manager.step)
    manager.blend("a", steps=1)
    manager.step()
    adapted = peft_of(model, adapter_state(manager.seeds.values()), config)
    torch.testing.assert_close(host(X), adapted(X), rtol=1e-6, atol=1e-6)
    host.zero_grad()
    nn.functional.cross_entropy(host(X), Y).backward()
    nn.functional.cross_entropy(adapted(X), Y).backward()
    theirs = adapted.base_model.model.fc2
    branch = manager.seeds["a"].module
    for part in ("lora_A", "lora_B"):
        ours = branch.get_submodule(part).weight.grad
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, getattr(theirs, part)["default"].weight.grad, rtol=1e-5, atol=1e-7)


def test_at_birth_it_adds_nothing_and_can_learn() -> None:
    model, host, manager, _ = grown()
    with manager.at_alpha("a", 1.0):
        assert_same_bits(host(X), model(X), "with and without the seed")
    module = manager.seeds["a"].module
    assert isinstance(module, LoraBranch)
    assert module.lora_B.weight.abs().max() == 0
    assert module.scaling == 4.0


def test_a_saved_adapter_is_loaded_by_peft(tmp_path: Path) -> None:
    model, host, manager, optimizer = grown()
    train(host, optimizer, 5, manager.step)
    manager.blend("a", steps=2)
    train(host, optimizer, 5, manager.step)
    manager.fossilize("a")
    train(host, optimizer, 3, manager.step)
    save_adapter(tmp_path / "adapter", manager.seeds.values(), CONFIG)
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "adapter"))
    torch.testing.assert_close(loaded(X), host(X), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(loaded(X), model(X)), "the adapter does something"


def test_a_run_with_lora_seeds_goes_on(tmp_path: Path) -> None:
    _, host, manager, optimizer = grown(LoraConfig(r=2, lora_dropout=0.5))
    train(host, optimizer, 3, manager.step)
    manager.save(tmp_path / "run")
    train(host, optimizer, 3, manager.step)
    torch.manual_seed(0)
    model = TwoLayers()
    again = fxgraft.trace(model, (X,))
    other = torch.optim.AdamW(again.parameters(), 1e-2)
    blueprint = lora(LoraConfig(r=2, lora_dropout=0.5), model.fc2)
    resumed = SeedManager.load(tmp_path / "run", again, other, blueprints={"a": blueprint})
    train(again, other, 3, resumed.step)
    assert_same_bits(dict(again.state_dict()), dict(host.state_dict()), "resumed and whole")


@pytest.mark.parametrize(
    ("layer", "example"),
    [(nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 5, 5)), (Conv1D(4, 3), torch.randn(2, 3))],
    ids=["Conv2d", "Conv1D"],
)
def test_other_layers_that_peft_adapts(layer: nn.Module, example: torch.Tensor) -> None:
    model = nn.Sequential(nn.Identity(), layer)
    manager = SeedManager(fxgraft.trace(model, (example,)))
    config = LoraConfig(r=2, fan_in_fan_out=isinstance(layer, Conv1D))
    seed = manager.germinate("1", lora(config, layer), source="0")
    assert seed.stage is Stage.TRAINING
    assert type(model[1]) is type(layer), "PEFT did not wrap the model's own layer"


def test_a_whole_layer_of_peft_is_a_seed_too() -> None:
    """As any module: here one that replaces the layer behind which it stands."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
    manager = SeedManager(fxgraft.trace(model, (X,)))
    replacement = LoraLinear(copy.deepcopy(model[2]), "default", LoraConfig(r=2), r=2, lora_alpha=2)
    seed = manager.germinate("2", replacement, source="1", mode="convex", name="whole")
    assert seed.module is replacement


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    model, _, manager, _ = grown()
    with pytest.raises(BlueprintError, match="expected plain LoRA"):
        manager.germinate("fc2", lora(LoraConfig(r=2, use_dora=True), model.fc2), source="relu")
    with pytest.raises(BlueprintError, match="LayerNorm"):
        manager.germinate("fc2", lora(CONFIG, nn.LayerNorm(8)), source="relu")
    with pytest.raises(ValueError, match="expected alpha 1"):
        adapter_state(manager.seeds.values())
    manager.cull("a")
    with pytest.raises(ValueError, match="one at least"):
        save_adapter(tmp_path, manager.seeds.values(), CONFIG)
