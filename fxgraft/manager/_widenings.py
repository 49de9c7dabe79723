"""`SeedManager.widen` and `fuse`: growths of channels, planned in the act that is open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from types import MappingProxyType
from typing import Any

from torch.optim import Optimizer

from fxgraft.errors import ChannelError, StageError
from fxgraft.host.host import Host
from fxgraft.lifecycle.act import PlannedGrowth
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.manager._saver import ManagerState
from fxgraft.manager._together import Acts
from fxgraft.manager.reporter import Reporter
from fxgraft.resizing import PlannedFusion, Widening
from fxgraft.resizing.arguments import group_of
from fxgraft.resizing.planned_widening import PlannedWidening
from fxgraft.resizing.widening import check_state
from fxgraft.seeds import streams
from fxgraft.seeds.seed import Seed
from fxgraft.seeds.stage import Stage
from fxgraft_passes.channels.groups import ChannelGroup
from fxgraft_passes.channels.growth import check, check_request


class Widenings:
    """Plans growths of channels for a manager."""

    def __init__(
        self,
        host: Host,
        acts: Acts,
        reporter: Reporter,
        memory: ManagerState,
        optimizers: Sequence[Optimizer],
    ):
        self._host, self._acts, self._reporter = host, acts, reporter
        self._memory, self._optimizers = memory, optimizers

    def widen(self, group: Any, by: Any, init: str, optimizer_state: str) -> Widening:
        """Plan it in the act that is open; see `SeedManager.widen`."""
        act = self._acts.open
        assert act is not None
        check_state(optimizer_state)
        by = int(by) if not isinstance(by, bool) and isinstance(by, Integral) else by  # numpy's, too
        fuses = any(isinstance(growth.growing, PlannedFusion) for growth in act.growths)
        found = self._known(group, by, init, is_alone=not act.courses and not fuses)
        name = found.name if found is not None else str(getattr(group, "name", group))
        widening = Widening(name, by, None if found is None else found.size + by, init)
        planned = PlannedWidening(
            self._host,
            widening,
            optimizer_state,
            self._optimizers,
            self._key,
            lambda done: self._reporter.emit("widened", **done),
        )
        members = () if found is None else found.members
        grown = (self._host.get_submodule(m.path)._parameters.get(m.parameter) for m in members)
        self._reporter.warn_if_frozen(f"what is new in {name!r}", "its channels", grown)
        act.growths.append(PlannedGrowth(planned, planned.completed, planned.failed))
        return widening

    def fuse(self, lifecycle: Lifecycle, seeds: Sequence[Seed]) -> Mapping[str, str]:
        """Plan it in the act that is open; see `SeedManager.fuse`."""
        act = self._acts.open
        assert act is not None
        earlier = [growth.growing for growth in act.growths]
        fused = {name for each in earlier if isinstance(each, PlannedFusion) for name in each.names}
        for seed in seeds:
            if seed.name in fused:
                raise StageError(f"cannot fuse seed {seed.name!r}: it is fused already by an earlier call")
            if (stage := act.course(seed).stage) is not Stage.FOSSILIZED:
                raise StageError(
                    f"cannot fuse seed {seed.name!r}: it is {stage.name}, and no fossil. Fossilize it first"
                )
        into: dict[str, str] = {}
        planned = PlannedFusion(
            lifecycle,
            [seed.name for seed in seeds],
            self._optimizers,
            into,
            lambda name, layer, off: self._reporter.emit("fused", name, into=layer, max_abs=off),
        )
        act.growths.append(PlannedGrowth(planned, planned.completed, planned.failed))
        return MappingProxyType(into)

    def _known(self, group: Any, by: Any, init: str, is_alone: bool) -> ChannelGroup | None:
        """The group, checked; None where only earlier changes of the act could make it able to grow so."""
        try:
            found = group_of(self._host, group)
            check(found, by, init)
        except ChannelError:
            if is_alone:
                raise
            check_request(str(getattr(group, "name", group)), by, init)
            return None
        return found

    def _key(self) -> int:
        return streams.key_of(self._memory.run_seed, f"widening {len(self._host.widenings)}")
