"""How long training stands still for a germination on a compiled model.

Three ways to a compiled model with one more seed in it, in turns, each from a cold cache:

* by hand: the module is put into the model, and the next step recompiles the whole model;
* ``germinate(...)``: the call returns when both forwards of the new structure are compiled;
* ``germinate(..., wait=False)``: a helper process compiles while training goes on.

One thread trains, so that on a machine of two cores one core is free for the helper. A step that
germinates includes the call; a step that swaps includes the swap.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

import fxgraft
from benchmarks import by_hand
from benchmarks.background import prepare, seconds, train_until_idle
from benchmarks.budgets import AT_ONCE, FIRST, LIVE, LONGEST, PREPARING, Budget
from benchmarks.modes import Mode
from benchmarks.rows import Row, Spread
from benchmarks.settings import Settings
from benchmarks.timing import settle
from benchmarks.workloads import Trainer, Workload

BLUEPRINT = "low_rank"
ORDINARY = 40
"""Steps for the median of a step with nothing going on."""
LESS = ("ResNet", "GPT-2")
"""Workloads that are repeated less often: each repeat compiles them several times."""


@dataclass
class Germinations:
    """What the repeats found, in seconds."""

    recompile: list[float] = field(default_factory=list)
    call: list[float] = field(default_factory=list)
    call_first: list[float] = field(default_factory=list)
    longest: list[float] = field(default_factory=list)
    preparing: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    ordinary: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)


def rows(settings: Settings) -> Iterator[Row]:
    """Six of each workload and granularity."""
    wanted = [("MLP-12", "inductor, by region")]
    if not settings.quick:
        wanted += [
            ("MLP-12", "inductor"),
            ("ResNet", "inductor, by region"),
            ("GPT-2", "inductor, by region"),
        ]
    for workload, mode in settings.pairs(*wanted):
        repeats = 1 if workload.name in LESS else settings.repeats
        found = measure(workload, mode, repeats, settings)
        yield from tell(workload, mode, found)


def measure(workload: Workload, mode: Mode, repeats: int, settings: Settings) -> Germinations:
    """All three ways, in turns."""
    found = Germinations()
    ours = _Grown(workload, mode)
    for i in range(repeats):
        place = workload.place(i)
        settings.say(f"{workload.name}, {mode.name}: repeat {i + 1} of {repeats}")
        changed = _changed_by_hand(workload, mode.whole, place, _rank(2 * i))
        with settings.empty_cache():
            found.recompile.append(seconds(changed.step))
        with settings.empty_cache():
            ours.at_once(found, place, _rank(2 * i))
        with settings.empty_cache():
            ours.in_background(found, place, _rank(2 * i + 1))
    return found


def _rank(i: int) -> dict[str, int]:
    """Another size each time: equal seeds in equal blocks would find the code of the one before."""
    return {"rank": 4 + 2 * i}


def _changed_by_hand(workload: Workload, mode: Mode, place: str, config: dict[str, int]) -> Trainer:
    """A compiled model in training, right after a seed was put into it."""
    model = workload.model()
    trainer = Trainer(workload, model, mode.apply_by_hand(model, workload.blocks))
    for _ in range(3):
        trainer.step()
    slot = workload.host().slot(place)
    module = fxgraft.blueprints.get(BLUEPRINT).build(slot, **config).to(next(model.parameters()))
    seed = by_hand.graft(model, place, module, "blending")
    trainer.optimizer.add_param_group({"params": list(seed.parameters())})
    return trainer


class _Grown:
    """A compiled host in training."""

    def __init__(self, workload: Workload, mode: Mode):
        host = workload.host()
        self._trainer = Trainer(workload, host, mode.apply(host))
        self._manager = fxgraft.SeedManager(host, self._trainer.optimizer)
        self._trainer.after = self._manager.step
        self._trainer.step()

    def _germinate(self, place: str, config: dict[str, int], wait: bool) -> fxgraft.Seed:
        return self._manager.germinate(place, BLUEPRINT, wait=wait, **config)

    def _ordinary(self) -> float:
        settle()
        return statistics.median(seconds(self._trainer.step) for _ in range(ORDINARY))

    def at_once(self, found: Germinations, place: str, config: dict[str, int]) -> None:
        """With ``wait=True``."""
        self._ordinary()
        found.call.append(seconds(lambda: self._germinate(place, config, wait=True)))
        found.call_first.append(seconds(self._trainer.step))
        self._manager.cull_all()

    def in_background(self, found: Germinations, place: str, config: dict[str, int]) -> None:
        """With ``wait=False``."""
        found.ordinary.append(self._ordinary())
        preparation = prepare(self._trainer, lambda: [self._germinate(place, config, wait=False)])
        found.took.append(preparation.took)
        found.longest.append(preparation.longest)
        found.preparing.append(statistics.median(preparation.steps))
        found.first.append(preparation.first)
        train_until_idle(self._trainer, self._manager)
        self._manager.cull_all()


def tell(workload: Workload, mode: Mode, found: Germinations) -> Iterator[Row]:
    """The rows."""
    stall, step = "the recompile by hand", "the median step"
    median = statistics.median

    def row(what: str, ours: list[float], against: str, budget: Budget | None, unit: str = "ms") -> Row:
        theirs = found.recompile if against == stall else found.ordinary
        scale = 1e3 if unit == "ms" else 1.0
        each = Spread.of(a / b for a, b in zip(ours, theirs, strict=True))
        figures = (median(ours) * scale, median(theirs) * scale)
        where = ("germination", workload.name, mode.name)
        return Row(*where, what, against, each, "x", budget, figures, unit)

    yield row("longest step, in the background", found.longest, stall, LONGEST)
    yield row("median step while preparing", found.preparing, step, PREPARING)
    yield row("first step after the swap", found.first, step, FIRST)
    yield row("until the seed is live, in the background", found.took, stall, LIVE, "s")
    yield row("the call, at once", found.call, stall, AT_ONCE, "s")
    yield row("first step after the call", found.call_first, step, None)
