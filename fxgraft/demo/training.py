"""One training run of one arm, and what the runs share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count

import torch
import torch.nn.functional as F
from torch import nn

import fxgraft
from fxgraft import Host, SeedManager, Stage
from fxgraft.demo.controller import Action, Blend, Controller, Cull, Fossilize, Germinate, Policy
from fxgraft.demo.data import BATCH, Digits, Part
from fxgraft.demo.measure import (
    CountingBackend,
    FlopLedger,
    IsolationCheck,
    Probe,
    contribution,
    evaluate,
    forward_flops,
)
from fxgraft.demo.model import BLUEPRINTS, CANDIDATES, SmallNet, initial_weights
from fxgraft.demo.records import Record, SeedRecord, SeedRow, Watcher
from fxgraft.optimizers.gradients import norm_of
from fxgraft.telemetry import Sink

RATE = 1e-2
EVALUATE_EVERY = 20


@dataclass
class Bench:
    """What the runs share: data, length, policy, and the host and model that are compiled once.

    Args:
        digits: the data.
        steps: of a run.
        policy: of the controller.
        watcher: is told of every step.
        compiled: False runs everything in eager.
    """

    digits: Digits
    steps: int
    policy: Policy
    watcher: Watcher
    compiled: bool = True

    def __post_init__(self) -> None:
        self.backend = CountingBackend()
        self.model = SmallNet()
        self.run_model: Callable[..., torch.Tensor] = self.model
        self.host = self.fresh_host()
        if self.compiled:
            self.run_model = torch.compile(self.model, backend=self.backend, dynamic=False, fullgraph=True)
            self.host.compile(backend=self.backend, dynamic=False)

    def fresh_host(self) -> Host:
        """An uncompiled host of its own."""
        return fxgraft.trace(SmallNet(), (self.digits.train.images[:BATCH],))

    def empty_host(self) -> Host:
        """The compiled host, without the seeds of the run before: what was compiled stays compiled."""
        self.host.clear()
        return self.host


class Run:
    """One training run."""

    def __init__(
        self,
        bench: Bench,
        arm: str,
        random_seed: int,
        model: nn.Module,
        enabled: bool = True,
        sinks: Sequence[Sink] = (),
    ):
        self.bench, self.model = bench, model
        self.record = Record(arm, random_seed)
        model.load_state_dict(initial_weights(random_seed))
        torch.manual_seed(random_seed)  # also what the seeds' own streams are keyed by
        model.train()
        model.zero_grad()
        self.optimizer = torch.optim.AdamW(model.parameters(), RATE)
        # Constant, and to zero over the last fifth: the final accuracy is then less of a lottery.
        last = bench.steps // 5
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (bench.steps - step) / last)
        )
        if isinstance(model, Host):
            self.manager = SeedManager(
                model, self.optimizer, enabled=enabled, sinks=sinks, metrics_every=5 if sinks else 0
            )
        self.ledger = FlopLedger()
        self.seeds: dict[str, fxgraft.Seed] = {}
        self.gains: dict[str, float] = {}
        self.isolation = IsolationCheck()
        self._compiles_before = bench.backend.compiles

    def train(self, call: Callable[..., torch.Tensor], act: Callable[[int, float], None]) -> None:
        """All steps; ``act`` is called after each."""
        for step, batch in enumerate(self.bench.digits.batches(self.bench.steps, self.record.random_seed), 1):
            self.ledger.add_step(self.model)
            blending = any(seed.stage is Stage.BLENDING for seed in self.seeds.values())
            compiles, began = self.bench.backend.compiles, time.perf_counter()
            loss = F.cross_entropy(call(batch.images), batch.labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.scheduler.step()
            if isinstance(self.model, Host):
                self.manager.step(loss)
            self.record.losses.append(loss.item())
            if blending:
                self.record.recompiles_on_alpha += self.bench.backend.compiles - compiles
            self.record.train_ms.append((time.perf_counter() - began) * 1e3)
            act(step, self.record.losses[-1])
            self.record.step_ms.append((time.perf_counter() - began) * 1e3)
            self._look(step, batch)

    def grow(self) -> None:
        """Train under a controller."""
        digits, host = self.bench.digits, self.manager.host
        probe = Probe(self._probe_batches(), digits.held_out)
        controller = Controller(
            self.bench.policy, CANDIDATES, lambda candidates: probe(host, candidates), self._contribution
        )

        def act(step: int, loss: float) -> None:
            for action in controller.observe(loss):
                self.apply(step, action)

        self.train(host, act)
        self.record.decision_flops += probe.flops

    def replay(self, script: Sequence[tuple[int, Action]], isolated: bool = True) -> None:
        """Train under the actions of another run."""
        actions: dict[int, list[Action]] = {}
        for step, action in script:
            actions.setdefault(step, []).append(action)

        def act(step: int, loss: float) -> None:
            for action in actions.get(step, ()):
                self.apply(step, action, isolated)

        self.train(self.manager.host, act)

    def apply(self, step: int, action: Action, isolated: bool = True) -> None:
        """Carry out one action."""
        manager = self.manager
        self.record.script.append((step, action))
        self.gains[action.seed] = action.gain
        match action:
            case Germinate():
                blueprint = BLUEPRINTS[action.blueprint]
                seed = manager.germinate(action.slot, blueprint, name=action.seed, isolated=isolated)
                self.seeds[action.seed] = seed
                if not isolated:
                    manager.blend(seed, steps=self.bench.policy.blend)
            case Blend() if isolated:
                manager.blend(self.seeds[action.seed], steps=action.steps)
            case Cull():
                manager.cull(self.seeds[action.seed])
            case Fossilize():
                if not isolated:  # what it is worth in this run, not in the replayed one
                    self.gains[action.seed] = self._contribution(action.seed)
                manager.fossilize(self.seeds[action.seed])
        self.bench.watcher.acted(self.record, step, action)

    def finish(self) -> Record:
        """The record, with what is known only at the end."""
        record, bench = self.record, self.bench
        _, record.accuracy = evaluate(self.model, bench.digits.test)
        record.parameters = sum(p.numel() for p in self.model.parameters())
        record.flops = self.ledger.total
        record.inference_flops = forward_flops(self.model)
        record.compiles = bench.backend.compiles - self._compiles_before
        record.isolation_violations = self.isolation.violations
        record.isolation_compared = self.isolation.parameters
        record.seeds = [
            SeedRecord(s.name, s.slot, s.blueprint, s.stage.name, self.gains[s.name])
            for s in self.seeds.values()
        ]
        return record

    def _contribution(self, seed: str) -> float:
        held_out = self.bench.digits.held_out
        self.record.decision_flops += 2 * forward_flops(self.model, len(held_out.labels))
        return contribution(self.manager, seed, held_out)

    def _probe_batches(self) -> Iterator[Part]:
        """Training data in an order of its own: a probe must not use up the run's batches."""
        endless = (self.bench.digits.batches(100, 500 + self.record.random_seed + 50 * i) for i in count())
        return chain.from_iterable(endless)

    def _look(self, step: int, batch: Part) -> None:
        """What is recorded and shown; outside the measured step."""
        live = [seed for seed in self.seeds.values() if seed.is_live]
        for seed in live:
            self.record.alphas.setdefault(seed.name, []).append((step, seed.alpha))
        isolated = live and all(s.stage is Stage.TRAINING and s.spec.isolated for s in live)
        if isolated and step % (self.bench.policy.isolate // 3 or 1) == 0:
            self.isolation.compare(self.manager.host, [seed.name for seed in live], batch)
        if step % EVALUATE_EVERY == 0 or step == self.bench.steps:
            self.record.curve.append((step, *evaluate(self.model, self.bench.digits.held_out)))
        self.bench.watcher.step(self.record, step, self._rows(step))

    def _rows(self, step: int) -> list[SeedRow]:
        rows = []
        for seed in self.seeds.values():
            ratio = None
            if seed.module is not None and seed.is_live and step % 5 == 0:
                host = norm_of(self.manager.host.host_parameters())
                ratio = norm_of(seed.module.parameters()) / host if host else None
            gain = self.gains[seed.name]
            rows.append(SeedRow(seed.name, seed.slot, seed.stage.name, seed.alpha, gain, ratio))
        return rows
