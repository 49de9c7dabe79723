"""The real Weights & Biases, offline: what a sink logs is in the file that W&B would send."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from torch import nn
from wandb.proto import wandb_internal_pb2

import fxgraft
from fxgraft.telemetry import Event, Memory, WeightsAndBiases

BLOCK, HEADER = 32768, 7


def records(path: Path) -> Iterator[Any]:
    """What a .wandb file holds: LevelDB's log format (blocks of chunks), after seven bytes of its own."""
    content, at, record = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # padding
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        if at + HEADER + length > len(content):  # still being written
            return
        record += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            found = wandb_internal_pb2.Record()
            found.ParseFromString(record)
            yield found
            record = b""


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the history, once the file is whole: another process writes it, and may be behind."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    found: list[Any] = []
    while not any(record.WhichOneof("record_type") == "exit" for record in found):
        assert time.monotonic() < deadline, "the file is never whole"
        time.sleep(0.05)
        found = list(records(path))
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    settings = wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True)
    with wandb.init(project="test", dir=str(tmp_path), mode="offline", settings=settings) as made:
        yield made


def train(*sinks: Any, log: Any = None) -> tuple[fxgraft.SeedManager, list[float]]:
    torch.manual_seed(0)
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    host = fxgraft.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (x,))
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    manager = fxgraft.SeedManager(host, optimizer, sinks=sinks, metrics_every=1)
    losses = []
    for step in range(1, 6):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(host(x), y)
        loss.backward()
        optimizer.step()
        manager.step(loss)
        if step == 1:
            manager.germinate("1", "mlp", name="a")
        if step == 2:
            manager.blend("a", steps=2, schedule="linear")
        losses.append(loss.item())
        if log is not None:
            log(step, losses[-1])
    return manager, losses


@pytest.mark.parametrize("numbered", [False, True])
def test_metrics_go_into_the_rows_of_the_user(numbered: bool, run: Any, tmp_path: Path) -> None:
    def log(step: int, loss: float) -> None:
        run.log({"loss": loss}, step=step if numbered else None)

    _, losses = train(WeightsAndBiases(run), log=log)
    assert run.summary["seed_stage/a"] == "HOLDING"
    assert run.config["fxgraft"]["host"] == "Sequential"
    run.finish()
    found = rows(tmp_path)
    assert [row["loss"] for row in found if "loss" in row] == losses, "no row of the user's is lost"
    alphas = {row["fxgraft/step"]: row.get("fxgraft/seed/alpha/a") for row in found if "fxgraft/step" in row}
    assert alphas == {1: None, 2: 0.0, 3: 0.5, 4: 1.0, 5: 1.0}
    assert len(found) == 5 + numbered, "ours stand in theirs"


def test_a_run_without_rows_of_its_own_gets_them(run: Any, tmp_path: Path) -> None:
    train(WeightsAndBiases(run, commit=True))
    run.finish()
    found = rows(tmp_path)
    assert [row["fxgraft/step"] for row in found] == [1, 2, 3, 4, 5]
    assert [row["fxgraft/seeds/active"] for row in found] == [0, 1, 1, 1, 1]


def test_a_run_that_fails_never_changes_training(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    run.finish()  # logging to it raises from now on
    _, expected = train()
    memory = Memory()
    _, losses = train(_sink_of(run), memory)
    assert losses == expected
    assert "failed on metrics" in caplog.text
    assert memory.of_kind("metrics")


def _sink_of(run: Any) -> Any:
    sink = WeightsAndBiases.__new__(WeightsAndBiases)
    sink._run, sink._commit = run, True
    return sink


def test_other_events_make_no_rows(run: Any, tmp_path: Path) -> None:
    sink = WeightsAndBiases(run, commit=True)
    sink(Event("steps", 3, None, {"loss": [1.0], "ms": [1.0]}))
    sink(Event("gate_event", 3, "a", {"action": "blend", "passed": True, "reason": ""}))
    run.finish()
    assert rows(tmp_path) == []
