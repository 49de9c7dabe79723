"""An exploration: what it finds, what it refuses, and that the host feels none of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.commands import SEED
from fxgraft.errors import BlueprintError, CommandError, IsolationError, SlotError, StageError
from fxgraft.telemetry import Event
from tests.explore.runs import Hidden, Run, X, Y
from tests.harness import assert_same_bits, frozen


def test_the_host_does_not_feel_an_exploration_of_everything() -> None:
    plain = Run()
    losses, state = plain.train(12), plain.state()
    explored = Run()
    exploration = explored.manager.explore(evaluate=explored.evaluate, steps=8)
    assert_same_bits(losses, explored.train(12), "losses")
    assert exploration.done
    assert len(exploration.best(100)) > 10
    assert not explored.manager.seeds
    assert_same_bits(state, explored.state(), "weights, moments and random streams")


def test_the_rows_say_all_and_are_ranked() -> None:
    exploration = Run().explored(score="contribution")
    rows = exploration.table
    assert {(row.slot, row.blueprint) for row in rows} >= {("first", "mlp"), ("relu", "low_rank")}
    scores = [row.score for row in rows if row.status == "measured"]
    assert scores == sorted(scores, reverse=True)
    best = exploration.best(3)
    assert best == rows[:3]
    for row in best:
        assert row["contribution"] == row.contribution == row.score
        assert row.standard_error > 0
        assert row.step_cost > 0
        assert row.gradient > 0
        assert row.trained_steps == 3  # it stood as it was born for two
        assert row.expected > 0
        assert row.parameters > 0
    assert exploration.best(2)[0].to_dict() == exploration.to_json()["rows"][0]
    lines = str(exploration).splitlines()
    assert lines[1].split()[:5] == ["slot", "blueprint", "parameters", "FLOPs", "contribution"]
    assert len(lines) == 3 + 20 + 1, "the best of them"
    assert lines[-1] == f"... and {len(rows) - 20} more (exploration.table has all)"


def test_a_contribution_is_what_measure_says() -> None:
    run = Run()
    exploration = run.explored(["first", "relu"], keep=100)
    for row in exploration.best(100):
        alone = run.manager.measure(row.seed, lambda: torch.stack(run.evaluate()).mean())
        assert row.contribution == pytest.approx(alone, abs=1e-6)


def test_the_best_stay() -> None:
    run = Run()
    exploration = run.explored("relu", keep=2)
    assert set(run.manager.seeds) == {row.seed for row in exploration.best(2)}
    assert {seed.stage for seed in run.manager.seeds.values()} == {Stage.TRAINING}


@pytest.mark.parametrize(
    ("choose", "slots"),
    [
        (lambda host: host.slots.select("*norm*"), {"norm"}),
        (lambda host: ["first", "relu"], {"first", "relu"}),
        (lambda host: "head", {"head"}),
        (lambda host: host.slots["head"], {"head"}),
        (lambda host: SEED(slot="first", blueprint="mlp"), {"first"}),
        (
            lambda host: [{"type": "SEED", "slot": "relu", "blueprint": "mlp", "config": {"hidden": 3}}],
            {"relu"},
        ),
    ],
)
def test_candidates_are_slots_or_commands(choose: Callable[[fxgraft.Host], Any], slots: set[str]) -> None:
    run = Run()
    exploration = run.explored(choose(run.host), steps=1, blueprints=["mlp", "low_rank"])
    assert {row.slot for row in exploration.best(100)} == slots


def test_several_stand_at_one_slot() -> None:
    several = [SEED(slot="relu", blueprint="mlp", config={"hidden": h}) for h in (2, 3, 3)]
    rows = Run().explored(several).best(3)
    assert len(rows) == 3
    assert len({row.contribution for row in rows}) == 3  # each has an initialisation of its own


REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ("frist", {}, SlotError, "first"),
    ([SEED(slot="frist", blueprint="mlp")], {}, SlotError, "frist"),
    ([SEED(slot="first", blueprint="mpl")], {}, BlueprintError, "mlp"),
    ([SEED(slot="first", blueprint="conv_depthwise")], {}, BlueprintError, r"\(N, C, H, W\)"),
    ([SEED(slot="first", blueprint="mlp", config={"wide": 3})], {}, BlueprintError, "wide"),
    ([SEED(slot="first", blueprint="mlp", isolated=False)], {}, ValueError, "isolated"),
    ([{"type": "CULL", "seed": "a"}], {}, CommandError, "SEED"),
    ([], {}, ValueError, "expected one at least"),
    (7, {}, TypeError, "auto"),
    ("auto", {"blueprints": ["mpl"]}, BlueprintError, "mlp"),
    ("auto", {"blueprints": ["conv_depthwise"]}, ValueError, "nothing that is registered"),
    ("auto", {"steps": 0}, ValueError, "steps"),
    ("auto", {"keep": -1}, ValueError, "keep"),
    ("auto", {"score": "size"}, ValueError, "score"),
    ("auto", {"cap": {"parts": 3}}, ValueError, "parts"),
    ("auto", {"evaluate": None}, TypeError, "evaluate"),
    ("auto", {"evaluate": lambda: "low"}, TypeError, "evaluate"),
    ("auto", {"evaluate": lambda: float("nan")}, ValueError, "finite"),
]


@pytest.mark.parametrize(("candidates", "options", "error", "said"), REFUSED)
def test_what_is_not_right_is_refused_at_once(
    candidates: Any, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    run = Run()
    before = run.state()
    with pytest.raises(error, match=said):
        run.manager.explore(candidates, **{"evaluate": run.evaluate, **options})
    assert not run.manager.seeds
    assert_same_bits(before, run.state(), "the run")
    with run.manager.together(), pytest.raises(StageError, match="explore"):
        run.manager.explore(evaluate=run.evaluate)


def test_what_is_left_out_is_said() -> None:
    exploration = Run().explored(steps=1, cap={"candidates": 4})
    rows = exploration.table
    assert [row.status for row in rows[:4]] == ["measured"] * 4
    assert {row.slot for row in rows[:4]} == {
        "first",
        "norm",
        "drop",
        "relu",
    }  # a place each, before a second
    assert all("cap of 4" in row.reason for row in rows[4:])
    text = str(exploration)
    (line,) = [line for line in text.splitlines() if "left out: the cap of 4 candidates" in line]
    others = sum("cap of 4 candidates" in row.reason for row in rows) - 1
    assert f" and {others} others: left out" in line
    assert "more (exploration.table has all)" not in text  # nothing is hidden: a line for each reason


def test_where_there_is_little_room_an_mlp_has_fewer_hidden_units() -> None:
    batch = torch.randn(4, 16)
    manager = SeedManager(fxgraft.trace(nn.Sequential(nn.Linear(16, 16), nn.ReLU()), (batch,)))
    explore = partial(manager.explore, "1", evaluate=lambda: 0.0, blueprints=["mlp"])
    (row,) = explore(most={"parameters": 400}).table
    assert row.command.config == {"hidden": 8}
    assert row.parameters == sum(p.numel() for p in manager.seeds[row.seed].module.parameters()) == 280
    with pytest.raises(ValueError, match="one may have 10"):
        explore(most={"parameters": 10})


def test_a_value_that_two_slots_hold_is_explored_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.same, self.head = nn.Linear(6, 4), nn.Identity(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.same(self.inner(x)))

    host = fxgraft.trace(Twice(), (X[:4],))
    assert {"inner", "same"} <= set(host.slots)
    exploration = SeedManager(host).explore(evaluate=lambda: host(X).square().mean(), blueprints=["mlp"])
    reasons = {row.slot: row.reason for row in exploration.table}
    assert reasons["inner"] == ""
    assert "'inner' holds the very same value" in reasons["same"]


def test_a_candidate_that_fails_says_why_and_the_others_go_on() -> None:
    run = Run()
    exploration = run.manager.explore(["first", "relu"], evaluate=run.evaluate, steps=3, blueprints=["mlp"])
    run.train(1)
    run.manager.cull(next(iter(run.manager.seeds)))
    run.train(2)
    first, second = exploration.table
    assert (first.slot, first.status) == ("relu", "measured")
    assert (second.slot, second.status, second.reason) == (
        "first", "failed", "it was culled before it was measured",
    )  # fmt: skip


def test_an_evaluation_that_does_not_run_the_candidate_is_told() -> None:
    run = Run()
    exploration = run.manager.explore("relu", evaluate=lambda: 1.0, steps=2, blueprints=["mlp"])
    run.train(2)
    assert "evaluate did not run it" in exploration.table[0].reason


def test_what_nothing_trains_is_told() -> None:
    run = Run()
    run.manager = SeedManager(run.host, check_every=0)
    exploration = run.explored("relu", steps=2, blueprints=["mlp"])
    assert "it was not trained" in exploration.table[0].reason


def test_disabled_seeds_end_it_at_once(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(enabled=False)
    exploration = run.manager.explore(evaluate=run.evaluate)
    assert exploration.done
    assert "disabled" in exploration.table[0].reason
    assert not run.manager.seeds


def test_an_evaluation_that_raises_later_leaves_nothing_behind() -> None:
    run, losses = Run(), [1.0]
    exploration = run.manager.explore("relu", evaluate=losses.pop, steps=2, blueprints=["mlp"])
    with pytest.raises(IndexError):
        run.train(2)
    assert exploration.done
    assert not run.manager.seeds
    run.train(1)


@pytest.mark.parametrize(
    "act",
    [
        lambda run: run.manager.germinate("relu", "mlp"),
        lambda run: run.manager.step(),
        lambda run: run.manager.explore("relu", evaluate=run.evaluate),
        lambda run: run.manager.autogrow(run.evaluate),
    ],
)
def test_an_evaluation_cannot_change_what_it_evaluates(act: Callable[[Run], Any]) -> None:
    run = Run()

    def evaluate() -> float:
        act(run)
        return 1.0

    for begin in (run.manager.explore, lambda *, evaluate: run.manager.autogrow(evaluate)):
        with pytest.raises(StageError, match="evaluation"):
            begin(evaluate=evaluate)
    assert (run.manager.steps, dict(run.manager.seeds)) == (0, {})


@pytest.mark.parametrize("found", ["high", 1j, torch.tensor([1.0, 2.0])])
def test_a_score_that_is_no_number_is_told(found: Any) -> None:
    run = Run()
    exploration = run.manager.explore(
        "relu", evaluate=run.evaluate, steps=1, blueprints=["mlp"], score=lambda row: found
    )
    with pytest.raises(TypeError, match="score: expected a number"):
        run.train(1)
    assert exploration.done
    assert not run.manager.seeds


@pytest.mark.parametrize(
    "stops", [lambda run, growth: growth.stop(), lambda run, growth: growth.exploration.cancel()]
)
def test_an_evaluation_cannot_end_what_evaluates(stops: Callable[[Run, Any], None]) -> None:
    run, told = Run(), [False]

    def evaluate() -> list[Tensor]:
        if told[0]:
            stops(run, growth)
        return run.evaluate()

    growth = run.manager.autogrow(
        evaluate, when=[0.1], total_steps=20, steps=2, candidates="relu", blueprints=["mlp"]
    )
    run.train(3)
    told[0] = True
    with pytest.raises(StageError, match="inside the evaluation"):
        run.train(1)
    assert not run.manager.seeds
    told[0] = False
    run.train(1)
    assert growth.done


def test_inference_mode_is_no_place_to_explore_but_one_to_plan() -> None:
    run = Run()
    with torch.inference_mode():
        with pytest.raises(StageError, match=r"cannot explore in torch\.inference_mode"):
            run.manager.explore("relu", evaluate=run.evaluate)
        with pytest.raises(StageError, match=r"cannot autogrow in torch\.inference_mode"):
            run.manager.autogrow(run.evaluate)
        inside = str(run.manager.plan("relu", "mlp"))
    assert inside == str(run.manager.plan("relu", "mlp"))


@pytest.mark.parametrize("kind", ["backward", "zero_grad"])
def test_gradients_that_wait_for_a_step_do_not_feel_an_evaluation(kind: str) -> None:
    run = Run()

    def evaluate() -> Tensor:
        with torch.enable_grad():
            loss = torch.stack(run.evaluate()).mean()
            if kind == "backward":
                loss.backward()
            else:
                run.optimizer.zero_grad(set_to_none=False)
        return loss.detach()

    run.host(X).sum().backward()
    before = [frozen(p.grad) for p in run.host.host_parameters()]
    seed = run.manager.germinate("relu", "mlp")
    run.manager.measure(seed, evaluate)
    run.manager.explore("relu", evaluate=evaluate, steps=1, blueprints=["mlp"])
    run.manager.step()
    assert_same_bits(before, [p.grad for p in run.host.host_parameters()], "gradients")


@pytest.mark.parametrize("call", ["measure", "explore", "explore later", "autogrow"])
def test_an_optimizer_of_the_host_does_not_step_in_an_evaluation(call: str) -> None:
    run, steps = Run(), call != "explore later"
    seed = run.manager.germinate("relu", "mlp")
    run.train(2)

    def evaluate() -> Tensor:
        if steps:
            with torch.enable_grad():
                torch.stack(run.evaluate()).mean().backward()
            run.optimizer.step()
        return torch.stack(run.evaluate()).mean()

    if call == "explore later":
        run.manager.explore("relu", evaluate=evaluate, steps=1, blueprints=["mlp"])
        steps = True
    before = run.state()
    evaluated: dict[str, Callable[[], Any]] = {
        "measure": lambda: run.manager.measure(seed, evaluate),
        "explore": lambda: run.manager.explore(evaluate=evaluate),
        "explore later": run.manager.step,
        "autogrow": lambda: run.manager.autogrow(evaluate),
    }
    with pytest.raises(StageError, match=r"step an optimizer inside evaluate.*AdamW.*copy\.deepcopy\(host\)"):
        evaluated[call]()
    if call != "explore later":
        assert_same_bits(before, run.state(), "weights and moments")
    run.train(1)


def test_an_optimizer_of_something_else_steps_in_an_evaluation() -> None:
    run = Run()
    seed = run.manager.germinate("relu", "mlp")
    run.train(1)

    def evaluate() -> Tensor:
        twin = copy.deepcopy(run.host)
        optimizer = torch.optim.SGD(twin.parameters(), 0.1)
        with torch.enable_grad():
            F.cross_entropy(twin(X), Y).backward()
        optimizer.step()
        return torch.stack(run.evaluate()).mean()

    run.manager.measure(seed, evaluate)


@pytest.mark.parametrize("loss", [torch.tensor(1 + 1j), torch.tensor([1 + 1j])])
def test_a_complex_loss_is_refused_by_name(loss: Tensor) -> None:
    run = Run()
    with pytest.raises(TypeError, match="evaluate: expected"):
        run.manager.explore("relu", evaluate=lambda: loss)
    with pytest.raises(TypeError, match="evaluate: expected"):
        run.manager.measure(run.manager.germinate("relu", "mlp"), lambda: loss)


def test_it_can_be_given_up_and_leaves_no_cooldown() -> None:
    run = Run(cooldown=50)
    exploration = run.manager.explore("relu", evaluate=run.evaluate, steps=9)
    run.train(1)
    exploration.cancel()
    assert exploration.done
    assert not run.manager.seeds
    run.manager.germinate("relu", "mlp")


def test_scores_are_chosen(caplog: pytest.LogCaptureFixture) -> None:
    by_size = Run().explored("relu", steps=1, score="parameters").best(100)
    assert [row.parameters for row in by_size] == sorted((row.parameters for row in by_size), reverse=True)
    names = ["mlp", "net2net", "norm"]  # of different sizes
    mixed = Run().explored("relu", steps=4, score="expected_and_parameters", blueprints=names).best(3)
    places = [sorted(mixed, key=lambda row: row[name]).index for name in ("expected", "parameters")]
    for row in mixed:
        assert row.score == sum(place(row) for place in places) / 2 / (len(mixed) - 1)
    own = Run().explored("relu", steps=1, score=lambda row: -row.parameters).best(100)
    assert [row.parameters for row in own] == sorted(row.parameters for row in own)


def test_on_a_compiled_host_it_finds_the_same(fresh_compiler: None) -> None:
    found = []
    for compiled in (False, True):
        run = Run(check_every=0)
        if compiled:
            run.host.compile(backend="aot_eager")
        rows = run.explored(["first", "relu"], steps=3, blueprints=["mlp", "norm"]).best(4)
        found.append({(row.slot, row.blueprint): row.contribution for row in rows})
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_repeats_draw_other_numbers() -> None:
    run = Run()

    def evaluate() -> Tensor:
        now = torch.randint(0, len(X), (8,))
        return F.cross_entropy(run.host.eval()(X[now]), Y[now])

    exploration = run.manager.explore("relu", evaluate=evaluate, steps=4, blueprints=["mlp"], repeats=6)
    run.train(4)
    assert exploration.best()[0].standard_error > 0


def test_what_is_expected_comes_from_gradients_at_birth() -> None:
    """By hand, from a run in which nothing of the seed is updated; also where gradients are cleared early."""
    run = Run(check_every=0)
    seed = run.manager.germinate("relu", "mlp", name="mlp_0", hidden=3)
    seen: dict[nn.Parameter, list[Tensor]] = {p: [] for p in seed.module.parameters()}

    def see(parameter: nn.Parameter) -> None:
        seen[parameter].append(parameter.grad)
        parameter.grad = None

    for parameter in seen:
        parameter.register_post_accumulate_grad_hook(see)
    group = run.optimizer.param_groups[0]
    group["params"] = [p for p in group["params"] if p not in seen]
    run.train(2)
    total = 0.0
    for gradients in seen.values():
        found = torch.stack(gradients).double()
        total += float((found.mean(0).square() / (found.square().mean(0).sqrt() + 1e-12)).sum())
    again = Run(check_every=0)
    again.optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())
    command = SEED(slot="relu", blueprint="mlp", name="mlp_0", config={"hidden": 3})
    assert again.explored(command, steps=4).best()[0].expected == pytest.approx(total, rel=1e-5)


def test_sinks_are_told_what_was_found() -> None:
    events: list[Event] = []
    run = Run(sinks=[events.append])
    exploration = run.explored("relu", steps=2)
    (told,) = [event for event in events if event.kind == "explored"]
    assert told.data == {"steps": 2, "rows": [row.to_dict() for row in exploration.table]}
    json.dumps(told.data, allow_nan=False)


class Placed(nn.Module):
    """A block that is told positions, which no gradient goes through; and perhaps a pair, which one may."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor, at: Tensor, pair: tuple[Tensor, Tensor] | None = None) -> Tensor:
        h = self.norm(x) * (at[:, None] % 2)
        return x + self.down(torch.relu(self.up(h if pair is None else h * pair[0] + pair[1])))


def square(host: fxgraft.Host) -> Tensor:
    return host(X).square().mean()


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(self.turn(x)), x * 0.1


class PlacedStack(nn.Module):
    """Its blocks read more than the value of the block before."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.enter, self.blocks = nn.Linear(6, 4), nn.ModuleList([Placed(), Placed()])
        self.rotary = Rotary() if pair else None

    def forward(self, x: Tensor) -> Tensor:
        x, at = self.enter(x), torch.arange(x.shape[0])
        pair = None if self.rotary is None else self.rotary(x)
        for block in self.blocks:
            x = block(x, at, pair)
        return x


@pytest.mark.parametrize("pair", [False, True])
def test_a_block_that_reads_more_is_explored_and_the_host_does_not_feel_it(pair: bool) -> None:
    found = []
    for explored in (False, True):
        torch.manual_seed(0)
        host = fxgraft.trace(PlacedStack(pair), (X[:4],))
        optimizer = torch.optim.SGD(host.parameters(), 0.1)
        manager = SeedManager(host, optimizer, check_every=0)
        places = [{"stack": "blocks", "at": at} for at in (0, 1)]
        candidates = [SEED(slot="blocks.0", blueprint="deepen", config=place) for place in places]
        if explored:
            exploration = manager.explore(candidates, evaluate=partial(square, host), steps=3)
        for _ in range(3):
            optimizer.zero_grad()
            square(host).backward()
            optimizer.step()
            manager.step()
        found.append(host.model_state())
    assert [row.status for row in exploration.table] == ["measured"] * 2, exploration
    assert_same_bits(found[1], found[0], "the host's weights")


def test_blocks_that_cannot_go_live_together_are_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    host = fxgraft.trace(PlacedStack(False), (X[:4],))
    manager = SeedManager(host, torch.optim.SGD(host.parameters(), 0.1), check_every=0)
    together, deepen = SeedManager.together, SeedManager.deepen

    @contextmanager
    def failing(self: SeedManager) -> Iterator[None]:
        with together(self):
            yield
            raise IsolationError("not as a whole")

    def picky(self: SeedManager, *args: Any, at: list[int], **options: Any) -> Any:
        if at == [1]:
            raise SlotError("not there")
        return deepen(self, *args, at=at, **options)

    monkeypatch.setattr(SeedManager, "together", failing)
    monkeypatch.setattr(SeedManager, "deepen", picky)
    exploration = manager.explore("auto", evaluate=lambda: host(X).square().mean(), steps=2)
    rows = {row.deepens: row for row in exploration.table if row.deepens is not None}
    assert rows["blocks", 0].seed in manager.seeds
    assert "not there" in rows["blocks", 1].reason
    exploration.cancel()
    assert not manager.seeds


def test_auto_has_a_block_behind_each_of_a_stack() -> None:
    host = fxgraft.trace(nn.Sequential(nn.Linear(6, 4), nn.Sequential(Hidden(), Hidden())), (X[:4],))
    manager = SeedManager(host, check_every=0)

    def evaluate() -> Tensor:
        return host(X).square().mean()

    for _ in range(2):  # what the first one tries is no place for the second
        exploration = manager.explore(evaluate=evaluate)
        assert sorted(row.slot for row in exploration.table if row.deepens is not None) == ["1.0", "1.1"]
    strange = SEED(slot="1.0", blueprint="deepen", config={"stack": "2", "at": 0})
    with pytest.raises(SlotError, match=r"deepen: expected .* there are: 1 \(\d blocks\)"):
        manager.explore(strange, evaluate=evaluate)
