"""Channels that a live seed reads or is added to cannot grow, in whichever stage and mode the seed is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.errors import ChannelError
from tests.harness import assert_same_bits, snapshot

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
MODES = ("residual", "convex", "gated", "channelwise")


class Run:
    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = nn.Linear(4, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 2)
        self.host = fxgraft.trace(nn.Sequential(*layers), (X,))
        self.optimizer = torch.optim.AdamW(self.host.parameters(), lr=1e-2)
        self.manager = SeedManager(self.host, self.optimizer)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.host(X).square().mean().backward()
            self.optimizer.step()
            self.manager.step()


def begun(stage: str, **options: Any) -> Run:
    """A seed of 4 values, at the output of the last hidden layer or beside it, in one of its stages."""
    run = Run()
    run.manager.germinate("3", **options, name="a", isolated=stage != "not isolated")
    run.train(1)
    if stage in ("blending", "holding"):
        run.manager.blend("a", steps=5 if stage == "blending" else 0)
        run.train(1)
    return run


STAGES = ("isolated", "not isolated", "blending", "holding")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "options",
    [*({"blueprint": "mlp", "mode": mode} for mode in MODES), {"blueprint": "mlp", "source": "0"}],
    ids=[*MODES, "a branch"],
)
def test_they_are_fixed_by_the_name_of_the_seed(stage: str, options: dict[str, Any]) -> None:
    run = begun(stage, **options)
    groups = {"3", "0"} if "source" in options else {"3"}
    for group in ("0", "1", "3"):
        before = snapshot(run.host, X, [run.optimizer])
        if group in groups:
            with pytest.raises(ChannelError, match=f"{group}: .* cannot grow: the seed 'a' works on it"):
                run.manager.widen(group, 2)
            assert_same_bits(snapshot(run.host, X, [run.optimizer]), before)
        else:
            run.manager.widen(group, 2)
            assert run.host.channels[group].size == 8
    run.train(2)


def test_once_it_is_gone_they_can_grow() -> None:
    run = begun("isolated", blueprint="mlp")
    run.manager.cull("a")
    run.manager.widen("3", 2)
    run.train(1)
    assert run.host.channels["3"].size == 6


def test_a_seed_whose_output_is_not_finite_fixes_them_too() -> None:
    run = begun("isolated", blueprint="mlp")
    seed = run.manager.seeds["a"]
    assert seed.module is not None
    with torch.no_grad():
        next(seed.module.parameters()).fill_(torch.nan)
    with pytest.raises(ChannelError, match="the seed 'a' works on it"):
        run.manager.widen("3", 2)
    run.manager.widen("1", 2)


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("blended", ["a", "b"])
def test_channels_that_were_looked_at_before_a_blend_began_grow(looks: bool, blended: str) -> None:
    """The forward for blending is another one than that in which all seeds are isolated."""
    run = Run()
    for name in ("a", "b"):
        run.manager.germinate("3", "mlp", name=name)
    run.train(1)
    if looks:
        assert run.host.channels["1"].fixed is None
    run.manager.blend(blended, steps=0)
    run.manager.widen("1", 2)
    assert run.host.channels["1"].size == 8
    run.train(2)
