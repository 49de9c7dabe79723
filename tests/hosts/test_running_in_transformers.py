"""A trainer that calls GPT-2 with ``use_cache=False``, the host traced without: nothing of it is silent."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import fxgraft
from fxgraft import SeedManager
from fxgraft.errors import StageError
from fxgraft.telemetry import Memory

IDS = torch.arange(12).reshape(2, 6)


def grown(**traced: bool) -> tuple[fxgraft.Host, torch.optim.Optimizer, SeedManager, Memory]:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=16, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    host = fxgraft.trace(GPT2LMHeadModel(config), (IDS,), traced)
    optimizer, memory = torch.optim.SGD(host.parameters(), 0.1), Memory()
    manager = SeedManager(host, optimizer, sinks=[memory], check_every=0)
    slot = next(name for name, slot in host.slots.items() if slot.region == "transformer.h.0")
    manager.germinate(slot, "mlp", name="a")
    return host, optimizer, manager, memory


def train(host: fxgraft.Host, optimizer: torch.optim.Optimizer, manager: SeedManager) -> None:
    host(IDS, labels=IDS, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    manager.step()


def test_calls_without_a_cache_where_the_trace_had_one(caplog: pytest.LogCaptureFixture) -> None:
    host, optimizer, manager, memory = grown()
    with caplog.at_level(logging.WARNING, "fxgraft"):
        train(host, optimizer, manager)
    (event,) = memory.of_kind("seed_stalled")
    assert event.step == 1
    assert "it did not run" in event.data["reason"]
    remedy = (
        "Trace with an example that is such a call (example_kwargs={'use_cache': False}), or call the host"
    )
    assert "; got " in event.data["reason"]
    assert remedy in event.data["reason"]
    for _ in range(3):
        train(host, optimizer, manager)
    seed = manager.seeds["a"]
    assert (seed.runs, seed.trained_steps, seed.steps) == (0, 0, 4)
    with pytest.raises(StageError, match="cannot blend seed 'a': it has never run"):
        manager.blend("a")
    with pytest.raises(StageError, match="cannot measure seed 'a': evaluate did not run it"):
        manager.measure("a", lambda: host(IDS, labels=IDS, use_cache=False).loss)


def test_the_remedy_helps() -> None:
    host, optimizer, manager, memory = grown(use_cache=False)
    for _ in range(2):
        train(host, optimizer, manager)
    assert (manager.seeds["a"].runs, manager.seeds["a"].trained_steps) == (2, 2)
    assert memory.of_kind("seed_stalled") == []
