"""One run of one arm: it trains until its FLOPs are spent, and everything is charged.

============  ========================================================================================
``1 block``   a network of fixed size, with a complete learning-rate schedule of its own
``2 blocks``  the same, larger
``4 blocks``  the same, larger
``deepened``  begins with one block; `fxgraft.SeedManager.autogrow` tries one more block again and again
``explored``  begins with one block; `autogrow` tries whatever fits anywhere, side by side, in isolation
============  ========================================================================================

Neither growth is given a size.

Runs with the same random seed see the same batches, and those that begin with one block the same weights.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

import fxgraft
from fxgraft.commands import DEEPEN, SEED
from fxgraft.demo import _text
from fxgraft.demo._model import GPT, criterion, sample
from fxgraft.explore.autogrow import AutoGrowth
from fxgraft.telemetry import Event, JsonLines
from fxgraft.training import Trainer, evaluate
from fxgraft.util.flops import flop_counter

FIXED: Mapping[str, int] = {"1 block": 1, "2 blocks": 2, "4 blocks": 4}
"""How many blocks each has."""

DEEPENED, EXPLORED = "deepened", "explored"
GROWN = (DEEPENED, EXPLORED)
ARMS = (*FIXED, *GROWN)

RATE, WARM_UP, DECAY = 0.006, 100, 0.25
"""Learning rate, the same for all; steps of its linear warm-up; the share of the FLOPs in which it decays."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class RunLength:
    """How long runs are.

    Attributes:
        flops: what each run may spend, in all.
        growth: the arguments of ``manager.autogrow``, for each arm that grows.
        points: how many points a curve has.
        held_out, test: how many pieces of the text an evaluation reads.
    """

    flops: float
    growth: Mapping[str, Mapping[str, Any]]
    points: int
    held_out: int
    test: int


_BLOCKS = DEEPEN(stack="blocks")
FULL = RunLength(
    flops=0.8e12,
    growth={DEEPENED: {"candidates": _BLOCKS, "budget": 4.0}, EXPLORED: {"budget": 4.0, "steps": 20}},
    points=24,
    held_out=256,
    test=1024,
)
_ONE_BLOCK = SEED(slot="blocks.0", blueprint="deepen", config={"stack": "blocks", "at": 0})
_SHORT = {"steps": 5, "window": 10, "flat": 0.5, "blend": 10, "hold": 10, "gain": -1.0}  # keeps all
QUICK = RunLength(
    flops=0.015e12,
    growth={DEEPENED: {"candidates": _BLOCKS} | _SHORT, EXPLORED: {"candidates": [_ONE_BLOCK]} | _SHORT},
    points=4,
    held_out=64,
    test=64,
)


@dataclass
class Ledger:
    """What a run has spent.

    Attributes:
        flops: by what they were spent on: training steps (with the seeds that train in them), and growth
            (evaluations, candidates that are planned, inserted and measured).
        seconds: CPU time of the process, likewise.
    """

    flops: dict[str, int] = field(default_factory=lambda: {"training": 0, "growth": 0})
    seconds: dict[str, float] = field(default_factory=lambda: {"training": 0.0, "growth": 0.0})
    _known: dict[Hashable, int] = field(default_factory=dict)

    @property
    def spent(self) -> int:
        """FLOPs in all."""
        return sum(self.flops.values())

    def charge(self, kind: str, structure: Hashable, run: Callable[[], _T]) -> _T:
        """Run, and charge it. FLOPs are counted once for each ``structure``; None: each time."""
        began = time.process_time()
        if structure in self._known:
            result, flops = run(), self._known[structure]
        else:
            with flop_counter() as counter:
                result = run()
            flops = int(counter.get_total_flops())
            if structure is not None:
                self._known[structure] = flops
        self.flops[kind] += flops
        self.seconds[kind] += time.process_time() - began
        return result


@dataclass
class Record:
    """What a run came to.

    Attributes:
        arm, random_seed: which run it is.
        blocks, parameters: in the end.
        steps: training steps.
        flops, seconds: see `Ledger`.
        losses: of each training step, nats.
        curve: (FLOPs, held-out loss) during the run.
        test_loss: in the end, on text that nothing was decided by.
        history: what `autogrow` did: step, what, slot, blueprint, parameters, contribution, reason.
        candidates: how many trained beside the host until the first change.
        isolation: how often the host's gradients were compared with and without the seeds, and how many
            differed.
        host: the table of the host in the end, as ``print(host)`` shows it.
        sample: text that the grown model writes.
    """

    arm: str
    random_seed: int
    blocks: int = 0
    parameters: int = 0
    steps: int = 0
    flops: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    test_loss: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    candidates: int = 0
    isolation: tuple[int, int] = (0, 0)
    host: str = ""
    sample: str = ""

    @property
    def first_change(self) -> int:
        """After how many steps the host was changed for the first time; all of them where it was not."""
        changes = ("blending", "beginning anew", "deepening", "widened")
        return next((entry["step"] for entry in self.history if entry["what"] in changes), self.steps)


def run(arm: str, random_seed: int, settings: RunLength, folder: Path | None = None) -> Record:
    """Train one arm.

    Args:
        arm: one of `ARMS`.
        random_seed: of the weights and of the order of the batches.
        settings: how long.
        folder: where the log of the run and the picture of its host go; None for neither.
    """
    torch.set_num_threads(1)  # the network is too small for two
    data, ledger, record = _text.load(), Ledger(), Record(arm, random_seed)
    torch.manual_seed(random_seed)
    host = fxgraft.trace(GPT(FIXED.get(arm, 1)), (data.batch(random_seed, 0)[0],))
    optimizer = torch.optim.AdamW(host.parameters(), RATE, betas=(0.9, 0.95))

    def rate(step: int) -> float:
        """Warm-up, constant, decay to zero over the last FLOPs."""
        left = 1 - ledger.spent / settings.flops
        return min(1.0, (step + 1) / WARM_UP) * min(1.0, max(0.0, left / DECAY))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    sinks = [JsonLines(folder / "events.jsonl")] if folder is not None else []

    def count(event: Event) -> None:
        if event.kind == "explored" and not record.candidates:
            record.candidates = sum(row["status"] == "measured" for row in event.data["rows"])

    trainer = Trainer(
        host,
        optimizer,
        criterion,
        schedulers=[scheduler],
        sinks=[*sinks, count],
        metrics_every=10 if sinks else 0,
    )
    growth = _grow(trainer, arm, settings, data, ledger) if arm in GROWN else None
    while ledger.spent < settings.flops:
        _step(trainer, data.batch(random_seed, trainer.progress.step), ledger)
        if ledger.spent >= len(record.curve) * settings.flops / settings.points:
            held_out = data.batches("held_out", settings.held_out)  # for the plot: not charged
            record.curve.append((ledger.spent, evaluate(host, held_out, criterion)))
    _finish(record, trainer, ledger, growth, data.batches("test", settings.test))
    for sink in sinks:
        sink.close()
    if folder is not None and shutil.which("dot"):
        host.show().save(folder / "host.svg")
    return record


def _grow(trainer: Trainer, arm: str, settings: RunLength, data: _text.Text, ledger: Ledger) -> AutoGrowth:
    host = trainer.manager.host

    def held_out_losses() -> list[float]:
        return [evaluate(host, [batch], criterion) for batch in data.batches("held_out", settings.held_out)]

    return ledger.charge(
        "growth", None, lambda: trainer.manager.autogrow(held_out_losses, **settings.growth[arm])
    )


def _step(trainer: Trainer, batch: _text.Batch, ledger: Ledger) -> None:
    manager = trainer.manager
    structure = (
        tuple((name, seed.stage) for name, seed in manager.seeds.items()),
        sum(parameter.numel() for parameter in manager.host.parameters()),
    )
    loss = ledger.charge("training", structure, lambda: trainer.update(*batch))
    ledger.charge("growth", None, lambda: trainer.follow(loss))


def _finish(record: Record, trainer: Trainer, ledger: Ledger, growth: AutoGrowth | None, test: Any) -> None:
    manager = trainer.manager
    host = manager.host
    record.blocks = len(host.stacks["blocks"].blocks) if "blocks" in host.stacks else 1
    record.parameters = sum(parameter.numel() for parameter in host.host_parameters())
    record.steps, record.losses = trainer.progress.step, trainer.losses
    record.flops, record.seconds = ledger.flops, ledger.seconds
    record.test_loss = evaluate(host, test, criterion)
    record.isolation = manager.monitor.checks, manager.monitor.violations
    record.host, record.sample = str(host), sample(host, "\n    def ", 300)
    if growth is not None:
        record.history = growth.history
