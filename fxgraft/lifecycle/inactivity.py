"""Why a seed does not run, or is not trained: the cause, reported once, and what to do.

A seed all of whose calls fell back is reported at the first step; one that no call reached, or that nothing
trains, after `PATIENCE` steps, as a loop may begin with steps of another kind.
"""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from torch import nn

from fxgraft.capture.fallback import (
    FallbackReport,
    Mismatch,
    mismatch_of,
    report_fallbacks_at_most,
    take_first_call,
)
from fxgraft.capture.region import Region
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.optimizers.gradients import SeedGradients
from fxgraft.optimizers.progress import PATIENCE, SeedProgress
from fxgraft.seeds.seed import Seed, amend
from fxgraft.seeds.stage import Stage
from fxgraft.util.text import pluralize
from fxgraft_passes import _torch as _torch_of_passes


class InactiveSeed(NamedTuple):
    """A seed that does not run, or is not trained, and why."""

    seed: Seed
    reason: str


@dataclass
class _Start:
    """What was there when a seed went live, or was loaded.

    Attributes:
        region: whose calls run the seed.
        fallbacks: how many calls of it had fallen back.
        weight: a trainable one of the host's.
        version: how often it had been written to.
        counts: the seed's steps, trained steps and runs.
        arrived: whether gradients have arrived at the seed's weights since.
    """

    region: Region
    fallbacks: int
    weight: nn.Parameter | None
    version: int
    counts: tuple[int, int, int]
    arrived: bool = False


class InactivityWatch:
    """Checks after each training step whether the live seeds run and are trained, until they are.

    Args:
        host: the host of the seeds.
        progress: knows which seeds have trainable weights.
        gradients: knows which of these have received gradients.
        trained_by: a description of the optimizer of the seeds, for messages.
    """

    def __init__(self, host: Host, progress: SeedProgress, gradients: SeedGradients, trained_by: str):
        self._host, self._progress, self._gradients = host, progress, gradients
        self._trained_by = trained_by
        self._waiting: weakref.WeakKeyDictionary[Seed, _Start] = weakref.WeakKeyDictionary()
        self._reported: weakref.WeakSet[Seed] = weakref.WeakSet()

    def begin(self, seed: Seed) -> None:
        """A seed is live: it has not run yet."""
        region = self._region(seed)
        # Not through all of a large host, whose first weights may be frozen.
        weight = next((p for p in islice(self._host.host_parameters(), 64) if p.requires_grad), None)
        version = 0 if weight is None else _torch_of_passes.version(weight)
        counts = seed.steps, seed.trained_steps, seed.runs
        self._waiting[seed] = _Start(region, region.fallbacks, weight, version, counts)
        self._reported.discard(seed)

    @property
    def looks(self) -> bool:
        """Whether there is a seed to look at."""
        return bool(self._waiting)

    def look(self, seed: Seed) -> InactiveSeed | None:
        """After a training step: whether there is something to say of ``seed``. Says it once."""
        start = self._waiting.get(seed)
        if start is None:
            return None
        steps, trained, runs = start.counts
        age = seed.steps - steps
        start.arrived = start.arrived or seed.name in self._gradients.learned
        if not start.arrived and seed.runs == runs:
            return self._not_running(seed, start, age)
        if seed.did_not_run is not None:
            amend(seed, did_not_run=None)
        if seed.trained_steps > trained or age > PATIENCE:
            del self._waiting[seed]
        elif age == PATIENCE and (reason := self._not_trained(seed, start, pluralize(age, "step"))):
            return self._report_once(seed, reason)
        return None

    def _not_running(self, seed: Seed, start: _Start, age: int) -> InactiveSeed | None:
        if (region := self._region(seed)) is not start.region:  # it is merged into another one, or no longer
            start.region, start.fallbacks = region, region.fallbacks
        if take_first_call(region.module):
            start.fallbacks = region.fallbacks
        calls = region.fallbacks - start.fallbacks
        if seed.did_not_run is None:
            if calls:
                amend(seed, did_not_run=self._fell_back(region, calls))
            elif (why := self._elsewhere(region, start)) or age >= PATIENCE:
                amend(seed, did_not_run=why or self._not_called(region))
        if seed.did_not_run is None or (not calls and age < PATIENCE):
            return None
        return self._report_once(
            seed, f"it did not run{'' if calls else f' in {age} steps'}: {seed.did_not_run}"
        )

    def _report_once(self, seed: Seed, reason: str) -> InactiveSeed | None:
        if seed in self._reported:
            return None
        self._reported.add(seed)
        return InactiveSeed(seed, reason)

    def _not_trained(self, seed: Seed, start: _Start, steps: str) -> str | None:
        """Why a seed that runs is not trained, the first cause first; None where it is not to be."""
        if seed.stage is not Stage.TRAINING or not self._progress.has_weights(seed):
            return None
        inside = " inside manager.shadow()" * (seed.spec.objective == "shadow")
        if seed.name in self._gradients.ever_dropped:
            return (
                f"its gradients were not finite, and were dropped, in {steps}. Expected a learning rate with "
                f"which it does not diverge; germinate(..., hyper={{'lr': ...}}) gives it one of its own"
            )
        if start.arrived:
            return (
                f"its weights have not moved in {steps}, though gradients arrive at them. Expected step() of "
                f"{self._trained_by}, with a learning rate above 0"
            )
        if not seed.training_runs:
            return (
                f"it ran in {pluralize(seed.runs, 'call')} in {steps}, all without gradients (torch.no_grad)."
                f" Expected a training step to call the host with gradients on"
            )
        return (
            f"no gradient has arrived at its weights in {steps}, though it ran. Expected backward(){inside} "
            f"of a loss that depends on the value at its slot, then step() of {self._trained_by}"
        )

    def cause(self, seed: Seed, fallbacks: int) -> str:
        """Why no call ran ``seed`` while its region fell back that often, and what to do."""
        region = self._region(seed)
        return self._fell_back(region, fallbacks) if fallbacks else self._not_called(region)

    def fallbacks(self, seed: Seed) -> int:
        """How many calls of the region that runs ``seed`` have fallen back."""
        return self._region(seed).fallbacks

    def _region(self, seed: Seed) -> Region:
        structure = self._host.structure
        placement = next(p for p in structure.placements if p.seed == seed.name)
        return self._host.regions[structure.runs_in(placement)]

    def _fell_back(self, region: Region, calls: int) -> str:
        if mismatch_of(region.module) is None:
            self._find_out(region)
        mismatch = mismatch_of(region.module)
        which = (
            f"all {calls} calls of {_named(region)} were"
            if calls > 1
            else f"the call of {_named(region)} was"
        )
        why, remedy = (
            "",
            "that is such a call, or call the host as that example did; host.explain() has all guards",
        )
        if mismatch is not None and mismatch.expected:
            why = f" there: {mismatch}"
            remedy = f"that is such a call{self._example(mismatch)}, or call the host as that example did"
        return (
            f"{which} of another form than in the example call of fxgraft.trace{why}. "
            f"Trace with an example {remedy}"
        )

    def _example(self, mismatch: Mismatch) -> str:
        """The argument of the traced model that makes such a call, where there is one; in brackets."""
        taken = inspect.signature(type(engine.trees(self._host)[0]).forward).parameters
        what, got = mismatch.what, mismatch.got
        if "use_cache" in taken and re.search("cache|past", what):
            # In transformers that decides about the caches that blocks are given.
            what, got = "use_cache", got if what == "use_cache" else str(got != "None")
        return f" (example_kwargs={{{what!r}: {got}}})" if what in taken else ""

    def _find_out(self, region: Region) -> None:
        """Repeat a call in eager mode: compiled code does not say which condition was not met."""
        if self._host.compiled is None:
            return
        try:
            with report_fallbacks_at_most(FallbackReport.COUNT):
                engine.repeat_eagerly(self._host, region.name)
        except Exception:  # the inputs are generated: what fails there says nothing
            return

    def _elsewhere(self, region: Region, start: _Start | None = None) -> str:
        """That training goes on without the region; empty where there is no sign of it."""
        if _found(engine.trees(self._host)[0], region.name) is not region.module:
            return (
                f"{_named(region)} was replaced by another module after tracing, and is no part of the host "
                f"now. Expected modules to be replaced before the host is traced"
            )
        if (
            start is not None
            and start.weight is not None
            and _torch_of_passes.version(start.weight) != start.version
        ):
            return (
                f"no call reached {_named(region)} of the host, though the host's weights are trained. "
                f"Expected the training step to call the host, not the model it was traced from"
            )
        return ""

    def _not_called(self, region: Region) -> str:
        called = "calls of the host (not of the model it was traced from)"
        return self._elsewhere(region) or f"no call reached {_named(region)}. Expected {called}"


def _found(root: nn.Module, name: str) -> nn.Module | None:
    try:
        return root.get_submodule(name)
    except AttributeError:
        return None


def _named(region: Region) -> str:
    kind = type(region.module).__name__
    return f"{region.name!r} ({kind})" if region.name else f"the {kind}"


def together(silent: Sequence[InactiveSeed]) -> dict[str, list[Seed]]:
    """Reason -> the seeds that it holds for: several in one module have the same."""
    found: dict[str, list[Seed]] = {}
    for seed, reason in silent:
        found.setdefault(reason, []).append(seed)
    return found
