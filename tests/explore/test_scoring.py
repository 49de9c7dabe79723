"""The scores by which candidates are ranked."""

from __future__ import annotations

from typing import Any

import pytest

from fxgraft.commands import SEED, WIDEN
from fxgraft.explore import scoring
from fxgraft.explore.table import MEASURED, Row


def row(**given: Any) -> Row:
    fields: dict[str, Any] = dict.fromkeys(Row.__dataclass_fields__)
    command = WIDEN(group="up", by=2) if given.get("widens") else SEED(slot="up", blueprint="mlp")
    known = {"slot": "up", "blueprint": "mlp", "status": MEASURED, "reason": "", "trained_steps": 9}
    return Row(**{**fields, **known, "command": command, **given})


BRANCH = row(expected=2.0, parameters=100, contribution=0.5, standard_error=0.01)
LESSER = row(expected=1.0, parameters=100, contribution=-0.5, standard_error=0.01)
WIDER = row(expected=1e-3, parameters=8, contribution=0.1, standard_error=0.01, widens=("up", 2))
DEEPER = row(expected=1e-3, parameters=8, contribution=0.2, standard_error=0.01, deepens=("blocks", 0))
USELESS = row(expected=5.0, parameters=10, contribution=0.1, standard_error=0.1, widens=("down", 2))
UNKNOWN = row(parameters=10)


def ranked(*rows: Row) -> list[Row]:
    scores = scoring.resolve("layers_first")(rows)
    order = sorted(range(len(rows)), key=lambda i: -scoring.rank_of(scores[i]))
    return [rows[i] for i in order]


def test_layers_that_help_come_first_and_the_rest_as_by_default() -> None:
    assert ranked(UNKNOWN, LESSER, BRANCH, USELESS, WIDER, DEEPER) == [
        DEEPER, WIDER, BRANCH, LESSER, USELESS, UNKNOWN,
    ]  # fmt: skip


def test_they_do_so_where_nothing_else_has_a_score() -> None:
    assert ranked(UNKNOWN, WIDER) == [WIDER, UNKNOWN]


@pytest.mark.parametrize(
    ("contribution", "error", "helps"),
    [(None, None, False), (0.1, None, True), (-0.1, None, False), (0.1, 0.06, False), (0.1, 0.04, True)],
)
def test_what_helps_does_so_beyond_two_standard_errors(
    contribution: float | None, error: float | None, helps: bool
) -> None:
    assert row(contribution=contribution, standard_error=error).helps is helps


def test_by_flops_what_costs_little_comes_first_and_what_has_none_known_last() -> None:
    cheap = row(contribution=0.1, flops=10)
    dear = row(contribution=0.5, flops=1000)
    scores = scoring.resolve("per_flop")([DEEPER, dear, cheap])
    assert scores == [None, 0.0005, 0.01]
    assert scoring.rank_of(scores[0]) < scoring.rank_of(scores[1])


def test_an_unknown_score_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"expected one of contribution, .*, layers_first, or a function"):
        scoring.resolve("best")
