"""What a budget of memory, and the caps of an exploration, have room for: at the limit, and one below."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest

from fxgraft.commands import DEEPEN, SEED
from fxgraft.explore import AutoGrowth
from fxgraft.explore._cap import LEAST_FLOPS, Cap
from fxgraft.explore._example_run import BlockFlops
from tests.explore import runs
from tests.explore.runs import Run
from tests.explore.test_price import Stack

FLOAT, ROWS, WIDTH = 4, 4, 4
"""Bytes of a number; rows of the example call; the width of the slots."""
SIZE = 6 * 4 + 4 + 2 * 4 + 4 * 2 + 2
HOST = 4 * FLOAT * SIZE
"""Bytes: each weight, its gradient, two moments."""


def branch(rank: int, slot: str = "relu") -> SEED:
    return SEED(slot=slot, blueprint="low_rank", config={"rank": rank})


def parameters(rank: int) -> int:
    return 2 * rank * WIDTH


def memory(rank: int) -> int:
    """Bytes: as for the host, and three values like that at the slot."""
    return 4 * FLOAT * parameters(rank) + 3 * FLOAT * ROWS * WIDTH


def factor(room: int, of: int = HOST) -> float:
    """A budget that has room for so many bytes beside the host, and not for one more."""
    return (of + room + 0.5) / of


def grow(run: Run, candidates: Any, **budget: float) -> AutoGrowth:
    return run.manager.autogrow(
        run.evaluate, candidates, budget, when=[0.1], total_steps=40, steps=2, blend=1, hold=1, gain=-10.0
    )


def reasons(growth: AutoGrowth) -> list[str]:
    assert growth.exploration is not None
    return [row.reason for row in growth.exploration.table if row.status == "left out"]


def test_a_row_says_its_memory() -> None:
    (row,) = Run().explored([branch(3)]).best()
    assert (row.parameters, row.memory) == (parameters(3), memory(3))


def test_a_candidate_that_just_fits_in_the_memory_grows_and_one_byte_less_is_an_error_at_once() -> None:
    run = Run()
    growth = grow(run, branch(2), memory=factor(memory(2)))
    run.train(20)
    assert [e["slot"] for e in growth.history if e["what"] == "kept"] == ["relu"]
    grown = (HOST + memory(2)) / HOST
    assert f"; {grown:.2f} times the memory, of {factor(memory(2)):g}" in str(growth)
    with pytest.raises(ValueError, match=f"it has {memory(2)} bytes; one may have {memory(2) - 1} at most"):
        grow(Run(), branch(2), memory=factor(memory(2) - 1))


def test_what_was_kept_is_counted_with_the_values_that_it_keeps() -> None:
    run = Run()
    room = memory(2) + memory(1)
    growth = run.manager.autogrow(
        run.evaluate, [branch(2)], {"memory": factor(room - 1)}, when=[0.1, 0.5], total_steps=40, steps=2,
        blend=1, hold=1, gain=-10.0,
    )  # fmt: skip
    run.train(40)
    assert [e["what"] for e in growth.history].count("kept") == 1
    assert growth._room(None) == {"memory": memory(1) - 1}


@pytest.mark.parametrize("fits", [True, False])
def test_candidates_that_learn_side_by_side_fit_together(fits: bool) -> None:
    run, room = Run(), memory(1) + memory(2)
    growth = grow(run, [branch(1), branch(2, "first")], memory=factor(room if fits else room - 1))
    run.train(5)
    said = [] if fits else [f"the cap of {room - 1:,} bytes for all candidates together"]
    assert reasons(growth) == said
    run.train(15)
    assert growth.done


def test_a_block_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "NormNet", Stack)
    run = Run()
    size, block = (
        4 * FLOAT * sum(p.numel() for p in module.parameters())
        for module in (run.host, run.host.get_submodule("blocks.0"))
    )
    growth = grow(run, DEEPEN(stack="blocks", at="end"), memory=factor(block, size))
    run.train(20)
    assert [e["what"] for e in growth.history].count("kept") == 1
    assert growth._bytes == size + block
    with pytest.raises(ValueError, match=f"a block has {block:,} bytes to train; there is room for"):
        grow(Run(), DEEPEN(stack="blocks", at="end"), memory=factor(block - 1, size))


OF_STACK, OF_BLOCK = 6 * 4 + 4 * 3 * 2 + 4 * 2, 4 * 3 * 2
"""Products of a row in `Stack`, and in one of its blocks."""


def test_a_block_with_too_many_flops_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "NormNet", Stack)
    block, flops = DEEPEN(stack="blocks", at="end"), 2 * ROWS * OF_BLOCK
    grow(Run(), block, flops=(OF_STACK + OF_BLOCK) / OF_STACK)
    said = f"the budget is spent: a block has {flops} FLOPs; there is room for {flops - 1}"
    with pytest.raises(ValueError, match=said):
        grow(Run(), block, flops=factor(flops - 1, 2 * ROWS * OF_STACK))


@pytest.mark.parametrize("fits", [True, False])
def test_a_block_whose_flops_are_seen_when_it_is_there_goes_where_it_is_too_much(
    monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    monkeypatch.setattr(runs, "NormNet", Stack)
    monkeypatch.setattr(BlockFlops, "of", lambda self, block: None)
    run, host, block = Run(), OF_STACK, OF_BLOCK
    growth = grow(run, DEEPEN(stack="blocks", at="end"), flops=(host + block) / host - (0 if fits else 0.01))
    run.train(20)
    (end,) = [entry for entry in growth.history if entry["what"] in ("kept", "dropped")]
    assert (end["what"] == "kept") is fits
    assert len(run.host.stacks["blocks"].blocks) == 1 + fits
    said = f"a forward pass with it has {2 * ROWS * (host + block)} FLOPs; the budget is "
    assert fits or end["reason"].startswith(said)


def test_frozen_weights_are_counted_once() -> None:
    run = Run()
    run.host.first.requires_grad_(False)
    frozen = 6 * 4 + 4
    growth = grow(run, branch(1), memory=3.0)
    assert growth._memory.memory == HOST - 3 * FLOAT * frozen


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"memory": 0.5}, r"budget\['memory'\]"),
        ({"memory": 1.0}, "the budget is spent: .* all of 1 times the memory. To grow on, allow more"),
        ({"memory": 3.0, "parameters": 1.01}, r"the host has all of 1\.01 times the parameters\. To grow"),
        ({}, "budget: expected one of parameters, flops, memory at least; got none"),
        ({"bytes": 2.0}, "budget: expected parameters, flops, memory; got 'bytes'"),
    ],
)
def test_a_budget_that_says_nothing_is_refused_by_name(budget: Mapping[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        grow(Run(), branch(1), **budget)


# Caps of an exploration

FLOPS = {rank: 2 * ROWS * parameters(rank) for rank in (1, 2)}


@pytest.mark.parametrize(
    ("name", "limit", "said"),
    [
        ("flops", FLOPS[1] + FLOPS[2], "FLOPs"),
        ("memory", memory(1) + memory(2), "bytes"),
        ("parameters", parameters(1) + parameters(2), "parameters"),
        ("candidates", 2, None),
    ],
)
def test_a_cap_of_commands_is_kept_to_the_last_of_it(name: str, limit: int, said: str | None) -> None:
    seeds = [branch(1), branch(2, "first")]
    exploration = Run().explored(seeds, steps=1, cap={name: limit})
    assert [row.status for row in exploration.table] == ["measured"] * 2
    exploration = Run().explored(seeds, steps=1, cap={name: limit - 1})
    assert [row.status for row in exploration.table] == ["measured", "left out"]
    about = "1 candidates" if said is None else f"{limit - 1:,} {said} for all candidates together"
    assert exploration.table[1].reason == f"the cap of {about}"


@pytest.mark.parametrize("name", ["flops", "memory"])
def test_a_cap_of_slots_takes_what_it_has_room_for_and_says_what_it_left_out(name: str) -> None:
    everything = Run().explored(["relu", "first"], steps=1)
    total = sum(row[name] for row in everything.best(99))
    few = Run().explored(["relu", "first"], steps=1, cap={name: total // 2})
    taken = few.best(99)
    assert 0 < len(taken) < len(everything.best(99))
    assert sum(row[name] for row in taken) <= total // 2
    left = [row for row in few.table if row.status == "left out" and "cap of" in row.reason]
    assert len(left) == len(everything.best(99)) - len(taken)
    assert all(sum(row[name] for row in taken) + other[name] > total // 2 for other in left)


@pytest.mark.parametrize(
    ("flops", "limit"), [(LEAST_FLOPS, 2 * LEAST_FLOPS), (10, LEAST_FLOPS), (None, None)]
)
def test_the_cap_of_flops_is_twice_those_of_the_host_or_the_least(flops: int, limit: int | None) -> None:
    cap = Cap.of(None, Run().host, flops)
    assert cap.flops == (sys.maxsize if limit is None else limit)
    assert cap.memory == sys.maxsize
