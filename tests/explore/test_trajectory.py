"""The host goes its way to the bit, whatever is explored beside it: any host, precision, clipping, moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.training import clip_per_owner
from tests.harness import assert_same_bits, frozen, state

STEPS = 7
FEW = settings(deadline=None, max_examples=max(settings().max_examples // 4, 2))
"""Each example traces two hosts and explores all of one."""


class DecoderBlock(nn.Module):
    """A block of a decoder, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2, self.drop = nn.LayerNorm(8), nn.LayerNorm(8), nn.Dropout(0.2)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.ln1(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.drop(self.down(F.gelu(self.up(self.ln2(x)))))


class Decoder(nn.Module):
    """A GPT of two blocks whose output is tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.blocks = nn.Embedding(11, 8), nn.ModuleList([DecoderBlock(), DecoderBlock()])
        self.ln, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.token.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.token(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x)).flatten(0, 1)


def convolutions() -> nn.Module:
    """Batch statistics and dropout of channels."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3),
        nn.Conv2d(4, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def words(seed: int) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(0, 11, (4, 7), generator=torch.Generator().manual_seed(seed))
    return drawn[:, :-1], drawn[:, 1:].flatten()


def images(seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(6, 1, 6, 6, generator=draw), torch.randint(0, 3, (6,), generator=draw)


HOSTS: dict[str, Any] = {"decoder": (Decoder, words), "convolutions": (convolutions, images)}


class Run:
    """A training of one of the hosts."""

    def __init__(self, name: str, optimizer: str, amp: bool, clip: bool):
        self.make, self.data = HOSTS[name]
        self.amp, self.clip = amp, clip
        torch.manual_seed(0)
        self.host = fxgraft.trace(self.make(), self.data(0)[:1])
        kinds: dict[str, Any] = {
            "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
            "sgd": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, weight_decay=0.1),
        }
        self.optimizer = kinds[optimizer](self.host.parameters())
        self.manager = SeedManager(self.host, self.optimizer, check_every=0)
        torch.manual_seed(1)
        self.drawn = torch.get_rng_state()

    @contextmanager
    def stream(self) -> Iterator[None]:
        """The random numbers of this run alone."""
        torch.set_rng_state(self.drawn)
        yield
        self.drawn = torch.get_rng_state()

    def loss(self, batch: int) -> Tensor:
        x, y = self.data(batch)
        with torch.autocast("cpu", torch.bfloat16) if self.amp else nullcontext():
            return F.cross_entropy(self.host(x).float(), y)

    def evaluate(self) -> list[Tensor]:
        """It draws, and changes the mode."""
        self.host.eval()
        torch.rand(1)
        return [self.loss(100), self.loss(101)]

    def train(self, steps: int) -> None:
        with self.stream():
            for _ in range(steps):
                self.optimizer.zero_grad()
                loss = self.loss(self.manager.steps)
                loss.backward()
                if self.clip:
                    clip_per_owner(self.manager, 0.1)
                self.optimizer.step()
                self.manager.step(loss)

    def state(self) -> tuple[Any, ...]:
        moments = [frozen(self.optimizer.state[p]) for p in self.host.host_parameters()]
        return state(self.host), moments, self.drawn


runs = st.fixed_dictionaries(
    {
        "name": st.sampled_from(sorted(HOSTS)),
        "optimizer": st.sampled_from(["adamw", "sgd"]),
        "amp": st.booleans(),
        "clip": st.booleans(),
    }
)


@FEW
@given(run=runs, after=st.integers(0, 3), keep=st.integers(0, 2), repeats=st.integers(1, 2))
def test_an_exploration_of_everything(run: dict[str, Any], after: int, keep: int, repeats: int) -> None:
    plain, explored = Run(**run), Run(**run)
    plain.train(STEPS)
    explored.train(after)
    with explored.stream():
        exploration = explored.manager.explore(
            evaluate=explored.evaluate, steps=4, keep=keep, repeats=repeats, cap={"candidates": 16}
        )
    explored.train(STEPS - after)
    assert exploration.done
    assert any(row.status == "measured" for row in exploration.table), exploration
    assert_same_bits(explored.state(), plain.state(), "the host's")


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_an_exploration_of_everything_without_a_cap(name: str) -> None:
    plain, explored = (Run(name, "adamw", amp=False, clip=True) for _ in range(2))
    plain.train(STEPS)
    explored.train(1)
    much = {"candidates": 10_000, "parameters": 10**9, "flops": 10**15}
    with explored.stream():
        exploration = explored.manager.explore(evaluate=explored.evaluate, steps=3, cap=much)
    explored.train(STEPS - 1)
    assert exploration.done
    assert not [row for row in exploration.table if "the cap of" in row.reason], exploration
    assert sum(row.status == "measured" for row in exploration.table) > 40, exploration
    assert_same_bits(explored.state(), plain.state(), "the host's")


@pytest.mark.parametrize(("name", "granularity"), [("convolutions", "host"), ("decoder", "region")])
def test_an_exploration_of_a_compiled_host(name: str, granularity: str, fresh_compiler: None) -> None:
    plain, explored = (Run(name, "adamw", amp=False, clip=False) for _ in range(2))
    for run in (plain, explored):
        run.host.compile(granularity=granularity, backend="aot_eager")
    plain.train(STEPS)
    explored.train(1)
    with explored.stream():
        exploration = explored.manager.explore(evaluate=explored.evaluate, steps=3, cap={"candidates": 8})
    explored.train(STEPS - 1)
    assert exploration.done
    assert sum(row.status == "measured" for row in exploration.table) == 8, exploration
    assert not fxgraft.compile_report(explored.host).uncompiled_calls
    assert_same_bits(explored.state(), plain.state(), "the host's")


@FEW
@given(
    run=runs,
    when=st.sampled_from([[0.1], [0.5], "flat"]),
    blueprints=st.sampled_from([None, ["mlp", "norm", "low_rank"]]),
)
def test_autogrow_until_its_first_blend(run: dict[str, Any], when: Any, blueprints: list[str] | None) -> None:
    plain, grown = Run(**run), Run(**run)
    with grown.stream():
        growth = grown.manager.autogrow(
            grown.evaluate, when=when, total_steps=10, steps=3, window=2, flat=1e9, budget=3.0,
            blueprints=blueprints,
        )  # fmt: skip
    seen = set()
    for _ in range(STEPS):
        plain.train(1)
        grown.train(1)
        seen.add(growth.phase)
        if growth.phase not in ("waiting", "exploring"):
            break
        assert_same_bits(grown.state(), plain.state(), "the host's")
    assert "exploring" in seen, growth
