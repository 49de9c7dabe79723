"""Behind which blocks of a stack new ones stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from fxgraft.util import validate

At = None | str | Sequence[int]
"""None spreads evenly; ``"start"``, ``"end"``; or the indices of the blocks to stand behind."""


@dataclass(frozen=True)
class BlockPlace:
    """Of one new block.

    Attributes:
        index: of the block that it stands next to.
        before: whether it stands in front of that one.
        like: the index of the block that it is a copy of.
    """

    index: int
    before: bool
    like: int


def places(blocks: int, count: int, at: Any, like: Any = None) -> list[BlockPlace]:
    """The places of ``count`` new blocks in a stack of ``blocks``, in running order.

    Raises:
        ValueError: for a count or a place that cannot be.
    """
    count = validate.integer("count", count, 1)
    if isinstance(at, str):
        if at not in ("start", "end"):
            raise _refusal(at)
        indices = [0 if at == "start" else blocks - 1] * count
    elif at is None:
        indices = [-(-(k + 1) * blocks // count) - 1 for k in range(count)]
    else:
        indices = _indices("at", at, blocks)
        if len(indices) == 1:
            indices *= count
        if count not in (1, len(indices)):
            raise ValueError(
                f"count: expected {len(indices)}, as many as there are indices in at ({list(at)}), or none; "
                f"got {count}"
            )
        if indices != sorted(indices):
            raise ValueError(f"at: expected indices in running order; got {list(at)}")
    copied = indices if like is None else _indices("like", like, blocks)
    if len(copied) != len(indices):
        raise ValueError(f"like: expected {len(indices)} indices, one for each new block; got {len(copied)}")
    return [BlockPlace(i, at == "start", j) for i, j in zip(indices, copied, strict=True)]


def _indices(name: str, given: Any, blocks: int) -> list[int]:
    if not isinstance(given, Sequence) or not given:
        raise _refusal(given)
    for index in given:
        if isinstance(index, bool) or not isinstance(index, Integral) or not -blocks <= int(index) < blocks:
            raise ValueError(
                f"{name}: expected indices of blocks, 0 to {blocks - 1} (or from the end, -1 to -{blocks}); "
                f"got {index!r}"
            )
    return [int(index) % blocks for index in given]


def _refusal(given: Any) -> ValueError:
    return ValueError(
        f"at: expected None (spread evenly), 'start', 'end', or a list of indices of blocks to stand behind; "
        f"got {given!r}"
    )
