"""Nothing grows that does not run: who does not run is told of with the true cause, and refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.errors import StageError
from fxgraft.gates import Ran, Trained
from fxgraft.host import engine
from fxgraft.optimizers.progress import PATIENCE
from fxgraft.telemetry import Memory
from tests.harness import warnings_in

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class CallBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor, use_cache: bool = True, mask: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.layer(x))
        return h + x if use_cache and mask is None else h * 2


class TwoCallBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.other, self.head = CallBlock(), CallBlock(), nn.Linear(6, 2)

    def forward(self, x: Tensor, use_cache: bool = True, mask: Tensor | None = None) -> Tensor:
        return self.head(self.other(self.block(x, use_cache=use_cache, mask=mask)))


class Run:
    """A host, trained for some steps by calls of some form."""

    def __init__(self, objective: str = "trust", **compiled: Any) -> None:
        torch.manual_seed(0)
        self.model = TwoCallBlocks()
        self.host = fxgraft.trace(self.model, (X,))
        if compiled:
            self.host.compile(**compiled)
        self.optimizer = torch.optim.SGD(self.host.parameters(), 0.1)
        self.memory = Memory()
        self.manager = SeedManager(self.host, self.optimizer, sinks=[self.memory], check_every=0)
        self.seed = self.manager.germinate("block.tanh", "mlp", name="a", objective=objective)

    def train(self, steps: int = 1, call: Callable[[], Tensor] | None = None, **given: Any) -> None:
        for _ in range(steps):
            loss = (self.host(X, **given) if call is None else call()).square().mean()
            if loss.requires_grad:
                loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.manager.step()

    @property
    def told(self) -> list[str]:
        return [event.data["reason"] for event in self.memory.of_kind("seed_stalled")]


WAYS: list[dict[str, Any]] = [
    {},
    {"backend": "aot_eager"},
    {"backend": "aot_eager", "granularity": "region"},
]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("compiled", WAYS, ids=str)
@pytest.mark.parametrize(
    ("given", "expected", "got", "remedy"),
    [
        ({"use_cache": False}, "use_cache is True", "use_cache = False", "{'use_cache': False}"),
        ({"mask": X}, "mask is None", "mask = a tensor (4, 6)", "{'mask': a tensor (4, 6)}"),
    ],
    ids=["a constant", "a tensor"],
)
def test_a_slot_whose_calls_all_fall_back_is_told_of_at_the_first_step(
    compiled: dict[str, Any], given: dict[str, Any], expected: str, got: str, remedy: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    run = Run(**compiled)
    run.train(1, **given)
    (reason,) = run.told
    assert reason == (
        f"it did not run: the call of 'block' (CallBlock) was of another form than in the example call of "
        f"fxgraft.trace there: expected {expected}; got {got}. Trace with an example that is such a call "
        f"(example_kwargs={remedy}), or call the host as that example did"
    )
    assert warnings_in(caplog)[-1] == f"seed 'a' at slot 'block.tanh': {reason}"
    many = len(warnings_in(caplog))
    run.train(PATIENCE + 1, **given)
    assert len(run.told) == 1
    assert len(warnings_in(caplog)) == many, "told of twice"
    assert (run.seed.runs, run.seed.trained_steps, run.seed.steps) == (0, 0, PATIENCE + 2)
    with pytest.raises(StageError) as caught:
        run.manager.blend("a")
    assert str(caught.value) == (
        f"cannot blend seed 'a': it has never run: {run.seed.did_not_run}. Meet that, or give force=True"
    )


def test_what_falls_back_in_some_calls_is_not_told_of_as_silent() -> None:
    run = Run()
    for i in range(PATIENCE + 2):
        run.train(1, use_cache=i % 2 == 0)
    assert run.told == []
    assert run.seed.trained_steps == PATIENCE // 2 + 1
    run.manager.blend("a")


def test_several_seeds_of_one_module_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    run = Run()
    run.manager.germinate("block.layer", "mlp", name="b")
    run.manager.germinate("other.layer", "mlp", name="c")
    run.train(1, use_cache=False)
    line = warnings_in(caplog)[-1]
    assert line.startswith("seed 'a' at slot 'block.tanh', seed 'b' at slot 'block.layer': it did not run")
    assert len(run.told) == 2


def test_an_argument_that_the_model_does_not_take_is_no_remedy() -> None:
    class Inner(TwoCallBlocks):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.head(self.block(x, use_cache=self.is_cached))

    model = Inner()
    model.is_cached = True
    memory = Memory()
    host = fxgraft.trace(model, (X,))
    manager = SeedManager(host, sinks=[memory], check_every=0)
    manager.germinate("block.tanh", "mlp")
    host.is_cached = False
    host(X)
    manager.step()
    (event,) = memory.of_kind("seed_stalled")
    assert (
        "expected use_cache is True; got use_cache = False. Trace with an example that is such a call, or"
        in (event.data["reason"])
    )


def test_the_model_is_called_instead_of_the_host() -> None:
    run = Run()
    run.train(PATIENCE - 1, call=lambda: run.model(X))
    assert run.told == []
    with pytest.raises(StageError, match="it has never run: no call reached 'block'"):
        run.manager.blend("a")
    run.train(1, call=lambda: run.model(X))
    (reason,) = run.told
    assert "no call reached 'block' (CallBlock) of the host, though the host's weights are trained" in reason
    assert "call the host, not the model it was traced from" in reason


def test_nothing_is_called() -> None:
    run = Run()
    for step in range(PATIENCE):
        assert Ran()(run.seed), step  # nothing goes on: a ramp may be tried out so
        run.manager.step()
    assert not Ran()(run.seed)
    (reason,) = run.told
    assert "it did not run in 20 steps: no call reached 'block' (CallBlock)" in reason
    assert "Expected calls of the host (not of the model it was traced from)" in reason


def test_a_module_that_was_replaced() -> None:
    run = Run()
    engine.trees(run.host)[0].block = CallBlock()
    run.train(PATIENCE)
    (reason,) = run.told
    assert "'block' (CallBlock) was replaced by another module after tracing" in reason


CAUSES: dict[str, tuple[Callable[[Run], Any], str]] = {
    "no gradients": (
        lambda run: run.train(PATIENCE, call=lambda: _without_gradients(run)),
        "it ran in 20 calls in 20 steps, all without gradients",
    ),
    "no backward": (
        lambda run: [(run.host(X), run.manager.step()) for _ in range(PATIENCE)],
        "no gradient has arrived at its weights in 20 steps, though it ran. Expected backward() of a loss",
    ),
    "inf": (
        lambda run: run.train(PATIENCE, call=lambda: run.host(X) * float("inf")),
        "its gradients were not finite, and were dropped, in 20 steps",
    ),
    "a learning rate of 0": (
        lambda run: [run.optimizer.param_groups[0].update(lr=0.0), _over_data(run)],
        "its weights have not moved in 20 steps, though gradients arrive at them. Expected step() of the "
        "optimizer that the manager was made with, with a learning rate above 0",
    ),
}


def _without_gradients(run: Run) -> Tensor:
    with torch.no_grad():
        return run.host(X)


def _over_data(run: Run) -> None:
    """Steps that are not seen by versions, either: through ``.data``."""
    for _ in range(PATIENCE):
        run.host(X).square().mean().backward()
        for weight in run.host.parameters():
            weight.data.sub_(0.0 * weight.grad)
            weight.grad = None
        run.manager.step()


@pytest.mark.parametrize("cause", CAUSES)
def test_the_true_cause_is_named(cause: str) -> None:
    train, says = CAUSES[cause]
    run = Run()
    train(run)
    (reason,) = run.told
    assert says in reason
    assert run.seed.trained_steps == 0


def test_the_shadow_objective_without_shadow_passes() -> None:
    run = Run(objective="shadow")
    run.train(PATIENCE)
    (reason,) = run.told
    assert "Expected backward() inside manager.shadow() of a loss" in reason


def test_what_never_ran_is_not_blended_or_fossilized_unless_somebody_insists() -> None:
    run = Run()
    run.manager.blend("a", steps=1)  # nothing has been called yet, and that is no fault
    run.train(1, use_cache=False)
    assert run.seed.stage is Stage.HOLDING
    says = "it has never run: the call of 'block'"
    with pytest.raises(StageError, match=f"cannot fossilize seed 'a': {says}"):
        run.manager.fossilize("a")
    with pytest.raises(StageError, match=f"cannot blend seed 'a': {says}"):
        run.manager.blend("a", to=0.5)
    reply = run.manager.handle({"type": "FOSSILIZE", "seed": "a"})
    assert reply.refused
    assert says in reply.reason
    with pytest.raises(ValueError, match="force: expected True or False; got 1"):
        run.manager.fossilize("a", force=1)  # type: ignore[arg-type]
    run.manager.fossilize("a", force=True)
    assert run.seed.stage is Stage.FOSSILIZED
    gates = [(e.data["action"], e.data["passed"]) for e in run.memory.of_kind("gate_event")]
    assert gates[-1] == ("fossilize", False)


def test_a_call_opens_the_gate() -> None:
    run = Run()
    run.train(3, use_cache=False)
    assert not Ran()(run.seed)
    assert "0 of 2 steps: it has never run: the call of 'block'" in Trained(2)(run.seed).reason
    run.train(1)
    assert run.seed.did_not_run is None
    assert Ran()(run.seed)
    run.manager.blend("a")


def test_a_measurement_of_what_does_not_run_is_refused() -> None:
    run = Run()
    run.train(2)
    before = run.seed.to_dict()
    for evaluate, says in (
        (lambda: run.model(X).square().mean(), "no call reached 'block' (CallBlock)"),
        (lambda: 1.0, "no call reached 'block' (CallBlock)"),
        (
            lambda: run.host(X, use_cache=False).square().mean(),
            "expected use_cache is True; got use_cache = False",
        ),
    ):
        with pytest.raises(StageError, match="cannot measure seed 'a': evaluate did not run it") as caught:
            run.manager.measure("a", evaluate)
        assert says in str(caught.value)
    assert (run.seed.to_dict(), run.seed.contribution) == (before, None)


def test_an_evaluation_elsewhere_that_tells_them_apart_is_believed(caplog: pytest.LogCaptureFixture) -> None:
    run = Run()
    losses = iter([2.0, 1.5])
    assert run.manager.measure("a", lambda: next(losses)) == 0.5
    (line,) = warnings_in(caplog)
    assert line.startswith(
        "seed 'a': evaluate gives different losses with it and without it, but does not call the host"
    )


def test_a_measurement_of_what_runs() -> None:
    run = Run()
    run.train(2)
    assert run.manager.measure("a", lambda: run.host(X).square().mean()) != 0
