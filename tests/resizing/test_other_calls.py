"""Channels are used otherwise in calls of another size: a growth is compared there, too, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.errors import ChannelError
from tests.harness import assert_same_bits

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    """Adds a mean over the channels in some calls."""

    def __init__(self, condition: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.condition = condition

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        y = self.b(h)
        if self._adds(x):
            y = y + h.mean(-1, keepdim=True)
        return self.c(y.relu())

    def _adds(self, x: Tensor) -> bool:
        match self.condition:
            case "less":
                return not x.shape[0] < 4
            case "at least":
                return x.size(0) >= 17
            case "equal":
                return x.shape[0] == 1
            case "at most":
                return x.shape[0] <= 2
            case "not this many":
                return x.shape[0] != 3
            case _:
                return x.shape[0] > 100_000


@pytest.mark.parametrize("condition", ["less", "at least", "equal", "at most", "not this many"])
def test_a_growth_that_moves_outputs_in_calls_of_another_size_is_refused(condition: str) -> None:
    torch.manual_seed(0)
    host = fxgraft.trace(Branching(condition), (X,))
    manager = fxgraft.SeedManager(host, torch.optim.AdamW(host.parameters()))
    before = copy.deepcopy(host.state_dict())
    with pytest.raises(ChannelError, match=r"a: .* in a call with size\(0\) == \d+, .* than for .*size\(0\)"):
        manager.widen("a", 1)
    assert_same_bits(host.state_dict(), before)
    manager.widen("b", 1)  # is used alike in both ways
    others = [torch.randn(rows, 4) for rows in (1, 2, 3, 4, 17)]
    model = Branching(condition)
    model.load_state_dict(before)
    for x in others:
        torch.testing.assert_close(host(x), model(x))


def test_code_that_raises_in_other_calls_grows() -> None:
    class Strict(Branching):
        def _adds(self, x: Tensor) -> bool:
            if x.shape[0] != 3:
                raise ValueError("expected 3 rows")
            return False

    host = fxgraft.trace(Strict(""), (X,))
    before = host(X).detach()
    fxgraft.SeedManager(host).widen("a", 1)
    torch.testing.assert_close(host(X), before)


def test_what_begins_far_away_is_not_tried() -> None:
    host = fxgraft.trace(Branching("far"), (X,))
    fxgraft.SeedManager(host).widen("a", 1)
    assert host.a.out_features == 9
