"""A copy of the host that is updated and lacks what grew is told of; one that is kept, or trained, is not."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxgraft
from fxgraft.averaging import follow
from fxgraft.errors import CheckpointError
from tests.harness import assert_same_bits, frozen

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
DECAY = 0.75


class World:
    """A host that trains, grows one seed, and lets an average be updated as somebody does it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.host = fxgraft.trace(model, (X,))
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.manager = fxgraft.SeedManager(self.host, self.optimizer)

    def train(self, steps: int, update: Callable[[], None] = lambda: None) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.host(X).square().mean().backward()
            self.optimizer.step()
            self.manager.step()
            update()

    def live(self, update: Callable[[], None] = lambda: None, until: str = "fossilize") -> None:
        """Germinate, blend, fossilize (or cull) one seed, with some steps around each."""
        self.train(2, update)
        self.manager.germinate("2", "mlp", name="a", hidden=4)
        self.train(3, update)
        if until != "cull":
            self.manager.blend("a", steps=2)
            self.train(3, update)
        getattr(self.manager, until)("a") if until != "blend" else None
        self.train(6, update)


def by_pairs(average: nn.Module, host: nn.Module) -> None:
    with torch.no_grad():
        for e, p in zip(average.parameters(), host.parameters(), strict=False):
            e.lerp_(p, 1 - DECAY)


def by_data(average: nn.Module, host: nn.Module) -> None:
    for e, p in zip(average.parameters(), host.parameters(), strict=False):
        e.data = DECAY * e.data + (1 - DECAY) * p.data


def by_states(average: nn.Module, host: nn.Module) -> None:
    with torch.no_grad():
        for e, p in zip(average.state_dict().values(), host.state_dict().values(), strict=False):
            e.copy_(e * DECAY + (1 - DECAY) * p)


def by_names(average: nn.Module, host: nn.Module) -> None:
    theirs = dict(host.named_parameters())
    with torch.no_grad():
        for name, e in average.named_parameters():
            e.mul_(DECAY).add_(theirs[name], alpha=1 - DECAY)


HOME_MADE = [by_pairs, by_data, by_states, by_names]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "a copy of the host" in record.getMessage()]


@pytest.mark.parametrize("update", HOME_MADE)
def test_an_average_of_ones_own_is_told_of_once(update: Any, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    average = copy.deepcopy(world.host)
    world.live(lambda: update(average, world.host))
    (said,) = told(caplog)
    assert "differs in the seeds a" in said
    assert f"{__file__}:" in said
    assert "fxgraft.averaging.follow(host, copy)" in said


def test_torchs_average_that_does_not_follow(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    average = AveragedModel(world.host, multi_avg_fn=get_ema_multi_avg_fn(DECAY))

    def update() -> None:
        with contextlib.suppress(ValueError):  # it pairs buffers strictly, after the parameters
            average.update_parameters(world.host)

    world.live(update)
    (said,) = told(caplog)
    assert f"{__file__}:" in said, "not a file of torch's"


def test_torchs_average_is_told_of_before_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    average = AveragedModel(world.host, multi_avg_fn=get_ema_multi_avg_fn(DECAY))

    def update() -> None:
        if told(caplog):
            follow(world.host, average)  # what the message says to do
        average.update_parameters(world.host)

    world.live(update)
    assert len(told(caplog)) == 1
    assert len(list(average.module.parameters())) == len(list(world.host.parameters()))


def test_an_average_inside_of_a_larger_copy(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    module = nn.ModuleDict({"host": world.host, "head": nn.Linear(3, 2)})
    average = copy.deepcopy(module)
    world.live(lambda: by_pairs(average["host"], module["host"]))
    assert len(told(caplog)) == 1


def test_an_average_that_begins_late(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    average = copy.deepcopy(world.host)
    world.live()
    assert not told(caplog)
    world.train(70, lambda: by_pairs(average, world.host))
    assert len(told(caplog)) == 1


def test_an_average_that_is_updated_seldom(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    average = copy.deepcopy(world.host)
    world.live()
    for _ in range(4):
        world.train(20)
        by_pairs(average, world.host)
    world.train(60)
    assert len(told(caplog)) == 1


def test_a_copy_in_which_the_seed_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    """Made while the seed learned in isolation: pairs of parameters leave its alpha at 0."""
    world = World()
    world.manager.germinate("2", "mlp", name="a", hidden=4)
    world.train(2)
    average = copy.deepcopy(world.host)
    world.train(3, lambda: by_pairs(average, world.host))
    assert not told(caplog), "it has all that counts"
    world.manager.blend("a", steps=2)
    world.train(4, lambda: by_pairs(average, world.host))
    world.manager.fossilize("a")
    world.train(4, lambda: by_pairs(average, world.host))
    assert len(told(caplog)) == 1


def test_a_copy_whose_alpha_is_updated_is_right(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.manager.germinate("2", "mlp", name="a", hidden=4)
    average = AveragedModel(world.host, multi_avg_fn=get_ema_multi_avg_fn(DECAY))  # copies buffers
    world.manager.blend("a", steps=3)
    world.train(6, lambda: average.update_parameters(world.host))
    world.manager.fossilize("a")
    world.train(6, lambda: average.update_parameters(world.host))
    assert not told(caplog)


def test_a_copy_with_a_seed_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.manager.germinate("2", "mlp", name="a", hidden=4)
    average = copy.deepcopy(world.host)
    world.manager.cull("a")
    world.train(3, lambda: by_pairs(average, world.host))
    assert len(told(caplog)) == 1
    with pytest.raises(ValueError, match="make the average anew"):
        follow(world.host, average)


# What is not told of


def test_a_copy_that_is_kept_is_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    kept = [copy.deepcopy(world.host)]
    world.live()
    kept.append(copy.deepcopy(world.host))
    kept[0].double().eval()(X.double())
    world.manager.germinate("2", "mlp", name="b", hidden=4)
    world.train(9)
    assert not told(caplog)


def test_copies_that_are_trained_are_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    arms = [copy.deepcopy(world.host) for _ in range(2)]
    optimizers = [torch.optim.SGD(arm.parameters(), 0.1) for arm in arms]
    manager = fxgraft.SeedManager(arms[1], optimizers[1])

    def step() -> None:
        for arm, optimizer in zip(arms, optimizers, strict=True):
            optimizer.zero_grad()
            arm(X).square().mean().backward()
            optimizer.step()
        optimizers[1].zero_grad()  # this one has a manager
        manager.step()

    world.live(step)
    assert not told(caplog)


@pytest.mark.parametrize("update", HOME_MADE)
def test_a_copy_that_follows_is_not_told_of(update: Any, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    average = copy.deepcopy(world.host)
    follow(world.host, average)
    world.live(lambda: update(average, world.host))
    assert not told(caplog)
    assert [n for n, _ in average.named_parameters()] == [n for n, _ in world.host.named_parameters()]


def test_the_state_of_an_average_says_how_its_seeds_are_wired_where_the_hosts_does() -> None:
    world = World()
    world.host.structure_entry = lambda host: world.manager.describe()
    module = nn.ModuleDict({"host": world.host, "head": nn.Linear(3, 2)})
    average = copy.deepcopy(module)
    follow(module["host"], average["host"])
    world.live(lambda: by_pairs(average, module))
    assert list(average.state_dict()) == list(module.state_dict()), "updates by states stay pairs"
    plain = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    fresh = fxgraft.trace(plain, (X,))
    fresh.load_state_dict(average["host"].state_dict())
    assert_same_bits(frozen(fresh.eval()(X)), frozen(average["host"].eval()(X)), "output")


def test_a_copy_that_was_told_of_gets_what_grew(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    average = copy.deepcopy(world.host)
    world.live(lambda: by_pairs(average, world.host))
    before = frozen(dict(average.named_parameters()))
    follow(world.host, average)
    own = {name: p for name, p in average.named_parameters() if "_seeds" not in name}
    assert_same_bits(own, before, "what it has stays")
    seed = {name: p for name, p in average.named_parameters() if "_seeds" in name}
    assert_same_bits(
        seed, {n: p for n, p in world.host.named_parameters() if "_seeds" in n}, "the seed as it is"
    )
    world.manager.germinate("3", "low_rank", name="b")
    world.train(3, lambda: by_pairs(average, world.host))
    assert average.grafts().keys() == {"a", "b"}
    assert len(told(caplog)) == 1


def test_a_state_that_was_averaged_is_refused_where_it_lacks_what_grew() -> None:
    world = World()
    average = {name: value.clone() for name, value in world.host.state_dict().items()}

    def update() -> None:
        state = world.host.state_dict()
        for name in average:
            average[name] = average[name] * DECAY + (1 - DECAY) * state[name]

    world.live(update)
    for strict in (True, False):
        with pytest.raises(CheckpointError, match="without 1 seed"):
            world.host.load_state_dict(average, strict=strict)


def test_a_copy_is_not_kept_alive_and_no_copies_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    average = copy.deepcopy(world.host)
    assert len(world.host._links.copies) == 1
    assert not average._links.copies
    del average
    gc.collect()
    assert not world.host._links.copies
    monkeypatch.setattr("fxgraft.host._links.Copies.stray", lambda *_: pytest.fail("looked"))
    world.live()


@given(st.data())
def test_averages_are_told_of_and_others_are_not(data: st.DataObject) -> None:
    """Any mixture of copies, made and updated at any time: those that lack what counts, and no other."""
    world = World()
    kinds = data.draw(
        st.lists(st.sampled_from(["average", "kept", "arm", "follows"]), min_size=1, max_size=4)
    )
    born = [data.draw(st.integers(0, 2)) for _ in kinds]
    every = [data.draw(st.integers(1, 3)) for _ in kinds]
    grows = data.draw(st.booleans())
    copies: dict[int, Any] = {}
    optimizers: dict[int, Any] = {}
    step = 0

    def update() -> None:
        nonlocal step
        step += 1
        for i, kind in enumerate(kinds):
            if i not in copies or step % every[i]:
                continue
            if kind in ("average", "follows"):
                HOME_MADE[i % 3](copies[i], world.host)
            elif kind == "arm":
                optimizers[i].zero_grad()
                copies[i](X).square().mean().backward()
                optimizers[i].step()

    def make(moment: int) -> None:
        for i, kind in enumerate(kinds):
            if born[i] == moment:
                copies[i] = copy.deepcopy(world.host)
                if kind == "follows":
                    follow(world.host, copies[i])
                optimizers[i] = torch.optim.SGD(copies[i].parameters(), 0.1)

    found: list[Any] = []
    stray = world.host._links.copies.stray
    world.host._links.copies.stray = lambda host: [found.append(one) or one for one in stray(host)]  # type: ignore[method-assign,func-returns-value]
    make(0)
    world.train(3, update)
    make(1)
    if grows:
        world.manager.germinate("2", "mlp", name="a", hidden=4)
        world.train(4, update)
        world.manager.blend("a", steps=2)
        world.train(3, update)
        world.manager.fossilize("a")
    make(2)
    world.train(40, update)
    expected = sum(kind == "average" and born[i] < 2 for i, kind in enumerate(kinds)) if grows else 0
    assert len(found) == expected


def test_the_copy_is_what_it_was() -> None:
    """As Python's own way makes it: attributes, memo, a copy of a copy."""
    world = World()
    world.live()
    holder = {"a": world.host, "b": world.host}
    twins = copy.deepcopy(holder)
    assert twins["a"] is twins["b"]
    again = copy.deepcopy(twins["a"])
    out: list[Tensor] = [host.eval()(X) for host in (world.host, twins["a"], again)]
    assert_same_bits(frozen(out[1:]), frozen([out[0]] * 2), "outputs")
    assert len(world.host._links.copies) == 1
