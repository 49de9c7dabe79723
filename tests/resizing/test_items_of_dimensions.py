"""Items taken of other dimensions than that of the channels: by numbers, lists, masks and tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxgraft

X = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
NUMBERS = torch.tensor([0, 1, 0])
MASK = torch.tensor([[True, False, True, True, False], [False] * 5])


class Taken(nn.Module):
    def __init__(self, take: Callable[[Tensor], Tensor]):
        super().__init__()
        self.up, self.take, self.down = nn.Linear(4, 6), take, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.take(self.up(x)))


FREE: dict[str, Callable[[Tensor], Tensor]] = {
    "a list": lambda x: x[:, [-1]],
    "a list of truths": lambda x: x[:, [True, False, True, True, True]],
    "a range": lambda x: x[:, range(2)],
    "a number as a tensor": lambda x: x[:, torch.tensor(1)],
    "a tensor": lambda x: x[..., NUMBERS, :],
    "a table": lambda x: x[:, torch.tensor([[0, 1], [1, 0]])],
    "two tensors": lambda x: x[torch.arange(2), NUMBERS[:2]],
    "two tensors of other sizes": lambda x: x[torch.arange(2)[:, None], NUMBERS],
    "tensors apart": lambda x: x[NUMBERS, :, NUMBERS],
    "tensors apart by None": lambda x: x[NUMBERS, None, NUMBERS],
    "a number and a tensor": lambda x: x[0, :, NUMBERS],
    "a mask": lambda x: x[MASK],
    "a mask of one dimension": lambda x: x[:, MASK[0]],
    "a mask and a tensor": lambda x: x[MASK, NUMBERS[0:1]],
    "each other one": lambda x: x[:, ::2],
    "index_select": lambda x: x.index_select(1, NUMBERS),
    "index_select by name": lambda x: torch.index_select(x, dim=-2, index=NUMBERS),
}


@pytest.mark.parametrize("take", FREE.values(), ids=list(FREE))
def test_channels_grow_where_others_are_taken(take: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    host = fxgraft.trace(Taken(take), (X,)).eval()
    manager = fxgraft.SeedManager(host, check_every=0)
    before = host(X)
    assert host.channels["up"].fixed is None
    manager.widen("up", 2)
    assert host.down.in_features == 8
    torch.testing.assert_close(host(X), before)


FIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "a list": lambda x: x[..., [0, 1, 2, 3, 4, 5]],
    "a mask": lambda x: x[..., torch.ones(6, dtype=torch.bool)],
    "a mask of all": lambda x: x[x > -1e9].view(2, 5, 3, 6),
    "index_select": lambda x: x.index_select(-1, torch.arange(6)),
}


@pytest.mark.parametrize("take", FIXED.values(), ids=list(FIXED))
def test_channels_that_are_taken_by_number_are_fixed(take: Callable[[Tensor], Tensor]) -> None:
    group = fxgraft.trace(Taken(take), (X,)).channels["up"]
    assert "takes its items by number" in (group.fixed or "")
