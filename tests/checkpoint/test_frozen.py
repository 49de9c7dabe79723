"""What was frozen in a seed is frozen after a load; where the model differs, that is said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.errors import StageError
from tests.harness import assert_same_bits, frozen

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
SAID = "require gradients, other than in the saved run"


class Frozen(nn.Linear):
    """A blueprint that makes a part of itself frozen."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        nn.init.zeros_(self.weight)
        self.bias.requires_grad_(False).zero_()


def fresh() -> tuple[fxgraft.Host, torch.optim.Optimizer]:
    torch.manual_seed(0)
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), (X,))
    return host, torch.optim.AdamW(host.parameters(), 1e-2)


def train(manager: fxgraft.SeedManager, steps: int) -> None:
    for _ in range(steps):
        for optimizer in manager.optimizers:
            optimizer.zero_grad()
        manager.host(X).square().mean().backward()
        for optimizer in manager.optimizers:
            optimizer.step()
        manager.step()


def of(manager: fxgraft.SeedManager) -> nn.Module:
    module = manager.seeds["a"].module
    assert module is not None
    return module


def fossil(manager: fxgraft.SeedManager) -> None:
    manager.blend("a", steps=0)
    manager.fossilize("a")
    of(manager).requires_grad_(False)


def part(manager: fxgraft.SeedManager) -> None:
    next(of(manager).parameters()).requires_grad_(False)


def part_while_it_blends(manager: fxgraft.SeedManager) -> None:
    manager.blend("a", steps=9)
    part(manager)


@pytest.mark.parametrize("blueprint", ["mlp", "Frozen"])
@pytest.mark.parametrize("change", [fossil, part, part_while_it_blends])
def test_a_resumed_run_trains_what_the_saved_one_did(
    change: Callable[[fxgraft.SeedManager], None], blueprint: str, tmp_path: Path
) -> None:
    host, optimizer = fresh()
    manager = fxgraft.SeedManager(host, optimizer)
    blueprints = {"Frozen": lambda slot: Frozen()}
    manager.germinate("1", blueprints.get(blueprint, blueprint), name="a")
    train(manager, 3)
    change(manager)
    train(manager, 2)
    manager.save(tmp_path / "run")
    given = {"a": blueprints[blueprint]} if blueprint in blueprints else None
    resumed = fxgraft.SeedManager.load(tmp_path / "run", *fresh(), blueprints=given)
    wanted = {name: p.requires_grad for name, p in host.named_parameters()}
    assert {name: p.requires_grad for name, p in resumed.host.named_parameters()} == wanted
    assert not all(wanted.values())
    train(manager, 3)
    train(resumed, 3)
    assert_same_bits(frozen(dict(resumed.host.state_dict())), frozen(dict(host.state_dict())), "host")


def test_what_a_blueprint_froze_may_have_been_let_train(tmp_path: Path) -> None:
    manager = fxgraft.SeedManager(*fresh())
    manager.germinate("1", lambda slot: Frozen(), name="a")
    for parameter in of(manager).parameters():
        parameter.requires_grad_(True)
    manager.save(tmp_path / "run")
    resumed = fxgraft.SeedManager.load(tmp_path / "run", *fresh(), blueprints={"a": lambda slot: Frozen()})
    assert all(parameter.requires_grad for parameter in of(resumed).parameters())


def test_the_entry_of_a_state_says_it_too() -> None:
    host, optimizer = fresh()
    manager = fxgraft.SeedManager(host, optimizer)
    host.structure_entry = lambda host: manager.describe()
    manager.germinate("1", "mlp", name="a")
    part(manager)
    other, _ = fresh()
    other.load_state_dict(host.state_dict())
    wanted = {name: p.requires_grad for name, p in host.named_parameters()}
    assert {name: p.requires_grad for name, p in other.named_parameters()} == wanted


def test_a_model_that_is_frozen_otherwise_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    host, optimizer = fresh()
    manager = fxgraft.SeedManager(host, optimizer)
    host.get_submodule("0").requires_grad_(False)
    manager.save(tmp_path / "run")
    again, other = fresh()
    again.get_submodule("2").requires_grad_(False)
    with caplog.at_level(logging.WARNING, "fxgraft"):
        fxgraft.SeedManager.load(tmp_path / "run", again, other)
    said = [text for text in caplog.messages if SAID in text]
    assert ["0.bias, 0.weight" in text for text in said] == [True, False]
    assert ["2.bias, 2.weight" in text for text in said] == [False, True]
    same, other = fresh()
    same.get_submodule("0").requires_grad_(False)
    caplog.clear()
    fxgraft.SeedManager.load(tmp_path / "run", same, other)
    assert not [text for text in caplog.messages if SAID in text]


def test_no_file_is_written_of_what_holds_for_a_moment(tmp_path: Path) -> None:
    manager = fxgraft.SeedManager(*fresh())
    manager.germinate("1", "mlp", name="a", objective="shadow")
    for moment in (manager.shadow, lambda: manager.at_alpha("a", 0.5)):
        with moment(), pytest.raises(StageError, match=r"cannot save inside .*: do it afterwards"):
            manager.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()
