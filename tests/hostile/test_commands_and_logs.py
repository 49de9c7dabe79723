"""Commands and recorded runs may come from anyone: no crash, no hang, no memory, no code."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.errors import CommandError
from fxgraft.manager import dispatch
from fxgraft.training.controller_log import MAX_LINE, Entry, read_log
from tests.harness import assert_same_bits, snapshot

HUGE = [10**12, 10**18, 10**400, -1, 0, 0.5, "many", None, [1], {"a": 1}, True]
NAMES = [
    "__class__", "__init__", "os:system", "os.system", "builtins.eval", "../../etc/passwd", "/etc/passwd",
    "a.b", "_seeds", "module", "alpha", "", " ", "\0", "\n", "%s%n", "a" * 10_000, "\u202e", "None", "self",
]  # fmt: skip


@pytest.fixture(scope="module")
def world() -> tuple[fxgraft.Host, SeedManager, torch.Tensor]:
    x = torch.randn(3, 6)
    host = fxgraft.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), (x,))
    return host, SeedManager(host, torch.optim.SGD(host.parameters(), 0.1)), x


@pytest.mark.parametrize("value", HUGE, ids=lambda v: str(v)[:12])
@pytest.mark.parametrize(
    ("blueprint", "key"), [("mlp", "hidden"), ("low_rank", "rank"), ("attention", "heads")]
)
def test_a_size_that_cannot_be_is_refused_before_memory_is_taken(
    world: Any, blueprint: str, key: str, value: Any
) -> None:
    host, manager, x = world
    before = snapshot(host, x)
    reply = manager.handle({"type": "SEED", "slot": "1", "blueprint": blueprint, "config": {key: value}})
    if reply:
        manager.cull(reply.seed)  # 'True' is a one, and heads of 0.5 are the blueprint's to judge
    assert_same_bits(snapshot(host, x), before, "the host")


def test_the_limit_counts_parameters(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, manager, _ = world
    command = {"type": "SEED", "slot": "1", "blueprint": "mlp", "config": {"hidden": 100}, "name": "a"}
    monkeypatch.setattr(dispatch, "MAX_PARAMETERS", 1707)
    reply = manager.handle(command)
    assert reply.refused
    assert "1,708 parameters" in reply.reason
    monkeypatch.setattr(dispatch, "MAX_PARAMETERS", 1708)
    assert manager.handle(command)
    manager.cull("a")


@pytest.mark.parametrize("name", NAMES, ids=lambda n: repr(n)[:20])
@pytest.mark.parametrize("field", ["slot", "blueprint", "name", "source", "mode"])
def test_a_name_is_never_more_than_a_name(world: Any, field: str, name: str) -> None:
    host, manager, x = world
    before = snapshot(host, x)
    reply = manager.handle({"type": "SEED", "slot": "1", "blueprint": "low_rank", field: name})
    if reply:  # some are good names of seeds
        assert field == "name"
        manager.cull(name)
    assert_same_bits(snapshot(host, x), before, "the host")


def test_only_registered_blueprints_are_built(world: Any) -> None:
    _, manager, _ = world
    reply = manager.handle({"type": "SEED", "slot": "1", "blueprint": "torch.nn.Linear"})
    assert reply.refused
    assert "mlp" in reply.reason or "BlueprintError" in reply.reason


KEYS = st.sampled_from(["step", "command", "reply", "measured", "seed", "at", "x"])
ODD_REPLY = {"accepted": 1, "reason": 2, "q": 3}
LINES = st.one_of(
    st.text(max_size=60),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
        max_leaves=8,
    ).map(json.dumps),
    st.just("[" * 100_000),
    st.just(json.dumps({"step": 1, "command": {"type": "CULL", "seed": "a"}, "reply": ODD_REPLY})),
)


@given(lines=st.lists(LINES, max_size=5))
def test_a_recorded_run_is_read_or_refused(
    lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path: Path = tmp_path_factory.mktemp("log") / "log.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    with contextlib.suppress(CommandError):  # which is how it is refused
        assert all(isinstance(entry, Entry) for entry in read_log(path))


def test_an_endless_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("x" * (3 * MAX_LINE))
    with pytest.raises(CommandError, match="line 1: is longer than"):
        list(read_log(path))
    path.write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(CommandError, match="line 1"):
        list(read_log(path))
