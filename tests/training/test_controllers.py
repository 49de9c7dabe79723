"""Controllers: the log of what one said, the replay of a run, and candidates that can never grow."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.commands import BLEND, CULL, FOSSILIZE, PAUSE, SEED, Command, Reply
from fxgraft.controllers import (
    Entry,
    Facts,
    Link,
    Recorder,
    Replay,
    read_log,
)
from fxgraft.errors import BlueprintError, CommandError, SlotError
from fxgraft.gates import Trained, Worthy
from tests.harness import assert_same_bits, frozen
from tests.side_by_side import Pace, SideBySide

# The log


entries = st.one_of(
    st.builds(
        Entry,
        st.integers(0, 10**6),
        st.builds(BLEND, seed=st.text(max_size=5), to=st.floats(0, 1)),
        st.builds(
            Reply, st.booleans(), st.text(max_size=9), st.just("BLEND"), st.none() | st.text(max_size=5)
        ),
    ),
    st.builds(
        Entry,
        st.integers(0, 10**6),
        measured=st.tuples(
            st.text(max_size=5), st.floats(0, 1), st.floats(allow_nan=False, allow_infinity=False)
        ),
    ),
)


@given(entries)
def test_a_line_of_the_log_is_an_entry(entry: Entry):
    line = entry.to_json()
    assert "\n" not in line
    assert Entry.from_json(line) == entry


def test_a_contribution_that_is_no_number_is_null():
    line = Entry(3, measured=("a", 1.0, math.inf)).to_json()
    assert json.loads(line)["measured"]["contribution"] is None
    read = Entry.from_json(line).measured
    assert read is not None
    assert math.isnan(read[2])


@pytest.mark.parametrize(
    "line",
    [
        *(
            "",
            "x",
            "[]",
            "3",
            "{}",
            '{"step": 1}',
            '{"step": "1", "measured": {}}',
            '{"step": 1, "measured": 3}',
        ),
        *('{"step": 1, "command": {"type": "GROW"}, "reply": {"accepted": true, "reason": ""}}',),
        *('{"step": 1, "command": {"type": "CULL", "seed": "a"}, "reply": {"accepted": true}}',),
        *('{"step": 1, "command": {"type": "CULL", "seed": "a"}, "reply": {"accepted": true, "why": 1}}',),
        *('{"step": 1, "command": {"type": "CULL", "seed": "a"}, "rep', "[" * 50_000),
    ],
)
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: str):
    log = tmp_path / "log.jsonl"
    log.write_text(Entry(1, CULL(seed="a"), Reply(True, "")).to_json() + "\n\n" + (line or "null") + "\n")
    with pytest.raises(CommandError, match="line 3"):
        Replay.from_file(log)


def test_a_recorder_goes_on_with_its_file(tmp_path: Path):
    for step in (1, 2):
        with Recorder(tmp_path / "log") as recorder:
            recorder.write(Entry(step, CULL(seed="a"), Reply(True, "")))
    assert [entry.step for entry in read_log(tmp_path / "log")] == [1, 2]


# The replay of a real run


CANDIDATES = (
    SEED(slot="1", blueprint="mlp", config={"hidden": 8}),
    SEED(slot="2", blueprint="low_rank"),
    SEED(slot="2", blueprint="mlp", config={"hidden": 10**9}),  # can be planned; is refused as too large
)


@dataclasses.dataclass
class Outcome:
    losses: list[float]
    state: dict[str, Any]
    seeds: list[tuple[str, Stage, float]]


def train(make: Any, recorder: Recorder | None = None, data_seed: int = 5, **options: Any) -> Outcome:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    teacher = nn.Linear(4, 2)
    host = fxgraft.trace(model, (torch.randn(8, 4),))
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    manager = SeedManager(host, optimizer, **options)
    held_out = torch.randn(32, 4)

    def loss_on(x: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(host(x), teacher(x).sin().detach())

    link = Link(manager, make(), lambda: loss_on(held_out), recorder)
    losses = []
    data = torch.Generator().manual_seed(data_seed)
    for step in range(1, 61):
        loss = loss_on(torch.randn(8, 4, generator=data))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        manager.step(loss)
        losses.append(loss.item())
        link.step(step, losses[-1])
    seeds = [(s.name, s.stage, s.alpha) for s in manager.seeds.values()]
    return Outcome(losses, frozen(dict(host.state_dict())), seeds)


def side_by_side() -> SideBySide:
    return SideBySide(CANDIDATES, Pace(begin=6, isolate=5, blend=4, hold=2))


def recorded(path: Path, **options: Any) -> Outcome:
    with Recorder(path) as recorder:
        return train(side_by_side, recorder, **options)


def assert_same_outcome(a: Outcome, b: Outcome) -> None:
    assert_same_bits(a.losses, b.losses, "losses")
    assert_same_bits(a.state, b.state, "weights")
    assert a.seeds == b.seeds


def test_a_run_with_a_controller_is_deterministic(tmp_path: Path):
    assert_same_outcome(recorded(tmp_path / "a"), recorded(tmp_path / "b"))
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_a_run_is_made_again_from_its_log_bit_for_bit(tmp_path: Path):
    first = recorded(tmp_path / "log")
    log = list(read_log(tmp_path / "log"))
    said = {type(entry.command) for entry in log if entry.command}
    assert said >= {SEED, BLEND, CULL, FOSSILIZE}
    assert any(entry.reply is not None and entry.reply.refused for entry in log)  # the one that is too large
    with Recorder(tmp_path / "again") as recorder:
        again = train(lambda: Replay.from_file(tmp_path / "log"), recorder)
    assert_same_outcome(again, first)
    assert (tmp_path / "again").read_text() == (tmp_path / "log").read_text()


def test_the_log_alone_makes_the_difference(tmp_path: Path):
    first = recorded(tmp_path / "log")
    nothing = train(lambda: Replay([]))
    assert nothing.losses[:5] == first.losses[:5]
    assert nothing.losses != first.losses


def test_gates_that_ask_for_measurements_pass_again_in_a_replay(tmp_path: Path):
    gates = {"blend": Trained(steps=5), "fossilize": Worthy()}
    first = recorded(tmp_path / "log", gates=gates)
    assert any(isinstance(entry.command, FOSSILIZE) for entry in read_log(tmp_path / "log"))
    assert_same_outcome(train(lambda: Replay.from_file(tmp_path / "log"), gates=gates), first)


def test_a_replay_of_another_run_says_so(tmp_path: Path):
    recorded(tmp_path / "log")
    with pytest.raises(CommandError, match="as recorded"):
        train(lambda: Replay.from_file(tmp_path / "log"), data_seed=6)


def test_a_replay_notices_another_reply():
    entry = Entry(2, PAUSE(seed="nobody"), Reply(True, "paused", "PAUSE", "nobody"))
    with pytest.raises(CommandError, match="PAUSE"):
        train(lambda: Replay([entry]))


# What can never be grown


LOST: dict[str, tuple[SEED, type[Exception], str]] = {
    "slot": (SEED(slot="2.relu", blueprint="mlp"), SlotError, "no slot '2.relu'; did you mean '0', '1', '2'"),
    "source": (SEED(slot="1", source="l", blueprint="mlp"), SlotError, "no slot 'l'"),
    "order": (SEED(slot="0", source="2", blueprint="low_rank"), SlotError, "'2'"),
    "blueprint": (SEED(slot="1", blueprint="mpl"), BlueprintError, "mpl.*mlp"),
    "setting": (SEED(slot="1", blueprint="mlp", config={"width": 3}), BlueprintError, "width"),
    "mode": (SEED(slot="1", blueprint="mlp", mode="wide"), ValueError, "wide"),
    "argument": (SEED(slot="1", blueprint="mlp", config={"wait": False}), CommandError, "wait"),
}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kind", LOST)
def test_a_candidate_that_can_never_grow_is_refused_before_the_first_step(kind: str, place: int):
    candidate, error, said = LOST[kind]
    candidates = [SEED(slot="1", blueprint="mlp")]
    candidates.insert(place, candidate)
    with pytest.raises(error, match=said):
        train(lambda: SideBySide(candidates))


def test_a_seed_that_is_refused_in_the_run_is_told_once(caplog: pytest.LogCaptureFixture):
    class Stubborn:
        def observe(self, facts: Facts) -> list[Command]:
            return [SEED(slot="3", blueprint="mlp")]

        def hear(self, command: Command, reply: Reply) -> None:
            pass

    train(Stubborn)
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert (
        "step 1: the controller's SEED of mlp at '3' was refused: SlotError: the host has no slot" in told[0]
    )
