"""Random lives of seeds on random hosts, in step with the reference: losses, weights, alphas, stages."""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.errors import BlueprintError
from tests.harness import loss_of, traced_once
from tests.machine.reference import Reference
from tests.seed_modules import Scale
from tests.strategies import WIDTH, Plan, plans

WITHOUT = {
    "dropout", "dropout_module",  # masks that the reference would have to draw as well
    "batch_norm", "layer_norm",  # where all are equal they make of rounding a difference (1 / sqrt(eps))
}  # fmt: skip
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.02, momentum=0.5),
    "adamw": lambda parameters: torch.optim.AdamW(
        parameters, 1e-3, eps=1e-4
    ),  # no sign of a zero's rounding,
}
NUMBERS = st.integers(0, 30)
RULES: Counter[str] = Counter()
"""How often each rule ran, in this process."""


def branch(kind: int) -> nn.Module:
    """A seed of the kind of that number, in float64; always the same weights."""
    layers = [
        lambda: nn.Linear(WIDTH, WIDTH),
        lambda: nn.Sequential(nn.Linear(WIDTH, 3), nn.Tanh(), nn.Linear(3, WIDTH)),
        lambda: Scale(0.01, 0.0),
        lambda: Scale(3.0, -1.0),
    ]
    with torch.random.fork_rng():
        torch.manual_seed(kind)
        return layers[kind % len(layers)]().double()


def fails(event: Any) -> None:
    """A sink that raises now and then."""
    if event.step % 5 == 1:
        raise RuntimeError("a sink that fails")


@traced_once
def traced(plan: Plan) -> fxgraft.Host:
    batch = plan.batch(0)
    return fxgraft.trace(plan.build().double(), (batch if plan.tokens else batch.double(),))


class InStep(RuleBasedStateMachine):
    """The host and the reference live the same life."""

    @initialize(plan=plans(WITHOUT), optimizer=st.sampled_from(sorted(OPTIMIZERS)))
    def begin(self, plan: Plan, optimizer: str) -> None:
        self.plan, self.make = plan, OPTIMIZERS[optimizer]
        self.reference = Reference(plan.build().double(), self.make)
        self.host, self.optimizer = self.fresh()
        self.manager = SeedManager(self.host, self.optimizer, sinks=[fails], check_every=3, helper="off")
        self.steps = self.born = 0
        self.code = [region.code for region in self.host.regions.values()]
        self.places = self.slots_that_are_modules()

    def fresh(self) -> tuple[fxgraft.Host, torch.optim.Optimizer]:
        host = traced(self.plan)
        return host, self.make(host.parameters())

    def batch(self, number: int) -> Tensor:
        found = self.plan.batch(number)
        return found if self.plan.tokens else found.double()

    def slots_that_are_modules(self) -> list[str]:
        """Slots behind a module that gives one value and is called once, into which nobody writes."""
        calls: Counter[str] = Counter()
        wide: set[str] = set()

        def count(name: str) -> Any:
            def hook(module: nn.Module, args: Any, out: Any) -> None:
                calls[name] += 1
                if isinstance(out, Tensor) and out.shape[-1:] == (WIDTH,) and out.is_floating_point():
                    wide.add(name)

            return hook

        model = self.plan.build().double()
        for name, module in model.named_modules():
            module.register_forward_hook(count(name))
        model(self.batch(0))
        slots = self.host.slots
        return [n for n in wide if calls[n] == 1 and n in slots and not slots[n].copy]

    def pick(self, number: int, *stages: str) -> str | None:
        found = sorted(n for n, s in self.reference.seeds.items() if not stages or s.stage in stages)
        return found[number % len(found)] if found else None

    def note(self, rule: str) -> None:
        RULES[rule] += 1

    # Births

    @precondition(lambda self: self.places and len(self.reference.seeds) < 5)
    @rule(number=NUMBERS, kind=NUMBERS, convex=st.booleans(), wait=st.booleans())
    def germinate(self, number: int, kind: int, convex: bool, wait: bool) -> None:
        slot, module = sorted(self.places)[number % len(self.places)], branch(kind)
        name = f"s{9 - self.born % 10}_{self.born}"  # later ones may come first at a slot
        self.born += 1
        self.note("germinate")
        mode = "convex" if convex else "residual"
        seed = self.manager.germinate(slot, copy.deepcopy(module), name=name, mode=mode, wait=wait)
        if not wait:
            assert seed.stage is Stage.GERMINATED
            assert self.manager._background.wait(60)
            self.train()  # of which it does not feel anything; then it is live
        self.reference.germinate(name, slot, module, convex)

    @precondition(lambda self: self.places and self.reference.seeds)
    @rule(number=NUMBERS)
    def germinate_in_vain(self, number: int) -> None:
        self.note("germinate in vain")
        slot = sorted(self.places)[number % len(self.places)]
        with pytest.raises(BlueprintError):
            self.manager.germinate(slot, nn.Linear(WIDTH, WIDTH + 1))

    # Lives

    @precondition(lambda self: self.pick(0, "TRAINING", "BLENDING", "HOLDING"))
    @rule(number=NUMBERS, to=st.sampled_from([0.0, 0.25, 0.7, 1.0]), steps=st.integers(1, 4))
    def blend(self, number: int, to: float, steps: int) -> None:
        name = self.pick(number, "TRAINING", "BLENDING", "HOLDING")
        assert name is not None
        self.note("blend")
        self.manager.blend(name, to=to, steps=steps, schedule="linear")
        self.reference.seeds[name].blend(to, steps)

    @precondition(lambda self: self.pick(0, "TRAINING", "BLENDING", "HOLDING"))
    @rule(number=NUMBERS, paused=st.booleans())
    def pause(self, number: int, paused: bool) -> None:
        name = self.pick(number, "TRAINING", "BLENDING", "HOLDING")
        assert name is not None
        self.note("pause or resume")
        (self.manager.pause if paused else self.manager.resume)(name)
        self.reference.seeds[name].paused = paused

    @precondition(lambda self: self.pick(0, "HOLDING"))
    @rule(number=NUMBERS)
    def fossilize(self, number: int) -> None:
        name = self.pick(number, "HOLDING")
        assert name is not None
        self.note("fossilize")
        self.manager.fossilize(name)
        self.reference.seeds[name].stage, self.reference.seeds[name].paused = "FOSSILIZED", False

    @precondition(lambda self: self.pick(0, "TRAINING", "BLENDING", "HOLDING"))
    @rule(number=NUMBERS, wait=st.booleans())
    def cull(self, number: int, wait: bool) -> None:
        name = self.pick(number, "TRAINING", "BLENDING", "HOLDING")
        assert name is not None
        self.note("cull")
        self.manager.cull(name, wait=wait)
        self.reference.cull(name)

    @precondition(lambda self: len(self.reference.seeds) > 2)
    @rule()
    def cull_all(self) -> None:
        self.note("cull all")
        gone = self.manager.cull_all()
        for name in gone:
            self.reference.cull(name)

    # Time

    @rule(times=st.integers(1, 3))
    def train(self, times: int = 1) -> None:
        for _ in range(times):
            self.note("train")
            self.steps += 1
            batch = self.batch(self.steps)
            self.optimizer.zero_grad()
            loss = loss_of(self.host(batch))
            loss.backward()
            self.optimizer.step()
            self.manager.step(loss)
            expected = self.reference.step(loss_of, batch)
            self.close(loss.detach(), expected, "loss")

    @precondition(lambda self: self.pick(0, "TRAINING"))
    @rule(number=NUMBERS, to=st.sampled_from([0.4, 1.0]), keep=st.booleans())
    def a_whole_life(self, number: int, to: float, keep: bool) -> None:
        """As a controller would lead it; what is paused stands still meanwhile."""
        name = self.pick(number, "TRAINING")
        assert name is not None
        self.note("a whole life")
        self.train(2)
        self.manager.blend(name, to=to, steps=2, schedule="linear")
        self.reference.seeds[name].blend(to, 2)
        self.train(3)
        if keep and self.reference.seeds[name].stage == "HOLDING":
            self.manager.fossilize(name)
            self.reference.seeds[name].stage, self.reference.seeds[name].paused = "FOSSILIZED", False
            self.note("fossilize")
        self.train(1)

    @precondition(lambda self: self.reference.seeds)
    @rule(mode=st.booleans())
    def set_mode(self, mode: bool) -> None:
        self.note("train or eval")
        for module in (self.host, self.reference.model, *(s.module for s in self.reference.seeds.values())):
            module.train(mode)

    @precondition(lambda self: self.reference.seeds)
    @rule()
    def save_and_load(self) -> None:
        """Into a host as it was traced, which goes on."""
        self.note("save and load")
        factories = {
            name: (lambda slot, m=s.module: copy.deepcopy(m)) for name, s in self.reference.seeds.items()
        }
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run.fxgraft"
            self.manager.save(file)
            mode = self.host.training
            self.host, self.optimizer = self.fresh()
            options = {"sinks": [fails], "check_every": 3, "helper": "off"}
            self.manager = SeedManager.load(file, self.host, self.optimizer, blueprints=factories, **options)
        self.host.train(mode)

    @precondition(lambda self: self.reference.seeds)
    @rule()
    def copy_the_host(self) -> None:
        self.note("deepcopy")
        twin = copy.deepcopy(self.host)
        with torch.no_grad():
            theirs, ours = (
                loss_of(model(self.batch(0))) for model in (twin.eval(), copy.deepcopy(self.host).eval())
            )
        assert torch.equal(theirs, ours)

    # What has to be so after each of them

    @invariant()
    def the_same_seeds_in_the_same_stages(self) -> None:
        ours = {n: (s.stage.name, s.paused) for n, s in self.manager.seeds.items()}
        assert ours == {n: (s.stage, s.paused) for n, s in self.reference.seeds.items()}
        for name, seed in self.reference.seeds.items():
            assert self.manager.seeds[name].alpha == pytest.approx(seed.alpha, abs=1e-12)
        if not self.reference.seeds and not self.manager._lifecycle.departing:
            assert [region.code for region in self.host.regions.values()] == self.code

    @invariant()
    def the_same_weights(self) -> None:
        host = dict(self.host.named_parameters())
        for name, parameter in self.reference.model.named_parameters():
            self.close(host[name], parameter, name)
        for name, seed in self.reference.seeds.items():
            mine = self.manager.seeds[name].module
            assert mine is not None
            for (part, ours), theirs in zip(mine.named_parameters(), seed.module.parameters(), strict=True):
                self.close(ours, theirs, f"{name}.{part}")

    @invariant()
    def each_parameter_has_one_place(self) -> None:
        placed = sorted(id(p) for group in self.optimizer.param_groups for p in group["params"])
        owned = [*self.host.host_parameters(), *self.manager.seed_parameters()]
        assert placed == sorted(map(id, owned))
        assert {id(p) for p in self.optimizer.state} <= set(placed)

    def close(self, ours: Tensor, theirs: Tensor, what: str) -> None:
        """Equal up to the order of operations in float64."""
        torch.testing.assert_close(
            ours,
            theirs,
            rtol=1e-7,
            atol=1e-9,
            equal_nan=True,
            msg=lambda text: f"{what}, step {self.steps}: {text}",
        )


def test_lives_in_step_with_the_reference() -> None:
    """And enough of everything happened: docs/reliability.md tells of the counts."""
    default = settings()
    bounds = {"max_examples": max(32, default.max_examples), "stateful_step_count": 25}
    run_state_machine_as_test(InStep, settings=settings(default, **bounds))
    print(f"{RULES.total()} rules: {dict(RULES)}")
    assert RULES.total() > 400
    assert all(RULES[rule] for rule in ("germinate", "blend", "fossilize", "cull", "save and load", "train"))
