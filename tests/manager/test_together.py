"""``manager.together()``: several changes are applied as one, whole or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.capture.region import Region
from fxgraft.errors import BlueprintError, SlotError, StageError
from fxgraft.gates import Trained
from fxgraft.host._running import Running
from fxgraft.telemetry import Memory
from fxgraft.util.bits import same_bits
from tests.harness import assert_same_bits, snapshot, traced_once

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
SLOTS = ("0", "1", "2")


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))


@traced_once
def traced() -> fxgraft.Host:
    return fxgraft.trace(net(), (X,))


class Run:
    """A manager with its optimizer, and steps of training."""

    def __init__(self, **options: Any):
        self.host = traced()
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.manager = SeedManager(self.host, self.optimizer, check_every=0, **options)

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.host(X).square().sum().backward()
            self.optimizer.step()
            self.manager.step()

    def seen(self) -> dict[str, Any]:
        manager = self.manager
        return {
            **snapshot(self.host, X, [self.optimizer]),
            "seeds": [
                (n, s.stage, s.alphas, s.ramp, s.ramp_step, s.paused) for n, s in manager.seeds.items()
            ],
            "order": [p.seed for p in self.host.structure.placements],
            "names": dict(manager._memory.names.next_numbers),
            "refuses": dict(manager._memory.refuses_until),
            "phase": self.host.phase,
            "owned": {n: len(manager.registry.parameters(n)) for n in manager.seeds},
        }


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a structure was entered, and code generated."""
    counts = {"enter": 0, "generated": 0}

    def counted(owner: type, name: str, key: str) -> None:
        plain = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[key] += 1
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(Running, "enter", "enter")
    counted(Region, "forward_for", "generated")
    return counts


def test_several_changes_are_one_swap(calls: dict[str, int]) -> None:
    run = Run()
    manager = run.manager
    old = manager.germinate("1", "mlp", name="old")
    held = manager.germinate("2", "mlp", name="held")
    manager.blend(held, steps=0)
    assert (held.stage, held.alpha) == (Stage.HOLDING, 1.0)
    run.train()
    calls.update(enter=0)
    with manager.together():
        seeds = [manager.germinate("1", "mlp") for _ in range(6)]
        manager.blend(seeds[0], steps=3)
        manager.cull(old)
        manager.fossilize(held)
        assert calls["enter"] == 0
        assert [seed.stage for seed in seeds] == [Stage.GERMINATED] * 6
        assert all(seed.module is None for seed in seeds)
        assert (old.stage, held.stage) == (Stage.TRAINING, Stage.HOLDING)
        assert set(manager.seeds) == {"old", "held", *(seed.name for seed in seeds)}
    assert calls["enter"] == 1
    assert [seed.stage for seed in seeds] == [Stage.BLENDING] + [Stage.TRAINING] * 5
    assert (old.stage, held.stage) == (Stage.CULLED, Stage.FOSSILIZED)
    assert list(manager.seeds) == ["held", *(seed.name for seed in seeds)]
    run.train(3)
    assert (seeds[0].stage, seeds[0].alpha) == (Stage.HOLDING, 1.0)


def test_a_seed_can_be_born_blended_and_fossilized_in_one_act(calls: dict[str, int]) -> None:
    run, plain = Run(), Run()
    calls.update(enter=0)
    with run.manager.together():
        seed = run.manager.germinate("1", "mlp", name="a")
        run.manager.blend(seed, to=0.5, steps=0)
        run.manager.fossilize(seed)
    assert calls["enter"] == 1
    plain.manager.germinate("1", "mlp", name="a")
    plain.manager.blend("a", to=0.5, steps=0)
    plain.manager.fossilize("a")
    assert seed.stage is Stage.FOSSILIZED
    assert "0.5" in run.host.regions[""].code
    run.train(2)
    plain.train(2)
    assert_same_bits(run.host.state_dict(), plain.host.state_dict())


def test_a_blend_at_once_and_another_behind_it() -> None:
    run = Run()
    with run.manager.together():
        seed = run.manager.germinate("1", "mlp")
        run.manager.blend(seed, to=0.5, steps=0)
        run.manager.blend(seed, to=1.0, steps=2, schedule="linear")
    assert (seed.stage, seed.alpha) == (Stage.BLENDING, 0.5)
    run.manager.step()
    assert seed.alpha == 0.75


# Whole or not at all


def test_an_exception_inside_leaves_everything_as_it_was() -> None:
    run = Run(cooldown=3)
    manager = run.manager
    manager.germinate("1", "mlp", name="old")
    run.train(2)
    before = run.seen()
    with pytest.raises(RuntimeError, match="mine"), manager.together():  # noqa: PT012
        new = manager.germinate("2", "mlp", name="new", before=None)
        manager.germinate("1", "mlp", before="old")
        manager.blend(new, steps=2)
        manager.blend("old", steps=2)
        manager.cull("old")
        raise RuntimeError("mine")
    assert_same_bits(run.seen(), before)
    assert new.stage is Stage.CULLED
    again = manager.germinate("2", "mlp", name="new")
    assert again is manager.seeds["new"] is not new


@pytest.mark.parametrize("fault", ["prepare", "join"])
def test_a_change_that_cannot_be_applied_leaves_everything_as_it_was(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run()
    manager = run.manager
    manager.germinate("1", "mlp", name="old")
    manager.germinate("0", "mlp", name="paused")
    run.train(2)
    before = run.seen()

    def fails(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("no memory")

    with monkeypatch.context() as patch:
        if fault == "prepare":
            patch.setattr(Running, "prepare", fails)
        else:
            patch.setattr(manager.registry, "join", fails)
        with pytest.raises(MemoryError), manager.together():  # noqa: PT012
            manager.germinate("2", "mlp", name="new")
            manager.blend("new", steps=2)
            manager.blend("old", to=0.5, steps=0)
            manager.fossilize("old", force=True)
            manager.pause("paused")
    assert_same_bits(run.seen(), before)
    run.train()


def test_two_seeds_that_share_a_weight_are_refused_as_a_whole() -> None:
    run = Run()
    module = nn.Linear(4, 4)
    before = run.seen()
    with pytest.raises(BlueprintError, match="belongs to seed 'a'"), run.manager.together():  # noqa: PT012
        run.manager.germinate("1", module, name="a")
        run.manager.germinate("2", module, name="b")
    after = run.seen()
    assert_same_bits(after, before)


def test_what_raises_inside_and_is_caught_is_not_planned() -> None:
    run = Run()
    with run.manager.together():
        run.manager.germinate("1", "mlp", name="a")
        with pytest.raises(SlotError):
            run.manager.germinate("nowhere", "mlp", name="b")
        with pytest.raises(BlueprintError):
            run.manager.germinate("1", nn.Linear(4, 3), name="c")
        with pytest.raises(StageError, match="it is TRAINING"):
            run.manager.fossilize("a")
    assert list(run.manager.seeds) == ["a"]


def test_calls_are_checked_against_what_those_before_them_lead_to() -> None:
    run = Run(cooldown=5)
    manager = run.manager
    manager.germinate("1", "mlp", name="old")
    with manager.together():
        seed = manager.germinate("0", "mlp", name="new")
        with pytest.raises(StageError, match="there is a seed 'new' already"):
            manager.germinate("0", "mlp", name="new")
        manager.cull("old")
        with pytest.raises(StageError, match="CULLED"):
            manager.blend("old")
        with pytest.raises(StageError, match="CULLED"):
            manager.cull("old")
        with pytest.raises(SlotError, match="cools down"):
            manager.germinate("1", "mlp")
        with pytest.raises(StageError, match="there is no such seed"):
            manager.germinate("0", "mlp", before="old")
        manager.cull(seed)
        with pytest.raises(StageError, match="CULLED"):
            manager.pause(seed)
    assert not manager.seeds
    assert not run.host.structure.placements


def test_an_inner_block_is_a_part_and_takes_back_what_was_planned_in_it(calls: dict[str, int]) -> None:
    run = Run()
    manager = run.manager
    calls.update(enter=0)
    with manager.together():
        manager.germinate("1", "mlp", name="a")
        with manager.together():
            manager.germinate("1", "mlp", name="b", before="a")
        with pytest.raises(KeyError), manager.together():  # noqa: PT012
            manager.cull("a")
            dropped = manager.germinate("1", "mlp", name="c")
            raise KeyError
        assert dropped.stage is Stage.CULLED
        manager.germinate("1", "mlp", name="c")
        assert calls["enter"] == 0
    assert calls["enter"] == 1
    assert list(manager.seeds) == ["b", "a", "c"]
    assert all(seed.stage is Stage.TRAINING for seed in manager.seeds.values())


def test_an_empty_block_changes_nothing(calls: dict[str, int]) -> None:
    run = Run()
    calls.update(enter=0, generated=0)
    with run.manager.together():
        pass
    assert calls == {"enter": 0, "generated": 0}


@pytest.mark.parametrize("action", ["step", "save"])
def test_what_cannot_be_done_inside(action: str, tmp_path: Any) -> None:
    run = Run()
    call: Callable[[], Any] = {
        "step": run.manager.step, "save": lambda: run.manager.save(tmp_path / "x")
    }[action]  # fmt: skip
    with run.manager.together(), pytest.raises(StageError, match=f"cannot {action} inside"):
        call()
    run.train()


def test_another_thread_cannot_plan_into_the_block() -> None:
    run = Run()
    errors: list[BaseException] = []

    def other() -> None:
        try:
            run.manager.germinate("1", "mlp")
        except StageError as error:
            errors.append(error)

    with run.manager.together():
        thread = threading.Thread(target=other, name="other")
        thread.start()
        thread.join()
    assert "is inside manager.together()" in str(errors[0])


def test_without_seeds_enabled_it_is_a_recorded_nothing() -> None:
    run = Run(enabled=False)
    with run.manager.together():
        seed = run.manager.germinate("1", "mlp")
        run.manager.blend(seed)
    assert seed.stage is Stage.DORMANT


def test_the_host_runs_what_it_ran_until_the_end() -> None:
    run = Run()
    value = run.host(X)
    with run.manager.together():
        seed = run.manager.germinate("1", lambda slot: nn.Linear(4, 4), isolated=False)
        run.manager.blend(seed, steps=0)
        assert same_bits(run.host(X), value)
        run.host.double().float()
    assert not same_bits(run.host(X), value)


def test_gates_judge_what_the_seed_will_be() -> None:
    run = Run(gates={"blend": Trained(steps=1)})
    with run.manager.together():
        run.manager.germinate("1", "mlp", name="a")
        with pytest.raises(StageError, match="has trained 0 of 1"):
            run.manager.blend("a")
    assert run.manager.seeds["a"].stage is Stage.TRAINING


def test_events_tell_each_change() -> None:
    sink = Memory()
    run = Run(sinks=[sink])
    run.manager.germinate("0", "mlp", name="old")
    sink.events.clear()
    with run.manager.together():
        run.manager.germinate("1", "mlp", name="a")
        run.manager.blend("a", steps=4)
        run.manager.cull("old")
        assert not sink.events or {e.kind for e in sink.events} == {"gate_event"}
    told = [(e.seed, e.data["operation"]) for e in sink.events if e.kind == "seed_operation"]
    assert sorted(told) == [("a", "blend"), ("a", "germinate"), ("old", "cull")]
    stages = [(e.seed, e.data["stage"]) for e in sink.events if e.kind == "seed_stage"]
    assert sorted(stages) == [("a", "BLENDING"), ("old", "CULLED")]


# Fossilizing without waiting


@pytest.mark.parametrize("blending", [False, True])
@pytest.mark.parametrize("wait", [True, False])
def test_fossilize_before_it_holds(blending: bool, wait: bool) -> None:
    run = Run()
    seed = run.manager.germinate("1", "mlp", isolated=False)
    run.train(2)
    if blending:
        run.manager.blend(seed, to=0.75, steps=4)
        run.train(2)
    run.manager.fossilize(seed, wait=wait)
    if not wait:
        assert seed.stage is Stage.HOLDING
        run.train()
    assert seed.stage is Stage.FOSSILIZED
    assert seed.alpha == (0.75 if blending else 1.0)


def test_an_isolated_one_only_by_force() -> None:
    run = Run()
    seed = run.manager.germinate("1", "mlp")
    before = run.seen()
    message = r"is TRAINING \(isolated.*force=True takes it to alpha 1\), from which"
    with pytest.raises(StageError, match=message):
        run.manager.fossilize(seed)
    refused = run.manager.handle({"type": "FOSSILIZE", "seed": seed.name})
    assert "force=True" in refused.reason
    assert_same_bits(run.seen(), before)
    assert run.manager.handle({"type": "FOSSILIZE", "seed": seed.name, "force": True}).accepted
    assert (seed.stage, seed.alpha) == (Stage.FOSSILIZED, 1.0)


def test_blend_at_once_is_the_end_value() -> None:
    run = Run()
    seed = run.manager.germinate("3", lambda slot: nn.Linear(2, 2), mode="channelwise")
    run.manager.blend(seed, to=0.25, steps=0)
    assert (seed.stage, seed.alphas) == (Stage.HOLDING, (0.25, 0.25))
    h = run.host(X)
    run.manager.blend(seed, to=0.0, steps=0)
    run.manager.blend(seed, to=0.25, steps=0, warmup=2)
    assert seed.stage is Stage.BLENDING
    run.manager.step()
    assert seed.alphas == (0.0, 0.0)
    run.manager.step()
    assert (seed.stage, seed.alphas) == (Stage.HOLDING, (0.25, 0.25))
    assert same_bits(run.host(X), h)


# In the background


@pytest.mark.parametrize("member", [True, False])
def test_in_the_background(member: bool, calls: dict[str, int]) -> None:
    run = Run(helper="off")
    manager = run.manager
    old = manager.germinate("1", "mlp", name="old")
    moving = manager.germinate("1", "mlp", name="moving")
    manager.blend(moving, steps=4, schedule="linear")
    calls.update(enter=0)
    with manager.together(wait=member):
        a = manager.germinate("0", "mlp", name="a", wait=not member)
        manager.germinate("2", "mlp", name="b")
        manager.blend(a, steps=0)
        manager.cull(old)
        manager.blend(moving, to=0.5, steps=1)
    assert calls["enter"] == 0
    assert (a.stage, old.stage) == (Stage.GERMINATED, Stage.TRAINING)
    assert len(manager._background.waiting) == 2
    run.train()
    assert calls["enter"] == 1
    assert (a.stage, old.stage, moving.alpha) == (Stage.HOLDING, Stage.CULLED, 0.5)
    assert list(manager.seeds) == ["moving", "a", "b"]
    assert not len(manager._background.waiting)


def test_in_the_background_it_is_whole_too(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    run = Run(helper="off")
    manager = run.manager
    old = manager.germinate("1", "mlp", name="old")
    with manager.together(wait=False):
        a = manager.germinate("0", "mlp", name="a")
        manager.germinate("2", "mlp", name="b")
        manager.cull(old)
    join = manager.registry.join

    def fails(seed: Any, *rest: Any) -> None:
        if seed.name == "b":
            raise MemoryError("no memory")
        join(seed, *rest)

    monkeypatch.setattr(manager.registry, "join", fails)
    run.train()
    assert list(manager.seeds) == ["old"]
    assert (a.stage, old.stage) == (Stage.CULLED, Stage.TRAINING)
    assert "no memory" in caplog.text
    assert "old stay as they are" in caplog.text
    run.train()
    manager.germinate("0", "mlp", name="a")


def test_what_is_taken_back_leaves_the_act() -> None:
    run = Run(helper="off")
    manager = run.manager
    old = manager.germinate("1", "mlp", name="old")
    held = manager.germinate("1", "mlp", name="held")
    manager.blend(held, steps=0)
    with manager.together(wait=False):
        a = manager.germinate("0", "mlp", name="a")
        manager.germinate("2", "mlp", name="b")
        manager.cull(old)
        manager.fossilize(held)
    manager.cull(a)
    manager.blend(held, to=0.5, steps=3)
    run.train()
    assert (a.stage, old.stage, held.stage) == (Stage.CULLED, Stage.CULLED, Stage.BLENDING)
    assert list(manager.seeds) == ["held", "b"]


@pytest.mark.parametrize("helper", ["auto", "off"])
def test_an_act_is_applied_after_what_was_begun_before_it(helper: str, fresh_compiler: None) -> None:
    run = Run(helper=helper)
    run.host.compile(backend="aot_eager")
    run.train(2)
    first = run.manager.germinate("0", "mlp", name="first", wait=False)
    run.manager._background.wait()
    run.train()
    with run.manager.together(wait=False):
        a = run.manager.germinate("0", "mlp", name="a")
        run.manager.germinate("2", "mlp", name="b")
        run.manager.blend(a, steps=0)
    for _ in range(100):
        run.train()
        assert a.stage is Stage.GERMINATED or first.is_live
        if a.is_live:
            break
        run.manager._background.wait(60)
    assert a.stage is Stage.HOLDING
    assert [p.seed for p in run.host.structure.placements] == ["first", "a", "b"]
    run.train()


# Commands of one step


def commands_for(number: int) -> list[dict[str, Any]]:
    return [
        {"type": "SEED", "slot": SLOTS[i % 3], "blueprint": "mlp", "name": f"s{i}", "config": {"hidden": 2}}
        for i in range(number)
    ]


def test_commands_of_one_step_are_applied_as_one(calls: dict[str, int]) -> None:
    run = Run()
    run.train()
    calls.update(enter=0, generated=0)
    sent = [
        *commands_for(4),
        {"type": "SEED", "slot": "nowhere", "blueprint": "mlp"},
        {"type": "BLEND", "seed": "s0", "steps": 0},
        {"type": "BLEND", "seed": "nobody"},
        {"type": "PAUSE", "seed": "s1"},
        {"type": "CULL", "seed": "s2"},
        {"type": "CULL", "seed": "s2"},
        {"type": "SEED", "slot": "1", "blueprint": "mlp", "id": "x", "name": "once"},
        {"type": "SEED", "slot": "1", "blueprint": "mlp", "id": "x", "name": "once"},
        {"type": "CULL", "seed": "nobody", "id": "y"},
        {"type": "CULL", "seed": "nobody", "id": "y"},
    ]
    replies = [run.manager.submit(command) for command in sent]
    run.train()
    accepted = [reply.result(0).accepted for reply in replies]
    assert accepted == [*[True] * 4, False, True, False, True, True, False, True, True, False, False]
    assert calls["enter"] == 1
    assert replies[0].result().reason == "s0 is HOLDING at 0"
    assert "nowhere" in replies[4].result().reason
    assert replies[10].result() is replies[11].result()
    assert list(run.manager.seeds) == ["s0", "s1", "s3", "once"]
    assert run.manager.seeds["s1"].paused


def test_where_they_cannot_be_applied_as_one_each_is_carried_out_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run()
    join = run.manager.registry.join

    def fails(seed: Any, *rest: Any) -> None:
        if seed.name == "s1":
            raise MemoryError("no memory")
        join(seed, *rest)

    monkeypatch.setattr(run.manager.registry, "join", fails)
    replies = [run.manager.submit(command) for command in commands_for(3)]
    unnamed = run.manager.submit({"type": "SEED", "slot": "1", "blueprint": "mlp"})
    follows = run.manager.submit({"type": "BLEND", "seed": "mlp_at_1", "steps": 2})
    run.train()
    assert [reply.result(0).accepted for reply in replies] == [True, False, True]
    assert "no memory" in replies[1].result().reason
    assert unnamed.result(0).seed == "mlp_at_1"
    assert follows.result(0).accepted
    assert list(run.manager.seeds) == ["s0", "s2", "mlp_at_1"]


def test_120_commands_at_once_are_one_structure(calls: dict[str, int]) -> None:
    run = Run()
    run.train()
    calls.update(enter=0, generated=0)
    replies = [run.manager.submit(command) for command in commands_for(120)]
    run.train()
    assert all(reply.result(0).accepted for reply in replies)
    assert len(run.host.structure.placements) == 120
    assert calls["enter"] == 1
    assert calls["generated"] <= 4, "the two forwards of the structure, and what looks them up"


def test_on_a_compiled_host_they_are_two_graphs(calls: dict[str, int], fresh_compiler: None) -> None:
    """However many: 120 are as well, but those take minutes to compile."""
    run = Run()
    run.host.compile(backend="aot_eager")
    run.train()
    torch._dynamo.utils.counters.clear()
    calls.update(enter=0)
    replies = [run.manager.submit(command) for command in commands_for(8)]
    run.train()
    assert all(reply.result(0).accepted for reply in replies)
    assert calls["enter"] == 1
    run.train()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


# A property: together is one by one


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["germinate", "germinate", "blend", "at once", "cull", "fossilize", "force", "pause"]
        ),
        st.integers(0, 20),
        st.integers(0, 20),
    ),
    max_size=8,
)


def carry_out(run: Run, operations: list[tuple[str, int, int]], prefix: str) -> None:
    manager = run.manager
    for number, (operation, one, two) in enumerate(operations):
        names = list(manager.seeds)
        name = names[one % len(names)] if names else ""
        try:
            match operation:
                case "germinate":
                    mode = ("residual", "convex", "gated", "channelwise")[two % 4]
                    other = {} if one % 3 or not names else {"before": names[two % len(names)]}
                    manager.germinate(
                        SLOTS[one % 3],
                        "mlp",
                        name=f"{prefix}{number}",
                        mode=mode,
                        isolated=bool(two % 3),
                        **other,
                    )
                case "blend" | "at once":
                    manager.blend(name, to=(two % 5) / 4, steps=0 if operation == "at once" else 1 + one % 3)
                case "cull":
                    manager.cull(name)
                case "fossilize" | "force":
                    manager.fossilize(name, force=operation == "force")
                case "pause":
                    (manager.pause if two % 2 else manager.resume)(name)
        except (StageError, SlotError):
            pass


def settled(run: Run) -> dict[str, Any]:
    """What is the same whatever the course was: places of parameters in the optimizer by their names."""
    names = {id(p): n for n, p in run.host.named_parameters()}
    return {
        "value": run.host(X).detach(),
        "state": dict(run.host.state_dict()),
        "seeds": [(n, s.stage, s.alphas, s.paused) for n, s in run.manager.seeds.items()],
        "groups": [sorted(names[id(p)] for p in g["params"]) for g in run.optimizer.param_groups],
        "code": run.host.regions[""].code,
        "refuses": dict(run.manager._memory.refuses_until),
    }


@given(first=OPERATIONS, then=OPERATIONS)
def test_together_is_one_by_one(first: list[tuple[str, int, int]], then: list[tuple[str, int, int]]) -> None:
    runs = [Run(), Run()]
    for run, together in zip(runs, (True, False), strict=True):
        carry_out(run, first, "a")
        run.train()
        if together:
            with run.manager.together():
                carry_out(run, then, "b")
        else:
            replay(run, then)
    assert_same_bits(settled(runs[0]), settled(runs[1]))
    for run in runs:
        run.train(2)
    assert_same_bits(settled(runs[0]), settled(runs[1]))


def replay(run: Run, operations: list[tuple[str, int, int]]) -> None:
    """One by one; each is on the seed that it is on in a block, where culled ones keep their places."""
    manager, gone = run.manager, Ghosts(run)
    run.manager = gone  # type: ignore[assignment]
    carry_out(run, operations, "b")
    run.manager = manager


class Ghosts:
    """A manager in whose ``seeds`` those that are culled keep their places."""

    def __init__(self, run: Run):
        self._manager = run.manager
        self.seeds = dict(run.manager.seeds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def germinate(self, *args: Any, **kwargs: Any) -> None:
        seed = self._manager.germinate(*args, **kwargs)
        names = list(self.seeds)
        before = kwargs.get("before")
        names.insert(names.index(before) if before is not None else len(names), seed.name)
        every = {**self.seeds, seed.name: seed}
        self.seeds = {name: every[name] for name in names}


@given(first=OPERATIONS, then=OPERATIONS, fault=st.integers(0, 2))
def test_whole_or_not_at_all(
    first: list[tuple[str, int, int]], then: list[tuple[str, int, int]], fault: int
) -> None:
    run = Run()
    carry_out(run, first, "a")
    run.train()
    before = run.seen()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError), run.manager.together():  # noqa: PT012
        carry_out(run, then, "b")
        run.manager.germinate("1", "mlp", name="last")

        def fails(*args: Any, **kwargs: Any) -> Tensor:
            raise MemoryError

        if fault == 0:
            raise MemoryError
        if fault == 1:
            patch.setattr(Running, "prepare", fails)
        else:
            patch.setattr(run.manager._lifecycle.gradients, "watch", fails)
    assert_same_bits(run.seen(), before)
    run.train()
