"""Which runs are still missing. Later ones depend on earlier: on learning rates, and who is a finalist."""

from __future__ import annotations

import math
from dataclasses import replace

from benchmarks.worth.analysis import Arms
from benchmarks.worth.arm import Arm
from benchmarks.worth.arms import GROW, PRIMARY, SEVERAL, arms
from benchmarks.worth.protocols import LARGEST, Protocol
from benchmarks.worth.results import Records
from benchmarks.worth.training import Run


class Plan:
    """The runs of one workload in one protocol, given the records so far."""

    def __init__(self, protocol: Protocol, workload: str, records: Records):
        self.protocol, self.workload, self.records = protocol, workload, records
        self.scale, self.arms = protocol.scales[workload], arms(protocol, workload)

    def missing(self) -> list[Run]:
        """Runs that can be made now, in the order in which they are wanted; empty when all is there."""
        return [run for run in self.known() if run.name not in self.records]

    def known(self) -> list[Run]:
        """All runs that can be named now."""
        first, *others = self.protocol.seeds
        early = [arm for arm in self.arms.values() if arm.fixed or arm.seeds == "finalist"]
        found = [run for arm in early if arm.tuned_as == arm.name for run in self._tuning(arm.name)]
        found += [run for arm in early for run in self._final(arm, first)]
        names = self.finalists()  # what the headline needs comes first
        needed = [name for name in names if self.arms[name].fixed or name == PRIMARY]
        for some in (needed, [name for name in names if name not in needed]):
            found += [run for seed in others for name in some for run in self._final(self.arms[name], seed)]
        if self.protocol.variants != "none":
            late = [arm for arm in self.arms.values() if arm not in early]
            found += [run for arm in late if arm.tuned_as == arm.name for run in self._tuning(arm.name)]
            for seed in self.protocol.seeds:
                found += [
                    run
                    for arm in late
                    if seed == first or arm.seeds == "all"
                    for run in self._final(arm, seed)
                ]
        return found

    def waiting(self) -> list[Run]:
        """Runs that are wanted and whose learning rate is not chosen yet; a fixed size's as far as known."""
        first = self.protocol.seeds[0]
        return [
            Run(self.workload, arm.name, seed, math.nan)
            for arm in self.arms.values()
            if self.rate(arm) is None
            for seed in self.protocol.seeds
            if seed == first or self._has_all_seeds(arm)
        ]

    def _has_all_seeds(self, arm: Arm) -> bool:
        """Whether an arm is sure to get all random seeds."""
        return arm.seeds != "one"

    def rate(self, arm: Arm) -> float | None:
        """The learning rate that is given or was chosen for an arm; None while that is not known."""
        if arm.rate is not None:
            return arm.rate
        if not self.protocol.tuned:
            return self.scale.rates[0] * arm.factor
        runs = self._tuning(arm.tuned_as)
        losses = {run.rate: self._validation(run) for run in runs}
        if any(loss is None for loss in losses.values()):
            return None
        return min(losses, key=lambda rate: losses[rate]) * arm.factor

    def finalists(self) -> list[str]:
        """Names of the arms that get all random seeds; fixed sizes as soon as their first runs are there."""
        growth = [arm.name for arm in self.arms.values() if arm.seeds == "finalist"]
        return [*self._finalists_of_fixed_size(), *growth]

    def _tuning(self, name: str) -> list[Run]:
        """The runs that choose its rate, by rising rates; further ones while the best is at an edge."""
        rates = sorted(self.scale.rates) if self.protocol.tuned else []
        seed = self.protocol.tuning_seed
        runs = [Run(self.workload, name, seed, rate, tuning=True) for rate in rates]
        for _ in range(self.protocol.beyond if len(rates) > 1 else 0):
            losses = [self._validation(run) for run in runs]
            best = None if None in losses else losses.index(min(losses))
            if best not in (0, len(runs) - 1):
                break
            rate = runs[0].rate / 2 if best == 0 else runs[-1].rate * 2
            runs.insert(0 if best == 0 else len(runs), replace(runs[0], rate=rate))
        return runs

    def _validation(self, run: Run) -> float | None:
        record = self.records.get(run.name)
        return None if record is None else _number(record["ends"][-1]["validation"])

    def _final(self, arm: Arm, seed: int) -> list[Run]:
        rate = self.rate(arm)
        return [] if rate is None else [Run(self.workload, arm.name, seed, rate)]

    def _finalists_of_fixed_size(self) -> list[str]:
        sizes = [name for name, arm in self.arms.items() if arm.fixed]
        seen = Arms(self.protocol, self.workload, self.records)
        first = self.protocol.seeds[0]
        if any((name, first) not in seen.curves for name in [*sizes, PRIMARY]):
            return []
        flops = seen.curves[PRIMARY, first].at_share(1.0).flops
        at_growth = {name: seen.curves[name, first].loss_at(flops) for name in sizes}
        at_growth = {name: loss for name, loss in at_growth.items() if loss is not None}
        best = sorted(at_growth, key=lambda name: at_growth[name])[:2]
        at_end = min(sizes, key=lambda name: seen.curves[name, first].at_share(1.0).loss)
        return list(dict.fromkeys([LARGEST, *best, at_end]))


def _number(loss: float) -> float:
    """A loss that is not finite is worse than any."""
    return loss if loss == loss else float("inf")


class UnknownPlan(Plan):
    """The second experiment: growth to a size that nobody knows, and the sizes around it."""

    main = ("fixed-2", GROW, "deepen-1-2", SEVERAL)
    """These come first, with all random seeds."""

    def _has_all_seeds(self, arm: Arm) -> bool:
        return True

    def known(self) -> list[Run]:
        found = [
            run for arm in self.arms.values() if arm.tuned_as == arm.name for run in self._tuning(arm.name)
        ]
        main = [arm for arm in self.arms.values() if arm.name in self.main]
        rest = [arm for arm in self.arms.values() if arm.name not in self.main]
        for some in (main, rest):
            found += [run for seed in self.protocol.seeds for arm in some for run in self._final(arm, seed)]
        return found


class FinalistsPlan(Plan):
    """The fifth experiment: all arms on one random seed, then the best sizes and growth on the others.

    The best sizes, by validation loss, are trained with a lower learning rate as well, on all random seeds.
    """

    def _has_all_seeds(self, arm: Arm) -> bool:
        return not arm.fixed or arm.name in self.finalists()

    def known(self) -> list[Run]:
        tuned = [arm for arm in self.arms.values() if arm.tuned_as == arm.name and arm.factor == 1]
        found = [run for arm in tuned for run in self._tuning(arm.name)]
        first, *others = self.protocol.seeds
        found += [run for arm in self.arms.values() if arm.factor == 1 for run in self._final(arm, first)]
        finalists = [self.arms[name] for name in self.finalists()]
        found += [run for arm in finalists if arm.factor != 1 for run in self._final(arm, first)]
        grown = [arm for arm in self.arms.values() if not arm.fixed]
        return found + [
            run for seed in others for arm in (*finalists, *grown) for run in self._final(arm, seed)
        ]

    def finalists(self) -> list[str]:
        """The best sizes with both of their rates, and the large network; none before all sizes have run."""
        first, losses = self.protocol.seeds[0], {}
        for name, arm in self.arms.items():
            if not arm.fixed or arm.factor != 1:
                continue
            runs = self._final(arm, first)
            losses[name] = self._validation(runs[0]) if runs else None
        if None in losses.values():
            return []
        best = sorted(losses, key=lambda name: losses[name])[: self.protocol.finalists]
        return [*best, *([] if LARGEST in best else [LARGEST]), *(f"{name}-lower" for name in best)]


def plan_of(protocol: Protocol, workload: str, records: Records) -> Plan:
    """The plan of that protocol."""
    if protocol.finalists is not None:
        return FinalistsPlan(protocol, workload, records)
    kind = UnknownPlan if protocol.by_budget else Plan
    return kind(protocol, workload, records)
