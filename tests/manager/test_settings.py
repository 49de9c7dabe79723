"""What a manager cannot be made with is refused, in a word, before anything is made."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.gates import Sane
from fxgraft.manager.settings import ENABLED_VARIABLE

X = torch.ones(2, 3)


def net() -> fxgraft.Host:
    return fxgraft.trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (X,))


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("check_every", -1, ValueError),
        ("check_every", 1.5, ValueError),
        ("cooldown", -3, ValueError),
        ("metrics_every", "x", ValueError),
        ("prefetch_timeout", -1.0, ValueError),
        ("prefetch_timeout", float("nan"), ValueError),
        ("shard_from", -1, ValueError),
        ("helper", "perhaps", ValueError),
        ("strict", "no", ValueError),
        ("enabled", 1, ValueError),
        ("optimizer", 3, TypeError),
        ("optimizer", [nn.Linear(2, 2)], TypeError),
        ("schedulers", 3, TypeError),
        ("schedulers", ["cosine"], TypeError),
        ("sinks", print, TypeError),
        ("sinks", [3], TypeError),
        ("sinks", "events.jsonl", TypeError),
        ("gates", 3, TypeError),
        ("gates", {"blend": 3}, TypeError),
        ("gates", {"cull": Sane()}, ValueError),
    ],
)
def test_what_cannot_be_is_refused(option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"{option}.*: expected .*; got "):
        SeedManager(net(), **{option: value})


def test_parameters_are_no_optimizer() -> None:
    host = net()
    with pytest.raises(TypeError, match=r"optimizer: expected a torch.optim.Optimizer, .*; got generator"):
        SeedManager(host, host.parameters())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "enabled"),
    [("0", False), ("FALSE", False), ("no", False), (" off ", False), ("1", True), ("on", True)],
)
def test_the_variable(said: str, enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENABLED_VARIABLE, said)
    assert SeedManager(net()).enabled is enabled
    assert SeedManager(net(), enabled=not enabled).enabled is not enabled


def test_a_variable_that_says_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENABLED_VARIABLE, "maybe")
    with pytest.raises(ValueError, match=f"{ENABLED_VARIABLE}: expected one of 1, .*; got 'maybe'"):
        SeedManager(net())


def test_numbers_may_be_numpys() -> None:
    manager = SeedManager(net(), cooldown=numpy.int64(2))  # type: ignore[arg-type]
    seed = manager.germinate("0", "mlp")
    manager.blend(seed, to=numpy.float32(0.5), steps=numpy.int64(2))  # type: ignore[arg-type]
    for _ in range(2):
        manager.step()
    assert (type(seed.alpha), seed.alpha) == (float, 0.5)
