"""Back to a checkpoint in the live job: past growths of any kind, or not at all."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxgraft
from fxgraft.averaging import follow
from fxgraft.errors import CheckpointError, StageError
from fxgraft.training import Trainer, TrainingConfig, WatchdogConfig, checkpoints, rewind
from fxgraft.util.bits import same_bits

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (16,), generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(10, 12), nn.Linear(12, 10)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class TwoBlocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 10), nn.BatchNorm1d(10)
        self.blocks, self.head = nn.ModuleList([Residual(), Residual()]), nn.Linear(10, 3)

    def forward(self, x):
        x = self.norm(self.first(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Run:
    """A host with a fossil, after a few steps."""

    def __init__(self):
        torch.manual_seed(0)
        self.host = fxgraft.trace(TwoBlocks(), (X,))
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.manager = fxgraft.SeedManager(self.host, self.optimizer)
        self.manager.germinate("blocks.0", "mlp", hidden=4, name="a")
        self.train(2)
        self.manager.blend("a", steps=0)
        self.train(1)
        self.manager.fossilize("a")
        self.train(1)

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = cross_entropy(self.host(X), Y)
            loss.backward()
            self.optimizer.step()
            self.manager.step()
            losses.append(loss.item())
        return losses

    def rewind(self, path: Path, **options: Any) -> None:
        self.manager = rewind(self.manager, path, self.host, [self.optimizer], **options)

    def state(self) -> list[Any]:
        """Everything that must not change."""
        return copy.deepcopy(
            [
                dict(self.host.state_dict()),
                [p.grad for p in self.host.parameters()],
                self.optimizer.state_dict(),
                [(name, seed.stage, seed.alpha) for name, seed in self.manager.seeds.items()],
                torch.get_rng_state(),
                str(self.host.structure.key),
                self.host.widenings,
            ]
        )


def grows(run: Run, what: str) -> None:
    group = next(name for name, g in run.host.channels.items() if g.fixed is None and "up" in name)
    if what == "wider":
        run.manager.widen(group, 4)
    if what == "the stream":
        run.manager.widen(next(name for name, g in run.host.channels.items() if g.size == 10), 4)
    if what == "twice":
        run.manager.widen(group, 4)
        run.train(1)
        run.manager.widen(group, 2)
    if what == "wider and deeper":
        run.manager.deepen("blocks", at="end")
        run.manager.widen(group, 4)
    if what == "a seed":
        run.manager.germinate("head", "mlp", hidden=4)
    run.train(2)


@pytest.mark.parametrize("what", ["wider", "the stream", "twice", "wider and deeper", "a seed", "nothing"])
def test_the_run_goes_on_as_it_did_from_there(what: str, tmp_path: Path) -> None:
    run = Run()
    run.manager.save(tmp_path / "then")
    expected = run.train(4)
    grows(run, what)
    run.rewind(tmp_path / "then")
    assert run.train(4) == expected
    assert [tuple(p.shape) for p in run.host.parameters()] == [
        tuple(p.shape) for p in Run().host.parameters()
    ]
    run.rewind(tmp_path / "then")
    assert run.train(4) == expected


def test_a_host_that_was_wider_then_becomes_that_again(tmp_path: Path) -> None:
    run = Run()
    grows(run, "wider")
    run.manager.save(tmp_path / "then")
    expected = run.train(3)
    grows(run, "the stream")
    run.rewind(tmp_path / "then")
    assert run.train(3) == expected
    other = Run.__new__(Run)
    torch.manual_seed(0)
    other.host = fxgraft.trace(TwoBlocks(), (X,))
    other.optimizer = torch.optim.AdamW(other.host.parameters(), 1e-2)
    other.manager = fxgraft.SeedManager.load(tmp_path / "then", other.host, other.optimizer)
    assert other.train(3) == expected
    grows(other, "the stream")  # also what was loaded, and grew while it was, goes back
    other.rewind(tmp_path / "then")
    assert other.train(3) == expected


def test_forwards_and_to_another_branch(tmp_path: Path) -> None:
    run = Run()
    run.manager.save(tmp_path / "begin")
    expected = {}
    for name, what in (("first", "wider"), ("second", "the stream")):
        grows(run, what)
        run.manager.save(tmp_path / name)
        expected[name] = run.train(2)
    run.rewind(tmp_path / "begin")
    grows(run, "the stream")
    run.manager.save(tmp_path / "other")
    expected["other"] = run.train(2)
    for name in ("second", "first", "second", "other", "first"):
        run.rewind(tmp_path / name)
        assert run.train(2) == expected[name], name


def broken(run: Run, kind: str, folder: Path) -> Path:
    path = folder / "then"
    if kind == "missing":
        return folder / "typo"
    if kind == "another model":
        other = fxgraft.trace(nn.Sequential(nn.Linear(6, 3)), (X,))
        fxgraft.SeedManager(other, torch.optim.AdamW(other.parameters())).save(path)
    elif kind == "a seed from code":
        run.manager.germinate("head", lambda slot: nn.Linear(3, 3), name="mine")
        run.manager.save(path)
        run.manager.cull("mine")
    elif kind == "another optimizer":
        host = fxgraft.trace(TwoBlocks(), (X,))
        fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1)).save(path)
    else:
        run.manager.save(path)
        path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "torn", "another model", "another optimizer", "a seed from code"]
)
@pytest.mark.parametrize("what", ["nothing", "wider"])
def test_what_cannot_be_loaded_changes_nothing(kind: str, what: str, tmp_path: Path) -> None:
    run = Run()
    path = broken(run, kind, tmp_path)
    grows(run, what)
    before, manager = run.state(), run.manager
    with pytest.raises(CheckpointError, match=path.name):
        run.rewind(path)
    assert run.manager is manager
    for ours, theirs in zip(run.state(), before, strict=True):
        assert same_bits(ours, theirs), kind
    run.train(1)  # the manager goes on


def test_an_average_begins_anew_where_it_has_shrunk(tmp_path: Path) -> None:
    run = Run()
    average = AveragedModel(run.host, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    follow(run.host, average)
    average.update_parameters(run.host)
    run.manager.save(tmp_path / "then")
    grows(run, "wider")
    average.update_parameters(run.host)
    run.rewind(tmp_path / "then")
    assert [p.shape for p in average.module.parameters()] == [p.shape for p in run.host.parameters()]
    theirs = dict(average.module.named_parameters())
    assert same_bits(theirs["blocks.0.up.weight"], dict(run.host.named_parameters())["blocks.0.up.weight"])
    run.train(1)
    average.update_parameters(run.host)
    assert average.module(X).isfinite().all()


@pytest.mark.parametrize("value", [1e3, float("nan")])
@pytest.mark.parametrize("what", ["wider", "nothing"])
def test_a_trainer_rolls_back_past_a_widening(value: float, what: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spike = [0.0]
    host = fxgraft.trace(TwoBlocks(), (X,))
    trainer = Trainer(
        host,
        torch.optim.AdamW(host.parameters(), 1e-2),
        lambda out, target: cross_entropy(out, target) + spike[0],
        TrainingConfig(
            folder=str(tmp_path),
            checkpoint_every=6,
            watchdog=WatchdogConfig(least=2, patience=1, confirm=1),
        ),
    )
    trainer.manager.germinate("blocks.0", "mlp", hidden=4, name="a")
    trainer.step(X, Y)
    trainer.manager.blend("a", steps=0)
    trainer.step(X, Y)
    trainer.manager.fossilize("a")
    for _ in range(5):
        trainer.step(X, Y)
    keys = {name: tuple(t.shape) for name, t in host.state_dict().items() if name != "_structure"}
    if what == "wider":
        trainer.manager.widen(next(name for name in host.channels if "up" in name), 4)
    trainer.step(X, Y)
    spike[0] = value
    trainer.step(X, Y)
    spike[0] = 0.0
    assert {n: tuple(t.shape) for n, t in host.state_dict().items() if n in keys} == keys
    assert list(trainer.manager.seeds) == ["a"]
    assert trainer.step(X, Y) < 2
    assert len(trainer.rollbacks) == 1


WRONG = ["host", "optimizers", "none", "option", "value", "schedulers", "blueprint", "larger", "inference"]


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_change_nothing(what: str, tmp_path: Path) -> None:
    run, other = Run(), Run()
    works: list[Any] = [True]

    def factory(slot: Any) -> nn.Module:
        if not works[0]:
            raise OSError("the file with the weights is gone")
        return nn.Linear(3, 3) if works[0] is True else nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))

    run.manager.germinate("head", factory, name="mine")
    run.manager.save(tmp_path / "then")
    run.manager.cull("mine")
    grows(run, "nothing" if what == "larger" else "wider and deeper")
    works[0] = {"blueprint": False, "larger": 1}.get(what, True)
    host, optimizers = run.host, [run.optimizer]
    options: dict[str, Any] = {"blueprints": {"mine": factory}}
    if what == "host":
        host = other.host
    if what in ("optimizers", "none"):
        optimizers = [other.optimizer] if what == "optimizers" else []
    wrong = {"option": {"chek_every": 1}, "value": {"helper": "maybe"}, "schedulers": {"schedulers": []}}
    options |= wrong.get(what, {})
    before = run.state()
    errors = TypeError, ValueError, CheckpointError, StageError
    with pytest.raises(errors), torch.inference_mode(what == "inference"):
        rewind(run.manager, tmp_path / "then", host, optimizers, **options)
    for ours, theirs in zip(run.state(), before, strict=True):
        assert same_bits(ours, theirs), what
    run.train(1)


def test_a_manager_that_was_rewound_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    run.manager.save(tmp_path / "then")
    first = run.manager
    run.rewind(tmp_path / "then")
    for action in (
        first.step,
        lambda: first.germinate("head", "mlp"),
        lambda: first.save(tmp_path / "again"),
    ):
        with pytest.raises(StageError, match=r"rewind\(\) has returned another manager"):
            action()
    monkeypatch.setattr(fxgraft.SeedManager, "load", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.rewind(tmp_path / "then")
    with pytest.raises(StageError, match=r"rewind\(\) failed when the seeds were gone already"):
        run.train(1)


def test_an_interrupt_waits_until_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    run.manager.save(tmp_path / "then")
    expected = run.train(2)
    grows(run, "wider")
    real, found = checkpoints.narrow, []

    def interrupted(*args: Any) -> list[str]:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(checkpoints, "narrow", interrupted)
    original = fxgraft.SeedManager.load

    def load(*args: Any, **options: Any) -> fxgraft.SeedManager:
        found.append(original(*args, **options))
        return found[0]

    monkeypatch.setattr(fxgraft.SeedManager, "load", load)
    with pytest.raises(KeyboardInterrupt):
        run.rewind(tmp_path / "then")
    (run.manager,) = found
    assert run.train(2) == expected
