"""Growth by itself: it keeps what helps within a budget, can be resumed and repeated, and refuses at once."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.commands import DEEPEN, SEED, WIDEN
from fxgraft.errors import BlueprintError, CheckpointError, SlotError, StageError
from fxgraft.explore import AutoGrowth
from fxgraft.explore.growth_settings import GrowthSettings
from fxgraft.telemetry import Event
from tests.explore import runs
from tests.explore.runs import Hidden, Run
from tests.harness import assert_same_bits, frozen

QUICK: dict[str, Any] = {"steps": 4, "blend": 3, "hold": 2, "window": 4, "blueprints": ["mlp", "norm"]}
FEW = [SEED(slot="relu", blueprint="mlp"), SEED(slot="first", blueprint="norm")]


def grow(run: Run, **options: Any) -> AutoGrowth:
    given = {"candidates": FEW, "when": [0.1, 0.5], "total_steps": 40, **QUICK, **options}
    return run.manager.autogrow(run.evaluate, **given)


def begun(growth: AutoGrowth) -> int:
    """The step of the first blend."""
    return next(e["step"] for e in growth.history if e["what"] in ("blending", "beginning anew"))


def final(run: Run) -> tuple[Any, ...]:
    optimizer = [frozen(state) for state in run.optimizer.state.values()]
    return frozen(run.host.state_dict()), optimizer, torch.get_rng_state()


def test_the_host_does_not_feel_it_before_the_first_blend() -> None:
    plain = Run()
    losses = plain.train(8)
    state = plain.state()
    run = Run()
    growth = grow(run, candidates="auto")
    assert_same_bits(losses, run.train(8), "losses")
    assert growth.phase == "trying"
    assert_same_bits(state, run.state(), "weights, moments and random streams")
    assert begun(growth) == 8


def test_it_grows_until_the_budget_is_spent_or_nothing_pays() -> None:
    run = Run()
    before = sum(p.numel() for p in run.host.parameters())
    growth = grow(run, candidates="auto", when="flat", budget=1.6, flat=2.0, gain=-10.0)
    run.train(90)
    assert growth.done
    assert growth.history[-1]["what"] == "done"
    kept = [entry["seed"] for entry in growth.history if entry["what"] == "kept"]
    assert kept
    assert [seed.name for seed in run.manager.seeds.values()] == kept
    assert {seed.stage for seed in run.manager.seeds.values()} == {Stage.FOSSILIZED}
    assert before < sum(p.numel() for p in run.host.parameters()) <= 1.6 * before
    assert str(growth).splitlines()[3].split()[:3] == ["step", "what", "slot"]
    run.train(2)  # and nothing more


def test_commands_with_an_id_are_candidates_in_each_round() -> None:
    run = Run()
    growth = grow(run, candidates=[replace(seed, id=seed.slot) for seed in FEW], gain=-10.0, budget=5.0)
    run.train(40)
    assert [entry["what"] for entry in growth.history].count("kept") == 2


def test_what_does_not_pay_is_taken_out_and_it_ends() -> None:
    run = Run()
    growth = grow(run, when=lambda manager: manager.steps >= 2, gain=1e9, patience=1)
    run.train(40)
    assert [e["what"] for e in growth.history][-2:] == ["dropped", "done"]
    assert not run.manager.seeds
    assert growth.history[-2]["reason"].startswith("it no longer pays")
    assert growth.done


@pytest.mark.parametrize("resumed_after", [None, 22])
def test_the_median_of_several_measurements_decides(resumed_after: int | None) -> None:
    measured: list[tuple[int, float]] = []

    def contributions(event: Event) -> None:
        if event.kind == "contribution":
            measured.append((event.step, event.data["contribution"]))

    run = Run(sinks=[contributions])
    growth = grow(run, when=lambda manager: manager.steps >= 2, gain=-10.0, hold=16, measurements=4)
    if resumed_after is not None:
        run.train(resumed_after)
        state = growth.state_dict()
        assert len(state["gains"]) == 2, "it is saved between two measurements"
        growth.load_state_dict(state)
    run.train(40 - (resumed_after or 0))
    first = next(entry for entry in growth.history if entry["what"] == "kept")
    rounds = [(step, gain) for step, gain in measured if step <= first["step"]][-4:]
    distances = [after - before for (before, _), (after, _) in itertools.pairwise(rounds)]
    assert all(distance >= 2 for distance in distances), distances
    assert sum(distances) <= 19 // 2, "none is in the first half of the time"
    assert first["contribution"] == pytest.approx(statistics.median(gain for _, gain in rounds))


@pytest.mark.parametrize(("standard_errors", "what"), [(0.0, "kept"), (1e6, "dropped")])
def test_what_may_be_chance_does_not_stay(standard_errors: float, what: str) -> None:
    run = Run()
    growth = grow(
        run, when=lambda manager: manager.steps >= 2, gain=-10.0, hold=16, measurements=4,
        standard_errors=standard_errors,
    )  # fmt: skip
    run.train(40)
    first = next(entry for entry in growth.history if entry["what"] in ("kept", "dropped"))
    assert first["what"] == what, growth.history


def test_the_margin_is_so_many_standard_errors_of_the_mean() -> None:
    settings = GrowthSettings(measurements=4, standard_errors=2.0)
    assert settings.margin([1.0, 2.0, 3.0, 6.0]) == pytest.approx(2 * statistics.stdev([1, 2, 3, 6]) / 2)
    assert GrowthSettings(measurements=4).margin([1.0, 2.0, 3.0, 6.0]) == 0


def test_shares_of_the_run_are_its_moments() -> None:
    run = Run()
    growth = grow(run, gain=-10.0, budget=5.0)
    run.train(40)
    assert [e["step"] for e in growth.history if e["what"] == "exploring"] == [4, 20]
    assert growth.history[-1]["reason"] == "all shares of the run are over"


def test_without_losses_the_evaluation_tells_what_is_flat() -> None:
    run = Run()
    growth = grow(run, when="flat", flat=2.0)
    for _ in range(8):
        run.manager.step()
    assert [e["what"] for e in growth.history] == ["exploring"]
    assert growth.history[0]["step"] == 8


@pytest.mark.parametrize(("every", "window"), [(4, 10), (3, 10), (2, 5), (1, 4)])
def test_a_window_is_the_mean_of_the_losses_that_were_told(every: int, window: int) -> None:
    found = []
    for rate in (0.98, 1.0):
        run = Run()
        growth = grow(run, when="flat", flat=0.02, window=window)
        for step in range(3 * window + 1):
            run.manager.step(10 * rate**step if step % every == 0 else None)
        found.append(bool(growth.history))
    assert found == [False, True], "a loss that falls by 2 % in each step is not flat"


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_says_nothing_of_what_is_flat(odd: float, tmp_path: Path) -> None:
    run = Run()
    growth = grow(run, when="flat", flat=0.02, window=4)
    for step in range(12):
        run.manager.step(odd if step == 6 else 10 * 0.9**step)
        run.manager.save(tmp_path / "run.fxgraft")
    assert not growth.history
    for _ in range(3):
        for _ in range(4):
            run.manager.step(odd)
    assert not growth.history, "nothing is known of a loss that is never finite"


@pytest.mark.parametrize("when", [None, object()])
def test_a_moment_of_another_kind_is_refused_by_name(when: Any) -> None:
    with pytest.raises(ValueError, match="when: expected"):
        grow(Run(), when=when)


@pytest.mark.parametrize("loss", [torch.tensor(3), torch.tensor([2, 4]), torch.tensor(True), 3, True])
def test_a_loss_may_be_whole_numbers(loss: Any) -> None:
    run = Run()
    growth = grow(run, when="flat", window=4, gain="steps")
    for _ in range(8):
        run.manager.step(loss)
    assert [entry["what"] for entry in growth.history] == ["exploring"]


@pytest.mark.parametrize("loss", [torch.tensor(3j), torch.tensor([1j, 2]), 3j])
def test_a_complex_loss_is_refused_by_name_and_the_step_is_not_taken(loss: Any) -> None:
    run = Run()
    growth = grow(run, when="flat", window=4)
    with pytest.raises(TypeError, match="loss: expected a number"):
        run.manager.step(loss)
    assert (run.manager.steps, growth.phase) == (0, "waiting")


def test_a_growth_that_explores_in_inference_mode_ends_and_the_training_goes_on() -> None:
    run = Run()
    growth = grow(run, when="flat", flat=2.0)
    with torch.inference_mode():
        for _ in range(9):
            run.manager.step(1.0)
    assert growth.done
    assert "torch.inference_mode" in growth.history[-1]["reason"]
    run.train(1)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_an_evaluation_that_is_not_finite_for_a_while_does_not_end_the_training(odd: float) -> None:
    run, is_odd = Run(), False

    def evaluate() -> list[Tensor]:
        return [torch.tensor(odd)] if is_odd else run.evaluate()

    growth = run.manager.autogrow(evaluate, when="flat", **{**QUICK, "flat": 2.0}, candidates=FEW)
    is_odd = True
    for _ in range(12):
        run.manager.step()
    assert (growth.phase, growth.history) == ("waiting", [])
    is_odd = False
    for _ in range(8):
        run.manager.step()
    assert growth.phase == "exploring"


def test_an_evaluation_that_is_not_finite_when_something_is_kept_changes_nothing(monkeypatch: Any) -> None:
    run = Run()
    growth = grow(run, gain=-1e9, when=[0.1], measurements=1)
    measure = run.manager.measure

    def measured(*args: Any, **kwargs: Any) -> float:
        gained = measure(*args, **kwargs)
        monkeypatch.setattr(growth._rounds, "evaluate", lambda: float("nan"))
        return gained

    monkeypatch.setattr(run.manager, "measure", measured)
    run.train(40)
    assert [entry["what"] for entry in growth.history].count("kept") == 1
    assert growth.done


@pytest.mark.parametrize("where", ["when", "evaluate"])
def test_code_that_raises_ends_it_and_is_told(where: str) -> None:
    run, raises = Run(), False

    def asked(value: Any) -> Any:
        if raises:
            raise ZeroDivisionError("no data")
        return value

    growth = run.manager.autogrow(
        (lambda: asked(run.evaluate())) if where == "evaluate" else run.evaluate,
        when="flat" if where == "evaluate" else lambda manager: asked(False),
        candidates=FEW,
        **QUICK,
    )
    raises = True
    for _ in range(QUICK["window"] - 1 if where == "evaluate" else 0):
        run.manager.step()
    with pytest.raises(ZeroDivisionError):
        run.manager.step()
    assert growth.done
    assert growth.history[-1]["reason"] == "it failed: ZeroDivisionError: no data"
    run.train(2)


@pytest.mark.parametrize("at", [2, 6, 10, 25])
def test_a_checkpoint_of_any_phase_goes_on_to_the_bit(at: int, tmp_path: Path) -> None:
    whole = Run()
    growth = grow(whole, gain=-10.0)
    whole.train(at)
    whole.manager.save(tmp_path / "run")
    losses = whole.train(40 - at)
    run = Run()
    run.manager = SeedManager.load(tmp_path / "run", run.host, run.optimizer)
    resumed = grow(run, gain=-10.0)
    assert_same_bits(run.train(40 - at), losses, "losses")
    assert resumed.history == growth.history
    assert_same_bits(frozen(run.host.state_dict()), frozen(whole.host.state_dict()), "weights")


def test_its_state_is_its_own_to_keep() -> None:
    run = Run()
    growth = grow(run)
    run.train(2)
    other = Run()
    again = grow(other)
    again.load_state_dict(growth.state_dict())
    assert again.state_dict() == growth.state_dict()
    with pytest.raises(CheckpointError, match="cannot go on"):
        again.load_state_dict({"phase": "exploring"})


def test_its_commands_make_the_run_again() -> None:
    events: list[Event] = []
    run = Run(sinks=[events.append])
    grow(run, gain=-10.0)
    losses = run.train(40)
    said = [(e.step, e.data["command"]) for e in events if e.kind == "command"]
    assert {command["type"] for _, command in said} >= {"SEED", "CULL", "BLEND", "FOSSILIZE"}
    again = Run()
    found = []
    for step in range(1, 41):
        found += again.train(1)
        for command in [command for at, command in said if at == step]:
            assert again.manager.handle(command)
    assert_same_bits(losses, found, "losses")
    assert_same_bits(frozen(run.host.state_dict()), frozen(again.host.state_dict()), "weights")


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"candidates": "frist"}, SlotError, "first"),
    ({"candidates": SEED(slot="first", blueprint="conv_depthwise")}, BlueprintError, r"\(N, C, H, W\)"),
    ({"evaluate": lambda: float("inf")}, ValueError, "finite"),
    ({"budget": 0.5}, ValueError, "budget"),
    ({"budget": 1.0}, ValueError, "the budget is spent: expected room .* has all of 1 times the parameters"),
    (
        {"budget": 1.1, "candidates": SEED(slot="first", blueprint="mlp", config={"hidden": 99})},
        ValueError,
        "nothing could grow: it has .* parameters; one may have",
    ),
    ({"budget": {"watts": 2.0}}, ValueError, "watts"),
    ({"when": "soon"}, ValueError, "flat"),
    ({"when": 0.5, "total_steps": None}, ValueError, "total_steps"),
    ({"when": 1.5}, ValueError, "when"),
    (
        {"when": 5, "total_steps": None},
        ValueError,
        "when: expected a share .* between 0 and 1; got 5. For a step",
    ),
    ({"when": [0.5, 5]}, ValueError, "when: expected a share .* between 0 and 1; got 5. For a step"),
    ({"when": -1, "total_steps": None}, ValueError, "when: expected a number between 0 and 1; got -1"),
    ({"when": True, "total_steps": None}, ValueError, "when: expected a number between 0 and 1; got True"),
    ({"steps": 0}, ValueError, "steps"),
    ({"measurements": 0}, ValueError, "measurements"),
    ({"measurements": 2, "standard_errors": 1.0}, ValueError, "standard_errors: expected measurements=3"),
    ({"measurements": 3, "standard_errors": -1.0}, ValueError, "standard_errors: expected a number, 0"),
    ({"price": -0.1, "gain": "steps"}, ValueError, "price: expected a number, 0 or more"),
    ({"price": 0.5}, ValueError, 'price: expected gain="steps" beside it; got gain=0.001'),
    ({"score": "size"}, ValueError, "score"),
]


@pytest.mark.parametrize(("options", "error", "said"), REFUSED)
def test_what_is_not_right_is_refused_at_once(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    run = Run()
    given = {"evaluate": run.evaluate, "when": 0.5, "total_steps": 40, **options}
    with pytest.raises(error, match=said):
        run.manager.autogrow(**given)
    grow(run)  # nothing is in the way of another try
    with pytest.raises(StageError, match="another growth"):
        grow(run)


def test_a_budget_of_flops_is_kept() -> None:
    run = Run()
    growth = grow(run, budget={"flops": 1.2}, gain=-10.0)
    run.train(40)
    assert {e["blueprint"] for e in growth.history if e["what"] == "kept"} == {"norm"}  # without products


def test_a_rollback_by_somebody_else_ends_it() -> None:
    run = Run()
    growth = grow(run)
    run.train(6)
    run.manager.cull_all()
    run.train(10)
    assert growth.done
    assert isinstance(run.host, fxgraft.Host)


@pytest.mark.parametrize("at", [2, 6, 10, 40])
def test_it_is_stopped_in_any_phase(at: int) -> None:
    run = Run()
    growth = grow(run)
    run.train(at)
    kept = [entry["seed"] for entry in growth.history if entry["what"] == "kept"]
    was_done = growth.done
    growth.stop()
    growth.stop()
    run.train(12)
    assert growth.done
    assert was_done or growth.history[-1]["reason"] == "it was stopped", growth
    assert set(run.manager.seeds) <= set(kept), "what was kept stays, all else is gone"
    run.manager.autogrow(run.evaluate)  # another one may begin


class Residual(nn.Module):
    """A block whose hidden layer can grow."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)
        self.up, self.down = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.head(x + self.down(torch.relu(self.up(self.norm(x)))))


def wider(run: Run, gain: float = -10.0) -> AutoGrowth:
    """Layers grow wider before all else."""
    given = {**QUICK, "blueprints": None, "when": [0.1], "total_steps": 40, "gain": gain}
    return run.manager.autogrow(
        run.evaluate, "auto", 9.0, score=lambda row: float(row.widens is not None), **given
    )


BEGUN = {"blending", "beginning anew"}


def test_a_layer_grows_wider_where_the_branch_that_stands_for_it_stays(monkeypatch: Any) -> None:
    monkeypatch.setattr(runs, "NormNet", Residual)
    events: list[Event] = []
    run = Run(sinks=[events.append])
    growth = wider(run)
    run.train(7)
    (row,) = [row for row in growth.exploration.table if row.widens and row.status == "learning"]
    assert (row.slot, row.widens, row.parameters) == ("down", ("up", 4), 68)
    assert row.command == WIDEN(group="up", by=4)
    assert "widen(by=4)" in str(growth.exploration)
    run.train(20)
    explored, begun, widened, end = growth.history
    assert (explored["what"], widened["what"], end["what"]) == ("exploring", "widened", "done")
    assert begun["what"] in BEGUN
    assert widened["contribution"] is not None
    assert widened["reason"].endswith("; up has 4 channels more")
    assert f"step {run.manager.steps}; 1 kept; " in str(growth)
    assert (run.host.up.out_features, run.host.down.in_features) == (8, 8)
    assert not run.manager.seeds
    assert run.host.down.weight[:, 4:].abs().sum() > 0, "the new units have learned"
    said = [event.data["command"]["type"] for event in events if event.kind == "command"]
    assert said[-2:] == ["FOSSILIZE", "FUSE"]
    run.train(2)


def test_a_layer_does_not_grow_wider_where_the_branch_for_it_does_not_pay(monkeypatch: Any) -> None:
    monkeypatch.setattr(runs, "NormNet", Residual)
    run = Run()
    growth = wider(run, gain=1e9)
    run.train(60)
    assert [entry["what"] for entry in growth.history if entry["what"] not in BEGUN] == [
        "exploring", "dropped", "done",
    ]  # fmt: skip
    assert run.host.up.out_features == 4
    assert not run.manager.seeds


def test_what_cannot_be_fused_stays_a_branch_and_says_why(monkeypatch: Any) -> None:
    monkeypatch.setattr(runs, "NormNet", Residual)
    run = Run()
    growth = wider(run)
    while growth.phase != "trying":
        run.train(1)
    run.host.up.requires_grad_(False)
    run.train(30)
    (kept,) = [entry for entry in growth.history if entry["what"] == "kept"]
    assert "; as a branch: SlotError: seed " in kept["reason"]
    assert "cannot be fused" in kept["reason"]
    assert [seed.stage for seed in run.manager.seeds.values()] == [Stage.FOSSILIZED]
    assert run.host.up.out_features == 4


def test_a_wider_layer_on_trial_is_saved_and_loaded(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(runs, "NormNet", Residual)
    run = Run()
    growth = wider(run)
    run.train(10)
    assert growth.phase == "trying"
    run.manager.save(tmp_path / "run")
    run.train(20)
    other = Run()
    other.manager = SeedManager.load(tmp_path / "run", other.host, other.optimizer)
    again = wider(other)
    other.train(20)
    assert other.host.up.out_features == 8
    assert again.history == growth.history
    assert_same_bits(run.state(), other.state(), "the runs")


class Stacked(nn.Module):
    """Two alike blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(6, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList([Hidden(), Hidden()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


BLOCKS = [SEED(slot=f"blocks.{i}", blueprint="deepen", config={"stack": "blocks", "at": i}) for i in (0, 1)]


@pytest.mark.parametrize("helps", [True, False])
def test_a_stack_grows_deeper_where_a_block_wins(monkeypatch: Any, helps: bool) -> None:
    monkeypatch.setattr(runs, "NormNet", Stacked)
    events: list[Event] = []
    run = Run(sinks=[events.append])
    given = {**QUICK, "blueprints": None, "when": [0.1], "total_steps": 40, "gain": -10.0}
    growth = run.manager.autogrow(
        run.evaluate,
        [*BLOCKS, SEED(slot="enter", blueprint="norm")],
        9.0,
        score=lambda row: float(row.deepens == ("blocks", 1)),
        **given,
    )
    monkeypatch.setattr("fxgraft.explore.table.Row.helps", helps)  # whatever it has learnt
    run.train(7)
    rows = [row for row in growth.exploration.table if row.deepens is not None]
    assert {row.deepens for row in rows} == {("blocks", 0), ("blocks", 1)}
    assert {row.parameters for row in rows} == {8 + 15 + 16}
    assert DEEPEN(stack="blocks", at=[1]) in [row.command for row in rows]
    run.train(14)
    assert [entry["what"] for entry in growth.history][-2:] == ["kept", "done"], growth
    assert len(run.host.stacks["blocks"].blocks) == 3
    (seed,) = run.manager.seeds.values()
    assert (seed.stage, seed.blueprint) == (Stage.FOSSILIZED, "Hidden")
    said = [event.data["command"] for event in events if event.kind == "command"]
    deepened = [command.get("isolated", False) for command in said if command["type"] == "DEEPEN"]
    assert deepened == [True, True, *([] if helps else [False])]


def test_an_exploration_with_blocks_does_not_touch_the_host_and_is_resumed(
    monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(runs, "NormNet", Stacked)
    plain = Run()
    losses, state = plain.train(7), plain.state()
    given = {**QUICK, "blueprints": None, "when": [0.1], "total_steps": 40}
    run = Run()
    growth = run.manager.autogrow(run.evaluate, [*BLOCKS, SEED(slot="enter", blueprint="norm")], 9.0, **given)
    assert_same_bits(losses, run.train(7), "losses")
    assert growth.phase == "exploring"
    assert_same_bits(state, run.state(), "weights, moments and random streams")
    run.manager.save(tmp_path / "run")
    rest = run.train(9)
    again = Run()
    again.manager = SeedManager.load(tmp_path / "run", again.host, again.optimizer)
    resumed = again.manager.autogrow(again.evaluate, BLOCKS, 9.0, **given)
    assert_same_bits(again.train(9), rest, "losses")
    assert resumed.history == growth.history
