"""What a block has to give for its FLOPs, and growth that asks for it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxgraft import SeedManager
from fxgraft.commands import DEEPEN
from fxgraft.errors import SlotError
from fxgraft.explore import AutoGrowth
from fxgraft.explore._price import MOST, Pace, price
from tests.explore import runs
from tests.explore.runs import Hidden, Run
from tests.harness import assert_same_bits


@given(st.integers(20, 3000), st.floats(0.05, 2.0))
def test_the_slope_of_a_loss_that_falls_as_the_logarithm_of_the_steps_is_found(
    steps: int, fall: float
) -> None:
    pace = Pace()
    for step in range(steps):
        pace.add(5.0 - fall * math.log(step + 0.5))
    assert len(pace.means) < MOST
    found = pace.slope()
    assert found is not None
    assert found == pytest.approx(fall, rel=0.05)
    assert Pace(**json.loads(json.dumps(asdict(pace)))) == pace


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_left_out_of_the_pace(odd: float) -> None:
    plain, other = Pace(), Pace()
    for step in range(1, 400):
        plain.add(-math.log(step))
        other.add(-math.log(step))
        if step % 50 == 0:
            other.add(odd)
    assert other == plain


def test_no_slope_is_told_from_few_steps() -> None:
    pace = Pace()
    for _ in range(9):
        pace.add(1.0)
    assert pace.slope() is None


def test_the_price_is_the_fall_that_as_many_flops_bring_without_the_part() -> None:
    fall, done, learnt, ratio = 0.3, 1000, 200, 1.5
    further = (ratio - 1) * learnt
    expected = fall * (math.log(done + further) - math.log(done))
    assert price(fall, done, learnt, ratio) == pytest.approx(expected)
    assert price(fall, done, learnt, 1.0) == 0.0
    assert price(-1.0, done, learnt, ratio) == 0.0
    assert price(fall, 0, learnt, ratio) > 0


class Stack(nn.Module):
    """Blocks of which more can be had."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 4)
        self.blocks = nn.ModuleList([Hidden()])
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


BLOCK = DEEPEN(stack="blocks", at="end")


def grown(run: Run, **options: Any) -> AutoGrowth:
    moments = {20, 40, 60}
    given = {
        "candidates": BLOCK, "when": lambda manager: manager.steps in moments, "budget": 4.0, "blend": 1,
        "hold": 4, "window": 4, "gain": "steps", **options,
    }  # fmt: skip
    return run.manager.autogrow(run.evaluate, **given)


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(runs, "NormNet", Stack)
    return Run()


def falling(run: Run, steps: int, fall: float) -> None:
    """Train, and tell of a loss that falls by so much for each unit of the logarithm of the steps."""
    for _ in range(steps):
        now = torch.randint(0, len(runs.X), (16,))
        run.optimizer.zero_grad()
        F.cross_entropy(run.host(runs.X[now]), runs.Y[now]).backward()
        run.optimizer.step()
        run.manager.step(50.0 - fall * math.log(run.manager.steps + 0.5))


@pytest.mark.parametrize(("fall", "price"), [(0.0, None), (0.3, None), (20.0, None), (20.0, 0.5), (20.0, 0)])
def test_a_block_has_to_give_a_share_of_its_price_a_quarter_by_default(
    stack: Run, fall: float, price: float | None
) -> None:
    growth = grown(stack, price=price)
    falling(stack, 30, fall)
    (end,) = [entry for entry in growth.history if entry["what"] in ("dropped", "kept")]
    needed = float(end["reason"].split()[-1])
    assert (end["what"] == "kept") == (end["contribution"] > needed)
    # A block has 4 x 3 weights twice, around it there are 6 x 4 and 4 x 2: as many FLOPs again, nearly.
    ratio, began, learnt = (32 + 2 * 24) / (32 + 24), 21, end["step"] - 21
    share = 0.25 if price is None else price
    assert needed == pytest.approx(share * fall * math.log1p((ratio - 1) * learnt / began), rel=0.3, abs=1e-9)


def test_patience_is_how_many_rounds_may_bring_nothing(stack: Run) -> None:
    growth = grown(stack, patience=2, gain=1e9)
    stack.train(80)
    assert [e["what"] for e in growth.history].count("dropped") == 2
    assert growth.done
    assert len(stack.host.stacks["blocks"].blocks) == 1


@pytest.mark.parametrize("init", ["zero", "copy"])
def test_a_block_is_tried_at_once_each_time_until_the_budget_is_spent(stack: Run, init: str) -> None:
    size = sum(p.numel() for p in stack.host.parameters())
    block = sum(p.numel() for p in stack.host.get_submodule("blocks.0").parameters())
    growth = grown(stack, candidates=replace(BLOCK, init=init), gain=-10.0, budget=1 + 2.5 * block / size)
    stack.train(80)
    found = [e["what"] for e in growth.history]
    assert found == ["deepening", "kept", "deepening", "kept", "done"]
    assert growth.history[0]["step"] == 20
    assert growth.history[-1]["reason"].startswith("the budget is spent")
    assert len(stack.host.stacks["blocks"].blocks) == 3
    assert sum(p.numel() for p in stack.host.host_parameters()) == size + 2 * block


def test_a_block_that_is_to_be_a_copy_is_tried_with_zeroed_output_layers(stack: Run) -> None:
    growth = grown(stack, candidates=replace(BLOCK, init="copy"), when=lambda manager: manager.steps == 1)
    stack.train(1)
    assert [entry["what"] for entry in growth.history] == ["deepening"]
    (tried,) = stack.manager.seeds.values()
    with_it, without = (_losses(stack, alpha) for alpha in (1.0, 0.0))
    assert_same_bits(with_it, without, "losses")
    assert tried.name in stack.manager.seeds


def _losses(run: Run, alpha: float) -> list[Tensor]:
    (name,) = run.manager.seeds
    with run.manager.at_alpha(name, alpha), torch.no_grad():
        return run.evaluate()


@pytest.mark.parametrize("init", ["zero", "copy"])
def test_a_command_with_an_id_is_carried_out_in_each_round(stack: Run, init: str) -> None:
    growth = grown(stack, candidates=replace(BLOCK, init=init, id="once"), gain=-10.0)
    stack.train(55)
    kept = [entry for entry in growth.history if entry["what"] == "kept"]
    assert len(kept) == 2
    assert all(stack.manager.seeds[entry["seed"]].stage.name == "FOSSILIZED" for entry in kept)
    assert len(stack.host.stacks["blocks"].blocks) == 3


class NormAtTheEnd(Hidden):
    """A block without output layers that could be zeroed."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(super().forward(x))


class OfNormedBlocks(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([NormAtTheEnd()])


def test_a_block_that_cannot_be_zeroed_is_tried_as_a_copy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "NormNet", OfNormedBlocks)
    run = Run()
    growth = grown(
        run, candidates=replace(BLOCK, init="copy"), when=lambda manager: manager.steps == 5, gain=-10.0
    )
    run.train(40)
    assert [entry["what"] for entry in growth.history][:2] == ["deepening", "kept"]
    (seed,) = run.manager.seeds.values()
    assert (seed.stage.name, seed.config["init"]) == ("FOSSILIZED", "copy")
    assert not caplog.records


@pytest.mark.parametrize("helps", [True, False])
def test_what_pays_is_replaced_by_a_copy_and_what_does_not_is_gone(stack: Run, helps: bool) -> None:
    gain = -10.0 if helps else 10.0
    growth = grown(
        stack,
        candidates=replace(BLOCK, init="copy", optimizer_state="copy"),
        when=lambda manager: manager.steps == 5,
        gain=gain,
    )
    while not any(entry["what"] in ("kept", "dropped") for entry in growth.history):
        stack.train(1)
    if not helps:
        stack.train(20)
        assert not stack.manager.seeds
        assert len(stack.host.stacks["blocks"].blocks) == 1
        return
    kept = growth.history[-1]
    assert kept["reason"].endswith("a copy is in its place")
    ((name, seed),) = stack.manager.seeds.items()
    assert kept["seed"] == name
    assert seed.stage.name == "FOSSILIZED"
    front = dict(stack.host.get_submodule("blocks.0").named_parameters())
    for path, parameter in seed.module.named_parameters():
        assert_same_bits(parameter, front[path], path)
        ours, theirs = (stack.optimizer.state[p] for p in (parameter, front[path]))
        assert_same_bits(ours, theirs, path)
    stack.train(3)
    assert any((p != front[path]).any() for path, p in seed.module.named_parameters()), "it trains"


@pytest.mark.parametrize("hold", [10, 0.5])
def test_a_hold_below_one_is_a_share_of_the_steps_before(stack: Run, hold: float) -> None:
    growth = grown(stack, hold=hold, gain=-10.0)
    stack.train(80)
    begun, kept = ([e["step"] for e in growth.history if e["what"] == what] for what in ("deepening", "kept"))
    for start, end in zip(begun, kept, strict=False):
        held = 10 if hold == 10 else math.ceil(0.5 * (start + 1))
        assert held <= end - start <= held + 3


REFUSED: list[tuple[DEEPEN, type[Exception], str]] = [
    (DEEPEN(stack="layers"), SlotError, r"\(blocks\); got 'layers'"),
    (DEEPEN(stack="blocks", count=2), ValueError, "count=1"),
    (DEEPEN(stack="blocks", isolated=True), ValueError, "isolated=False"),
]


@pytest.mark.parametrize(("block", "error", "said"), REFUSED)
def test_a_block_that_cannot_be_tried_is_refused_at_once(
    stack: Run, block: DEEPEN, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        grown(stack, candidates=block)
    grown(stack)


def test_a_price_needs_the_loss_of_each_step_and_says_so(stack: Run) -> None:
    grown(stack)
    with pytest.raises(ValueError, match=r'gain="steps".*manager\.step\(loss\)'):
        stack.manager.step()
    with pytest.raises(ValueError, match="gain"):
        Run().manager.autogrow(stack.evaluate, gain="flops")
    with pytest.raises(ValueError, match="patience"):
        Run().manager.autogrow(stack.evaluate, patience=0)


@pytest.mark.parametrize("at", [7, 22])
def test_what_it_knows_of_the_pace_is_in_a_checkpoint(stack: Run, at: int, tmp_path: Path) -> None:
    growth = grown(stack)
    stack.train(at)
    stack.manager.save(tmp_path / "run")
    losses = stack.train(40 - at)
    other = Run()
    other.manager = SeedManager.load(tmp_path / "run", other.host, other.optimizer)
    again = grown(other)
    assert_same_bits(other.train(40 - at), losses, "losses")
    assert again.history == growth.history
    assert again.state_dict() == growth.state_dict()
