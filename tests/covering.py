"""Which cases of a full product are run: enough of them that every pair of values is tried."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import combinations

from tests.harness import THOROUGH

Case = tuple[Hashable, ...]


def pairs_of(case: Case) -> set[tuple[int, Hashable, int, Hashable]]:
    """Each two of its values, with their places."""
    return {(i, case[i], j, case[j]) for i, j in combinations(range(len(case)), 2)}


def covering_pairs(cases: Iterable[Case], thorough: bool = THOROUGH) -> list[Case]:
    """So many of the cases that each pair of values that occurs in one of them occurs in one of these.

    A fault that needs three certain values together may escape: with ``FXGRAFT_HYPOTHESIS=thorough``
    all cases are returned. The choice is the same in each run: the case with the most new pairs, and
    the first of those.
    """
    every = list(cases)
    if thorough:
        return every
    pairs = {case: pairs_of(case) for case in every}
    lacking = set().union(*pairs.values())
    chosen = set()
    while lacking:
        best = max(every, key=lambda case: len(pairs[case] & lacking))
        chosen.add(best)
        lacking -= pairs[best]
    return [case for case in every if case in chosen]
