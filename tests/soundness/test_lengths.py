"""How many values an operation returned in the example is a condition, if the code was told."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.util.bits import same_bits


class Combining(nn.Module):
    def __init__(self, combine: Callable[..., Tensor]):
        super().__init__()
        self.lin, self.combine = nn.Linear(6, 6), combine

    def forward(self, x: Tensor, given: Any = None) -> Tensor:
        h = torch.tanh(self.lin(x))
        return self.combine(h) if given is None else self.combine(h, given)


def rest_of(h: Tensor) -> Tensor:
    first, *others = h.split(2)
    return h + first.sum() - sum(part.sum() for part in others)


BY_SIZE: dict[str, Callable[[Tensor], Tensor]] = {
    "unbind": lambda h: h + sum(step for step in h.unbind(0)),
    "unbind by name": lambda h: h + sum(torch.unbind(h, dim=0)),
    "split": lambda h: h + sum(part.sum() for part in h.split(2)),
    "split by name": lambda h: h * len(torch.split(h, split_size_or_sections=2, dim=0)),
    "split by a computed size": lambda h: h * len(h.split(h.size(1) // 3)),
    "chunk": lambda h: h + sum(part.sum() for part in h.chunk(3)),
    "chunk by name": lambda h: h * len(torch.chunk(h, chunks=3, dim=0)),
    "some of them": lambda h: h + sum(part.sum() for part in h.split(2)[1:]),
    "a tuple": lambda h: h * len(tuple(h.split(2))),
    "in another order": lambda h: torch.cat(list(reversed(h.split(2)))),
    "zip": lambda h: torch.cat([part * i for i, part in zip((1, 2, 3), h.split(2), strict=False)]),
    "the others": rest_of,
}


@pytest.mark.parametrize("combine", BY_SIZE.values(), ids=list(BY_SIZE))
def test_a_number_of_parts_that_depends_on_a_size(combine: Callable[[Tensor], Tensor]) -> None:
    model = Combining(combine)
    host = fxgraft.trace(model, (torch.randn(4, 6),))
    seed = fxgraft.SeedManager(host, check_every=0).germinate("tanh", "mlp")
    for rows in (4, 6, 2, 5, 3, 0):
        x = torch.randn(rows, 6)
        assert same_bits(host(x), model(x)), rows
    assert seed.runs >= 1, "calls like the example's have a graph"


@pytest.mark.parametrize(
    "combine",
    [
        lambda h: h + sum(part.sum() for part in h.chunk(3, dim=-1)),
        lambda h: h + sum(part.sum() for part in h.split([1, 5], -1)),
        lambda h: h + sum(part.sum() for part in torch.tensor_split(h, 3)),
        lambda h: h + sum(part.sum() for part in torch.sort(h, dim=1)[:1]),
    ],
    ids=["an axis of another layer's", "sections", "tensor_split", "a named tuple"],
)
def test_a_number_that_does_not_depend_on_the_batch_keeps_the_seeds(
    combine: Callable[[Tensor], Tensor],
) -> None:
    model = Combining(combine)
    host = fxgraft.trace(model, (torch.randn(4, 6),))
    fxgraft.SeedManager(host, check_every=0).germinate("tanh", "mlp")
    for rows in (4, 7, 2):
        x = torch.randn(rows, 6)
        assert same_bits(host(x), model(x))
    assert host.explain().fallbacks == 0


class Table:
    def __init__(self, *items: Tensor):
        self.held = list(items)

    def items(self) -> list[Tensor]:
        return self.held


def test_a_method_of_an_argument_may_return_more() -> None:
    model = Combining(lambda h, table: h + sum(table.items()))
    x = torch.randn(4, 6)
    host = fxgraft.trace(model, (x, Table(x)))
    assert "asks how many values 'items' of given returns" in host.rejected[""]
    assert same_bits(host(x, Table(x, x)), model(x, Table(x, x)))


@pytest.mark.parametrize("of", ["items", "values", "keys"])
def test_views_of_a_dictionary_of_another_class(of: str) -> None:
    def combine(h: Tensor, table: Any) -> Tensor:
        for i, item in enumerate(getattr(table, of)()):
            h = h + i * (item[1] if of == "items" else item if of == "values" else table[item])
        return h

    model, x, y = Combining(combine), torch.randn(4, 6), torch.randn(4, 6)
    host = fxgraft.trace(model, (x, OrderedDict(a=x, b=y)))
    fxgraft.SeedManager(host, check_every=0).germinate("tanh", "mlp")
    for table in (OrderedDict(a=y, b=x), OrderedDict(a=x, b=y, c=x), OrderedDict(a=x), OrderedDict(b=y, a=x)):
        assert same_bits(host(x, table), model(x, table)), list(table)


def test_a_number_of_axes() -> None:
    model = Combining(lambda h: h * len(h.stride()))
    host = fxgraft.trace(model, (torch.randn(4, 6),))
    fxgraft.SeedManager(host, check_every=0).germinate("tanh", "mlp")
    for shape in ((4, 6), (2, 4, 6), (6,)):
        x = torch.randn(shape)
        assert same_bits(host(x), model(x)), shape


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_batch_of_one_is_an_example_of_any_batch(rows: int) -> None:
    """Where the number of parts does not depend on it, as in `q, k, v = map(f, qkv.chunk(3, -1))`."""
    model = Combining(lambda h: torch.cat([part * 2 for part in h.chunk(3, -1)], -1))
    host = fxgraft.trace(model, (torch.randn(rows, 6),))
    seed = fxgraft.SeedManager(host, check_every=0).germinate("tanh", "mlp")
    calls = (1, 5, 2, 17)
    for count in calls:
        x = torch.randn(count, 6)
        assert same_bits(host(x), model(x)), count
    assert seed.runs == len(calls), host.explain()


@pytest.mark.parametrize("rows", [(1, 4), (4, 1), (1, 1), (4, 4)])
def test_a_size_of_one_that_others_are_broadcast_over_stays_a_condition(rows: tuple[int, int]) -> None:
    model = Combining(
        lambda h, given: sum(part.sum() * i for i, part in enumerate((h + given).unbind(0))) + h
    )
    host = fxgraft.trace(model, (torch.randn(rows[0], 6), torch.randn(rows[1], 6)))
    seed = fxgraft.SeedManager(host, check_every=0).germinate("tanh", "mlp")
    for left in (1, 2, 4):
        for right in (1, left) if left > 1 else (1, 2, 4):
            x, given = torch.randn(left, 6), torch.randn(right, 6)
            assert same_bits(host(x, given), model(x, given)), (left, right)
    assert seed.runs >= 1, "calls like the example's have a graph"


BY_ONES: dict[str, Callable[[Tensor], Tensor]] = {
    "squeeze": lambda h: h * (2 if h.squeeze().dim() == 1 else 3),
    "an axis": lambda h: h * (2 if h.squeeze(0).dim() == 1 else 3),
    "an axis by name": lambda h: h * (2 if torch.squeeze(h, dim=0).dim() == 1 else 3),
    "behind a slice": lambda h: h * (2 if len(h[1:].squeeze(0).shape) == 1 else 3),
    "a size behind it": lambda h: h * (2 if h.squeeze(0).size(0) < 5 else 3),
    "parts behind it": lambda h: h * len(h.squeeze(0).chunk(6)),
    "one less": lambda h: h.sum() + (1 if h[:-1].size(0) == 0 else 2),
    "from the second": lambda h: h.sum() + (1 if h[1:].size(0) == 0 else 2),
    "the first": lambda h: h.sum() + (1 if h[:1].size(0) == 0 else 2),
}


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("combine", BY_ONES.values(), ids=list(BY_ONES))
def test_sizes_of_one_and_none_take_another_way(combine: Callable[[Tensor], Tensor], rows: int) -> None:
    model = Combining(combine)
    host = fxgraft.trace(model, (torch.randn(rows, 6),))
    seed = fxgraft.SeedManager(host, check_every=0).germinate("tanh", "mlp")
    for count in (rows, 1, 2, 3, 4, 7, 0):
        x = torch.randn(count, 6)
        assert same_bits(host(x), model(x)), count
    assert seed.runs >= 1, "calls like the example's have a graph"


class Inside(nn.Module):
    def __init__(self, squeezes: bool):
        super().__init__()
        self.lin, self.squeezes = nn.Linear(6, 6), squeezes

    def forward(self, h: Tensor) -> Tensor:
        return self.lin(h).squeeze(0) if self.squeezes else self.lin(h)


class AsksForTheRank(nn.Module):
    """What is behind another module's call."""

    def __init__(self, squeezes: bool):
        super().__init__()
        self.first, self.inside = nn.Linear(6, 6), Inside(squeezes)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return h * (2 if self.inside(h).dim() == 1 else 3)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("squeezes", [True, False])
def test_a_rank_behind_another_module(squeezes: bool, rows: int) -> None:
    model = AsksForTheRank(squeezes)
    host = fxgraft.trace(model, (torch.randn(rows, 6),))
    seed = fxgraft.SeedManager(host, check_every=0).germinate("tanh", "mlp")
    calls = (rows, 1, 3, 40)
    for count in calls:
        x = torch.randn(count, 6)
        assert same_bits(host(x), model(x)), count
    if not squeezes:  # then nothing is asked of a call
        assert seed.runs == len(calls), host.explain()
