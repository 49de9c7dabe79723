"""A seed counts the calls in which it ran: the count is that of an onlooker, however the host runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxgraft
from fxgraft import SeedManager
from fxgraft.testing import no_recompiles

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class FlagBlock(nn.Module):
    """Another form of call with ``flag``, which its caller passes on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)

    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        h = self.drop(torch.tanh(self.layer(x)))
        return h * 2 if flag else h + x


class SharesABlock(nn.Module):
    """Calls one block once, and one that is shared three times."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.shared, self.head = FlagBlock(), FlagBlock(), nn.Linear(6, 2)

    def forward(self, x: Tensor, once: bool = False, shared: bool = False) -> Tensor:
        x = self.once(x, flag=once)
        for _ in range(3):
            x = self.shared(x, flag=shared)
        return self.head(x)


@dataclass
class Run:
    """A host with a seed in each block, its training step, and what an onlooker counts."""

    compiled: dict[str, Any] | None = None
    calls: dict[str, list[int]] = field(default_factory=lambda: {"once": [0, 0], "shared": [0, 0]})
    steps: dict[str, int] = field(default_factory=lambda: {"once": 0, "shared": 0})

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.host = fxgraft.trace(SharesABlock(), (X,))
        self.optimizer = torch.optim.SGD(self.host.parameters(), 0.01, momentum=0.9)
        self.manager = SeedManager(self.host, self.optimizer, check_every=0)
        if self.compiled is not None:
            self.host.compile(**self.compiled)
        self.seeds = {name: self.manager.germinate(f"{name}.tanh", "mlp", name=name) for name in self.calls}
        self.has_learned: set[str] = set()

    def call(self, once: bool, shared: bool, grad: bool, training: bool) -> None:
        """One call; with gradients, a backward pass too."""
        self.host.train(training)
        with torch.set_grad_enabled(grad):
            loss = self.host(X, once=once, shared=shared).square().mean()
        if grad:
            loss.backward()
        for name, fell_back, times in (("once", once, 1), ("shared", shared, 3)):
            if not fell_back:
                self.calls[name][0 if grad else 1] += times
                if grad:
                    self.has_learned.add(name)

    def step(self, stepped: bool = True) -> None:
        if stepped:
            self.optimizer.step()
            for name in self.has_learned:
                self.steps[name] += 1
        self.optimizer.zero_grad()
        self.manager.step()
        self.has_learned = set()

    def check(self) -> None:
        for name, seed in self.seeds.items():
            with_grad, without = self.calls[name]
            assert (seed.runs, seed.training_runs) == (with_grad + without, with_grad), name
            assert seed.trained_steps == self.steps[name], name


FORMS = st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans())
LIVES = st.lists(st.one_of(FORMS, st.just("step"), st.just("a step without an update")), max_size=12)

WAYS: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "whole": {"backend": "aot_eager"},
    "by region": {"backend": "aot_eager", "granularity": "region"},
}


@pytest.fixture(scope="module")
def runs() -> Iterator[Callable[[str], Run]]:
    """One run for each way, for all examples: what counts are differences, and nothing is compiled twice."""
    torch._dynamo.reset()
    made: dict[str, Run] = {}
    with torch._dynamo.config.patch(recompile_limit=32):  # a kind of call is a graph
        yield lambda way: made[way] if way in made else made.setdefault(way, Run(WAYS[way]))
    torch._dynamo.reset()


@pytest.mark.parametrize("way", WAYS)
@given(life=LIVES)
def test_the_counts_are_those_of_an_onlooker(way: str, life: list[Any], runs: Callable[[str], Run]) -> None:
    run = runs(way)
    for event in [*life, "step"]:
        if isinstance(event, tuple):
            once, shared, grad, training = event
            run.call(once, shared, grad, training if run.compiled is None else grad)
        else:
            run.step(stepped=event == "step")
    run.check()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("granularity", ["host", "region"])
def test_counting_recompiles_nothing(granularity: str) -> None:
    run = Run({"backend": "aot_eager", "granularity": granularity})
    forms = [(False, False, True, True), (False, False, False, False)]
    for form in forms:
        run.call(*form)
    run.manager.blend("once", steps=3)
    run.step()
    for form in forms:
        run.call(*form)
    with no_recompiles():
        for _ in range(4):
            for form in forms:
                run.call(*form)
            run.step()
    with_grad, without = run.calls["once"]
    assert (run.seeds["once"].runs, run.seeds["once"].training_runs) == (with_grad + without, with_grad)
    assert with_grad == without == 6
    report = fxgraft.compile_report(run.host)
    assert report.uncompiled_calls == 0, report  # both ways of counting come to the same: code is trusted


def test_copies_and_files_carry_the_counts(tmp_path: Path) -> None:
    run = Run()
    run.call(False, False, True, True)
    run.call(False, True, False, False)
    run.step()
    run.check()
    copied = copy.deepcopy(run.host)
    copied(X)
    assert copied.graft("once").runs == (2, 1)
    run.check()
    run.manager.save(tmp_path / "run")
    again = Run.__new__(Run)
    again.host = fxgraft.trace(SharesABlock(), (X,))
    again.optimizer = torch.optim.SGD(again.host.parameters(), 0.01, momentum=0.9)
    again.manager = SeedManager.load(tmp_path / "run", again.host, again.optimizer)
    again.seeds, again.has_learned = dict(again.manager.seeds), set()
    again.calls, again.steps = copy.deepcopy(run.calls), dict(run.steps)
    again.check()
    assert all(seed.steps == 1 for seed in again.seeds.values())
    again.step()  # loading wrote to the weights, which is no training
    again.check()
    again.call(False, False, True, True)
    again.step()
    again.check()


def test_one_optimizer_step_for_two_calls_and_a_skipped_one() -> None:
    run = Run()
    run.call(False, True, True, True)
    run.call(False, False, True, True)
    run.step()
    run.call(False, False, True, True)
    run.step(stepped=False)
    run.check()
    assert run.steps == {"once": 1, "shared": 1}


def test_momentum_without_a_call_is_no_training() -> None:
    run = Run()
    for _ in range(2):
        run.call(False, False, True, True)
        run.step()
    for _ in range(3):  # zeros are left in the place of gradients: SGD goes on by its momentum
        run.call(True, False, True, True)
        run.optimizer.step()
        run.steps["shared"] += 1
        run.optimizer.zero_grad(set_to_none=False)
        for weight in run.manager.registry.parameters("once"):
            weight.grad = torch.zeros_like(weight)
        run.manager.step()
    run.check()


def test_gradients_that_are_not_accumulated() -> None:
    run = Run()
    weights = run.manager.registry.parameters("once")
    for _ in range(3):
        found = torch.autograd.grad(run.host(X).sum(), weights)
        for weight, gradient in zip(weights, found, strict=True):
            weight.grad = gradient
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.manager.step()
    assert run.seeds["once"].trained_steps == 3


def test_gradients_that_are_not_finite_train_nothing() -> None:
    run = Run()
    (run.host(X).sum() * float("inf")).backward()
    run.step()
    assert (run.seeds["once"].runs, run.seeds["once"].trained_steps, run.seeds["once"].steps) == (1, 0, 1)


def test_a_seed_without_weights_is_trained_where_it_runs() -> None:
    run = Run()
    seed = run.manager.germinate("head", nn.Identity(), name="bare")
    for called in (True, False, True):
        if called:
            run.host(X)
        run.manager.step()
    assert (seed.runs, seed.trained_steps, seed.steps) == (2, 2, 3)


@pytest.mark.parametrize("within", ["shadow", "the isolation check", "a measurement"])
def test_what_is_tried_is_not_counted(within: str) -> None:
    run = Run()
    run.manager.monitor._interval = 1
    run.manager.monitor.look_soon()
    match within:
        case "shadow":
            with run.manager.shadow():
                run.host(X).sum().backward()
        case "the isolation check":
            run.call(False, False, True, True)
            run.step()
            assert run.manager.monitor.checks == 1
        case "a measurement":
            run.manager.measure("once", lambda: run.host(X).square().mean())
    run.check()


def test_in_one_graph_of_several_regions() -> None:
    host = fxgraft.trace(SharesABlock(), (X,))
    manager = SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    seed = manager.germinate("head", nn.Linear(6, 2), source="once.tanh", name="a")
    assert host.structure.merged
    for _ in range(3):
        host(X).sum().backward()
    with torch.inference_mode():
        host(X)
    assert (seed.runs, seed.training_runs) == (4, 3)
    host(X, shared=True)
    assert (seed.runs, host.explain().fallbacks) == (4, 1)


def test_a_culled_seed_and_a_fossil_keep_their_count() -> None:
    run = Run()
    run.call(False, False, True, True)
    run.manager.blend("once", steps=1)
    run.step()
    run.manager.fossilize("once")
    run.manager.cull("shared")
    run.host(X)
    assert [seed.runs for seed in run.seeds.values()] == [1, 3]


def test_inside_function_transforms() -> None:
    run = Run()
    run.host.eval()
    run.manager.cull("shared")
    run.manager.blend("once", to=0.5, steps=1)
    run.step()
    torch.func.jacrev(run.host)(X[0])
    torch.func.vmap(run.host)(X[:, None])
    assert run.seeds["once"].runs == 2


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_what_checkpointing_runs_again_is_not_counted_again(backend: str | None) -> None:
    class Checkpointed(SharesABlock):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.head(checkpoint(self.once, x, use_reentrant=False))

    host = fxgraft.trace(Checkpointed(), (X,))
    seed = SeedManager(host, check_every=0).germinate("once.tanh", "mlp")
    if backend is not None:
        host.compile(backend=backend)
    for _ in range(2):
        host(X).sum().backward()
    assert (seed.runs, seed.training_runs) == (2, 2)


def test_an_exported_program_does_not_count() -> None:
    run = Run()
    run.host.eval()
    program = torch.export.export(run.host, (X,))
    assert program.graph_signature.buffers_to_mutate == {}
    assert run.seeds["once"].runs == 0


def test_a_host_on_meta_can_be_asked() -> None:
    run = Run()
    run.host.to("meta")(X.to("meta"))
    assert run.seeds["once"].runs == 1
