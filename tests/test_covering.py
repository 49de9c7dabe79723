"""A selection of cases has every pair of values; the thorough profile has every case."""

from __future__ import annotations

from itertools import product

import pytest

from tests.covering import Case, covering_pairs, pairs_of

FULL = list(product("abcde", range(4), (True, False), ("x", "y", "z")))
WITH_GAPS = [case for case in FULL if (case[0], case[1]) not in {("a", 0), ("b", 3)} and sum(case[1:3]) != 2]


@pytest.mark.parametrize("cases", [FULL, WITH_GAPS, [("only",)], [("a", 1)]])
def test_every_pair_is_there_and_nothing_else(cases: list[Case]) -> None:
    chosen = covering_pairs(cases, thorough=False)
    assert set().union(*map(pairs_of, chosen)) == set().union(*map(pairs_of, cases))
    assert set(chosen) <= set(cases)
    assert len(chosen) == len(set(chosen))
    assert covering_pairs(cases, thorough=False) == chosen


def test_it_is_a_small_part() -> None:
    assert len(covering_pairs(FULL, thorough=False)) < 30 < len(FULL)


def test_the_thorough_profile_has_every_case() -> None:
    assert covering_pairs(FULL, thorough=True) == FULL
