"""Whatever blocks and seeds hold, and in whatever order a host changes: compiled is as eager mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft import Stage
from fxgraft.host import engine
from tests.harness import frozen

pytestmark = pytest.mark.usefixtures("fresh_compiler")

Act = Callable[[Tensor], Tensor]
FACTOR = 1.0


def scaled(factor: float) -> Act:
    return lambda x: x * factor


def shifted(x: Tensor, by: float = 0.5) -> Tensor:
    return x + by


class Callme:
    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor

    def method(self, x: Tensor) -> Tensor:
        return x - self.factor


ACTS: dict[str, Callable[[], Act]] = {
    "relu": lambda: F.relu,
    "tanh": lambda: torch.tanh,
    "twice": lambda: scaled(2.0),
    "thrice": lambda: scaled(3.0),
    "default": lambda: shifted,
    "partial": lambda: functools.partial(shifted, by=2.0),
    "other partial": lambda: functools.partial(shifted, by=-2.0),
    "object": lambda: Callme(0.5),
    "other object": lambda: Callme(0.25),
    "method": lambda: Callme(0.75).method,
}


class ConfiguredBlock(nn.Module):
    """What it computes depends on a function, a number, an object's attribute, a list and a global."""

    def __init__(self, act: str, number: int) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.act = ACTS[act]()
        self.number = number
        self.config = SimpleNamespace(scale=1.0, act=torch.sigmoid)
        self.acts = [torch.sin]
        self.label = f"block {number}"

    def forward(self, x: Tensor) -> Tensor:
        h = self.acts[0](self.config.act(self.act(self.a(x))) * self.config.scale)
        return x + self.b(h) * FACTOR * (self.number + 1)


def act_to(name: str) -> Callable[[ConfiguredBlock], None]:
    return lambda block: setattr(block, "act", ACTS[name]())


def number_to(number: int) -> Callable[[ConfiguredBlock], None]:
    return lambda block: setattr(block, "number", number)


def scale_to(scale: float) -> Callable[[ConfiguredBlock], None]:
    return lambda block: setattr(block.config, "scale", scale)


def inner_to(act: Act) -> Callable[[ConfiguredBlock], None]:
    return lambda block: setattr(block.config, "act", act)


def list_to(act: Act) -> Callable[[ConfiguredBlock], None]:
    return lambda block: block.acts.__setitem__(0, act)


def global_to(value: float) -> Callable[[ConfiguredBlock], None]:
    return lambda block: globals().__setitem__("FACTOR", value)


EDITS = st.one_of(
    st.sampled_from(sorted(ACTS)).map(act_to),
    st.sampled_from([torch.relu, torch.sigmoid]).map(inner_to),
    st.sampled_from([torch.sin, torch.cos]).map(list_to),
    st.sampled_from([1.0, 0.5]).map(global_to),
    st.sampled_from([1.0, 3.0]).map(scale_to),
    st.integers(0, 2).map(number_to),
)


@st.composite
def lives(draw: Any) -> list[tuple[Any, ...]]:
    """Seeds of one class that may differ in what they hold, one after the other and side by side."""
    first, second = draw(st.permutations(sorted(ACTS)))[:2]
    here, there = draw(st.permutations([0, 1, 2]))[:2]
    wait = draw(st.sampled_from([False, False, True]))
    again = st.sampled_from(
        [
            [("cull", 0), ("germinate", here, second, wait)],
            [("germinate", there, first, wait)],
            [("germinate", there, second, wait)],
        ]
    )
    edits = st.tuples(st.just("edit seed"), st.integers(0, 1), EDITS)
    after = st.sampled_from(
        [
            [("fossilize", 0), ("germinate", here, second, wait)],
            [("retarget", draw(st.integers(0, 1)))],
            [("together", here, there, first, second, wait)],
            [("together", there, there, second, second, wait)],
        ]
    )
    return [
        ("germinate", here, first, wait),
        ("blend", 0),
        *draw(again),
        ("blend", draw(st.integers(0, 1))),
        *draw(st.lists(edits, min_size=1, max_size=2)),
        *draw(after),
        *draw(again),
    ]


class World:
    def __init__(self, acts: list[tuple[str, int]], granularity: str) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(3, 4)
        self.host = fxgraft.trace(nn.Sequential(*(ConfiguredBlock(act, i) for act, i in acts)), (self.x,))
        self.host.compile(backend="aot_eager", granularity=granularity)
        self.manager = fxgraft.SeedManager(self.host)
        self.count = 0
        self.check("at first")

    def change(self, what: str, i: int, *rest: Any) -> None:
        live = [seed for seed in self.manager.seeds.values() if seed.stage is not Stage.FOSSILIZED]
        if what == "germinate":
            act, wait = rest
            self.apply(self.germinate(i, act, wait))
        elif what == "together":
            other, *acts, wait = rest
            with self.manager.together():
                for seed in live[:1]:
                    self.manager.cull(seed, wait=wait)
                born = [self.germinate(place, act, wait) for place, act in zip((i, other), acts, strict=True)]
            self.apply(*born)
        elif live:
            seed = live[i % len(live)]
            if what == "cull":
                self.manager.cull(seed)
            elif what == "blend":
                self.manager.blend(seed, to=0.5, steps=1)
                self.manager.step()
            elif what == "retarget":
                self.manager.blend(seed, to=0.9, steps=3)
                self.manager.step()
                self.manager.blend(seed, to=0.0, steps=2)
                self.manager.step()
            elif what == "fossilize":
                self.manager.fossilize(seed, force=True)
            else:
                rest[0](seed.module)

    def germinate(self, i: int, act: str, wait: bool) -> fxgraft.Seed:
        self.count += 1
        return self.manager.germinate(f"{i}.a", ConfiguredBlock(act, i), name=f"s{self.count}", wait=wait)

    def apply(self, *seeds: fxgraft.Seed) -> None:
        while any(seed.stage is Stage.GERMINATED for seed in seeds):
            self.manager._background.wait(60)
            self.manager.step()

    def check(self, when: str) -> None:
        for _ in range(2):
            ours = self.seen(self.host)
            with engine.probing(self.host, self.host.structure, self.host.phase) as model:
                theirs = self.seen(model)
            torch.testing.assert_close(ours, theirs, msg=lambda told: f"{when}: {told}")
        differ = [row.distrusted for row in fxgraft.compile_report(self.host).variants if row.distrusted]
        assert not differ, f"{when}: {differ}"

    def seen(self, model: Any) -> Any:
        self.host.zero_grad()
        out = model(self.x)
        out.square().sum().backward()
        return frozen([out, *(p.grad for p in self.host.parameters())])


@settings(max_examples=settings().max_examples // 6)
@example(  # equal seeds, in blocks that differ in a function they hold
    blocks=[("relu", 0), ("tanh", 0), ("relu", 0)],
    granularity="region",
    changes=[("germinate", 1, "relu", False), ("germinate", 2, "relu", False)],
)
@example(  # seeds of one class, one after the other, that differ in it; and a live one in which it is changed
    blocks=[("relu", 0)],
    granularity="host",
    changes=[
        *(("germinate", 0, "relu", False), ("blend", 0), ("cull", 0)),
        *(("germinate", 0, "tanh", False), ("blend", 0), ("edit seed", 0, act_to("twice"))),
    ],
)
@example(  # several changes in one act, in the background; a fossil beside a live seed of its class
    blocks=[("relu", 0), ("tanh", 0), ("relu", 1)],
    granularity="region",
    changes=[
        *(("germinate", 0, "relu", False), ("blend", 0), ("fossilize", 0)),
        *(("germinate", 0, "tanh", False), ("together", 0, 2, "twice", "relu", False), ("retarget", 1)),
    ],
)
@given(
    blocks=st.lists(st.tuples(st.sampled_from(sorted(ACTS)), st.integers(0, 1)), min_size=3, max_size=3),
    granularity=st.sampled_from(["host", "region"]),
    changes=lives(),
)
def test_compiled_is_eager_after_every_change(
    blocks: list[tuple[str, int]], granularity: str, changes: list[tuple[Any, ...]]
) -> None:
    torch._dynamo.reset()
    global_to(1.0)(ConfiguredBlock("relu", 0))
    world = World(blocks, granularity)
    for i, change in enumerate(changes):
        world.change(*change)
        world.check(f"change {i}, {change[:3]}")
