"""Controllers: the plateau policy by its conversation alone, the log, and the replay of a run."""

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
    GrowthConfig,
    Link,
    PlateauGrowth,
    Recorder,
    Replay,
    SeedFacts,
    read_log,
)
from fxgraft.errors import BlueprintError, CommandError, SlotError
from fxgraft.gates import Trained, Worthy
from tests.harness import assert_same_bits, frozen

CONFIG = GrowthConfig(window=2, isolate=3, blend=2, hold=2, fade=1, rest=4, flat=0.1, trials=2, attempts=6)
A, B, C = (SEED(slot=name, blueprint="low_rank") for name in "abc")


class Stub:
    """A manager of paper: it lets seeds through their stages, and measures what it is told to."""

    def __init__(self, controller: PlateauGrowth, worth: dict[str, float] | None = None):
        self.controller = controller
        self.worth = worth or {}
        self.refuses: set[type[Command]] = set()
        self.seeds: dict[str, SeedFacts] = {}
        self.slots: dict[str, str] = {}
        self.targets: dict[str, tuple[float, int]] = {}
        self.now = 0
        self.said: list[tuple[int, Command]] = []

    def run(self, steps: int, loss: float = 1.0) -> list[Command]:
        """What was said in these steps."""
        before = len(self.said)
        for _ in range(steps):
            self.now += 1
            self._advance()
            for command in self.controller.observe(Facts(self.now, loss, dict(self.seeds), self._measure)):
                self.said.append((self.now, command))
                self.controller.hear(command, self._carry_out(command))
        return [command for _, command in self.said[before:]]

    def _advance(self) -> None:
        for name, seed in self.seeds.items():
            if seed.stage is Stage.TRAINING:
                self.seeds[name] = dataclasses.replace(seed, trained_steps=seed.trained_steps + 1)
            elif seed.stage is Stage.BLENDING:
                target, left = self.targets[name]
                self.targets[name] = target, left - 1
                if left == 1:
                    self.seeds[name] = dataclasses.replace(seed, stage=Stage.HOLDING, alpha=target)

    def _measure(self, seed: str, alpha: float) -> float:
        assert self.seeds[seed].stage in (Stage.TRAINING, Stage.HOLDING)
        assert alpha > 0
        return self.worth.get(f"{seed} held" if self.seeds[seed].alpha else seed, self.worth.get(seed, 0.0))

    def _carry_out(self, command: Command) -> Reply:
        name = f"{command.slot}{self.now}" if isinstance(command, SEED) else command.seed
        if type(command) in self.refuses:
            return Reply(False, "no", type(command).__name__, None if isinstance(command, SEED) else name)
        match command:
            case SEED():
                self.seeds[name] = SeedFacts(Stage.TRAINING, 0.0, 0)
            case BLEND():
                self.targets[name] = command.to, command.steps
                self.seeds[name] = dataclasses.replace(self.seeds[name], stage=Stage.BLENDING)
            case CULL():
                del self.seeds[name]
            case FOSSILIZE():
                self.seeds[name] = dataclasses.replace(self.seeds[name], stage=Stage.FOSSILIZED)
        return Reply(True, "yes", type(command).__name__, name)


def growth(*candidates: SEED, **changes: Any) -> PlateauGrowth:
    return PlateauGrowth(candidates or (A, B, C), dataclasses.replace(CONFIG, **changes))


# When it grows


def test_a_falling_loss_grows_nothing():
    stub = Stub(growth())
    for i in range(20):
        assert stub.run(1, loss=0.8**i) == []


@pytest.mark.parametrize("loss", [1.0, -1.0, 2.5])
def test_a_flat_loss_grows_at_the_first_two_windows(loss: float):
    stub = Stub(growth())
    assert stub.run(3, loss) == []
    assert stub.run(1, loss) == [A, B]


def test_a_loss_that_is_no_number_is_no_plateau():
    assert Stub(growth()).run(12, math.nan) == []


def test_one_round_at_a_time():
    stub = Stub(growth(isolate=50))
    stub.run(4)
    assert stub.run(40) == []


# What becomes of a trial


def test_the_best_is_blended_and_the_others_are_culled():
    stub = Stub(growth(), {"a4": 0.1, "b4": 0.3})
    stub.run(6)
    assert stub.run(1) == [CULL(seed="a4"), BLEND(seed="b4", steps=2)]
    assert stub.run(3) == []  # blends, holds
    assert stub.run(1) == [FOSSILIZE(seed="b4")]
    assert stub.said[-1][0] == 7 + 2 + 2


@pytest.mark.parametrize(
    ("worth", "blends"), [(0.0, True), (-0.04, False), (math.nan, False), (-math.inf, False)]
)
def test_no_worse_is_enough_to_blend_and_worse_is_not(worth: float, blends: bool):
    stub = Stub(growth(A), {"a4": worth})
    stub.run(6)
    assert stub.run(1) == [BLEND(seed="a4", steps=2) if blends else CULL(seed="a4")]


def test_a_tolerance_lets_a_slightly_worse_seed_blend():
    stub = Stub(growth(A, tolerance=0.05), {"a4": -0.04})
    assert stub.run(7)[-1] == BLEND(seed="a4", steps=2)


def test_what_is_not_worth_keeping_fades_out_and_is_culled():
    stub = Stub(growth(A, keep=0.2), {"a4": 0.3, "a4 held": 0.2})
    stub.run(10)
    assert stub.run(1) == [BLEND(seed="a4", to=0.0, steps=1)]
    assert stub.run(1) == [CULL(seed="a4")]
    assert stub.seeds == {}


def test_a_paused_trial_is_waited_for():
    stub = Stub(growth(A))
    stub.run(4)
    stub._advance = lambda: None  # type: ignore[method-assign]
    assert stub.run(20) == []


# Ranking


def test_places_are_ranked_by_measurement_and_the_untried_come_first():
    stub = Stub(growth(attempts=20), {"a4": -0.3, "b4": -0.1})
    assert stub.run(4) == [A, B]
    assert stub.run(3)[-1] == CULL(seed="b4")
    assert stub.run(4) == [C, B]  # C was never tried; B measured better than A


def test_a_fossil_uses_its_place_up():
    stub = Stub(growth(A), {"a4": 1.0})
    stub.run(11)
    assert stub.said[-1][1] == FOSSILIZE(seed="a4")
    assert stub.run(30) == []


def test_attempts_are_counted_in_all():
    stub = Stub(growth(trials=2, attempts=3), {})
    stub.worth = {f"{slot}{step}": -1.0 for slot in "abc" for step in range(200)}
    stub.run(100)
    assert sum(isinstance(command, SEED) for _, command in stub.said) == 3


# Refusals, and what others do


def test_a_place_that_refuses_is_left_alone_for_a_while():
    stub = Stub(growth(A))
    stub.refuses = {SEED}
    assert stub.run(4) == [A]
    assert stub.run(3) == []
    assert stub.run(1) == [A]


def test_a_refused_blend_ends_in_a_cull():
    stub = Stub(growth(A), {"a4": 1.0})
    stub.refuses = {BLEND}
    assert stub.run(7)[-1] == BLEND(seed="a4", steps=2)
    assert stub.run(1) == [CULL(seed="a4")]


def test_a_refused_fossilization_fades_out():
    stub = Stub(growth(A), {"a4": 1.0})
    stub.refuses = {FOSSILIZE}
    assert stub.run(11)[-1] == FOSSILIZE(seed="a4")
    assert stub.run(2) == [BLEND(seed="a4", to=0.0, steps=1), CULL(seed="a4")]


def test_a_refused_cull_is_not_repeated_for_ever():
    stub = Stub(growth(A, attempts=1), {"a4": -1.0})
    stub.refuses = {CULL}
    assert stub.run(7)[-1] == CULL(seed="a4")
    assert stub.run(40) == []


def test_a_seed_that_somebody_else_culled_is_forgotten():
    stub = Stub(growth(A, B, trials=1), {"a4": 1.0})
    assert stub.run(8)[-1] == BLEND(seed="a4", steps=2)
    stub.seeds.clear()
    assert stub.run(5) == [B]
    assert stub.controller.state_dict()["scores"] == {0: -math.inf}


def test_a_disabled_manager_is_asked_once():
    stub = Stub(growth(A))
    stub.run(4)
    stub.seeds = {name: SeedFacts(Stage.DORMANT, 0.0, 0) for name in stub.seeds}
    assert stub.run(50) == []


@given(st.data())
def test_no_conversation_leads_it_astray(data: st.DataObject):
    """Whatever is refused or measured: it never speaks of a seed that is not there, nor says too much."""
    worth = st.floats(-1, 1) | st.sampled_from([math.nan, math.inf, -math.inf])
    stub = Stub(growth(rest=1))
    stub._measure = lambda seed, alpha: data.draw(worth)  # type: ignore[method-assign]
    kinds = [SEED, BLEND, CULL, FOSSILIZE]
    for _ in range(25):
        stub.refuses = data.draw(st.sets(st.sampled_from(kinds), max_size=2))
        there = set(stub.seeds)
        said = stub.run(1, loss=data.draw(st.floats(0, 2)))
        assert {c.seed for c in said if not isinstance(c, SEED)} <= there
        assert len(said) <= 2
        if there and data.draw(st.integers(0, 9)) == 0:
            stub.seeds.pop(min(there), None)  # the controller may have culled it just now


def test_what_it_remembers_is_all_that_it_is():
    worth = {"a4": 0.1, "b4": 0.3, "c19": -0.5}
    whole, first = Stub(growth(), worth), Stub(growth(), worth)
    expected = whole.run(40)
    said = []
    for _ in range(40):  # another controller after every step
        said += first.run(1)
        state = json.loads(json.dumps(first.controller.state_dict(), default=str), object_hook=_int_keys)
        first.controller = growth()
        first.controller.load_state_dict(state)
    assert said == expected
    assert len(said) > 6


def _int_keys(found: dict[str, Any]) -> dict[Any, Any]:
    return {int(k) if k.lstrip("-").isdigit() else k: v for k, v in found.items()}


def test_loading_a_state_shares_nothing_with_it():
    controller = growth()
    state = controller.state_dict()
    controller.load_state_dict(state)
    Stub(controller).run(10)
    assert state == growth().state_dict()


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


def real_growth() -> PlateauGrowth:
    config = GrowthConfig(
        window=3, isolate=5, blend=4, hold=2, fade=2, rest=9, flat=0.9, trials=3, attempts=5
    )
    return PlateauGrowth(CANDIDATES, config)


def recorded(path: Path, **options: Any) -> Outcome:
    with Recorder(path) as recorder:
        return train(real_growth, recorder, **options)


def assert_same_outcome(a: Outcome, b: Outcome) -> None:
    assert_same_bits(a.losses, b.losses, "losses")
    assert_same_bits(a.state, b.state, "weights")
    assert a.seeds == b.seeds


def test_the_policy_is_deterministic(tmp_path: Path):
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
        train(lambda: PlateauGrowth(candidates))


def test_candidates_that_are_none_or_have_names_are_refused():
    with pytest.raises(ValueError, match="one SEED command at least"):
        PlateauGrowth([])
    with pytest.raises(ValueError, match="without a name; got 'a'"):
        PlateauGrowth([SEED(slot="1", blueprint="mlp", name="a")])


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
