"""`SeedManager.deepen`: new blocks in a stack, planned as one act."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from fxgraft import schedules
from fxgraft.host.host import Host
from fxgraft.host.insertions import path_of
from fxgraft.host.stacks import Stack, is_inserted
from fxgraft.lifecycle import order
from fxgraft.lifecycle.act import Act
from fxgraft.lifecycle.lifecycle import Lifecycle
from fxgraft.manager._saver import ManagerState
from fxgraft.manager._together import Acts
from fxgraft.manager.reporter import Reporter
from fxgraft.optimizers.group_index import shared_groups
from fxgraft.resizing import new_blocks
from fxgraft.resizing.arguments import places
from fxgraft.resizing.block_copies import counterparts
from fxgraft.resizing.dropped_outputs import warn_of_dropped_outputs
from fxgraft.resizing.new_blocks import Origin
from fxgraft.schedules import Ramp
from fxgraft.seeds import streams
from fxgraft.seeds.seed import Seed, amend
from fxgraft.seeds.stage import after
from fxgraft.util import validate
from fxgraft_passes import GraftSpec
from fxgraft_passes.graft import Call

STATES = ("fresh", "copy")


@dataclass(frozen=True)
class BlocksRequest:
    """What is asked for of new blocks, checked."""

    init: str
    blend: int
    isolated: bool
    optimizer_state: str

    def __post_init__(self) -> None:
        validate.one_of("init", self.init, new_blocks.INITS)
        validate.integer("blend", self.blend)
        validate.boolean("isolated", self.isolated)
        validate.one_of("optimizer_state", self.optimizer_state, STATES)


class Deepening:
    """Inserts blocks for a manager."""

    def __init__(
        self,
        host: Host,
        lifecycle: Lifecycle,
        acts: Acts,
        reporter: Reporter,
        memory: ManagerState,
        name: Callable[[str | None, Any, str], str],
        report_germination: Callable[[Seed, float, Act], None],
    ):
        self._host, self._lifecycle, self._acts = host, lifecycle, acts
        self._reporter, self._memory = reporter, memory
        self._name, self._report_germination = name, report_germination

    def deepen(
        self,
        name: Any,
        count: int,
        at: Any,
        like: Any,
        request: BlocksRequest,
        called: str | None,
        enabled: bool,
    ) -> list[Seed]:
        """Plan the new blocks in the act that is open; see `SeedManager.deepen`."""
        stack = new_blocks.stack_named(self._host, name)
        found = places(len(stack.blocks), count, at, like)
        seeds: list[Seed] = []
        spots: dict[tuple[int, bool], str] = {}  # the last one that was put there
        tried: set[tuple[str, str, Call]] = set()
        number = self._number(stack)
        for i, place in enumerate(found):
            began = time.monotonic()
            origin = new_blocks.origin(self._host, stack, stack.blocks[place.index], place.before)
            given = called if called is None or len(found) == 1 else f"{called}_{i}"
            seed = self._seed(origin, stack.blocks[place.like], request, given, number)
            number = None if number is None else number + 1
            if not enabled:
                self._lifecycle.insert_seed(seed)
                self._reporter.operation("deepen", seed, disabled=True)
            else:
                spot = place.index, place.before
                follower = self._follower(origin, place.before, spots.get(spot))
                source = stack.blocks[place.like]
                kind = source, origin.root, origin.call
                self._plan(seed, origin, source, request, follower, began, tries=kind not in tried)
                tried.add(kind)
                spots[spot] = seed.name
            seeds.append(seed)
        return seeds

    def _seed(
        self, origin: Origin, like: str, request: BlocksRequest, called: str | None, number: int | None
    ) -> Seed:
        slot = origin.slot
        spec = GraftSpec("convex", isolated=request.isolated, copy=slot.copy, call=origin.call)
        configs = {name: seed.config for name, seed in self._lifecycle.seeds.items()}
        original = new_blocks.original_of(like, configs)
        config = {
            "stack": origin.stack.path,
            "like": like,
            "original": original,
            "init": request.init,
            "number": number,
        }
        kind = origin.stack.cls.__name__
        return Seed(self._name(called, kind, origin.root), slot.name, kind, spec, config=config)

    def _plan(
        self,
        seed: Seed,
        origin: Origin,
        like: str,
        request: BlocksRequest,
        follower: str | None,
        began: float,
        *,
        tries: bool,
    ) -> None:
        """Plan one block. If ``tries``, it is run; else it is a copy of one that was, for the same place."""
        act, lifecycle = self._acts.open, self._lifecycle
        assert act is not None
        old = new_blocks.module_of(self._host, like)
        groups = partial(_group_like, dict(old.named_parameters()), lifecycle.registry.optimizers)
        lifecycle.registry.request(seed, None, None, groups if lifecycle.registry.trains else None)
        amend(seed, stage=after(seed.stage, "germinate", seed.name))
        key = streams.key_of(self._memory.run_seed, seed.name)
        config = seed.config
        module = new_blocks.build(
            self._host, origin, like, config["original"], request.init, key, config["number"]
        )
        lifecycle.admit(seed, module)
        new_blocks.refuse_not_finite(origin, module)
        if tries:
            self._reporter.warn_if_untrained(like, old, lifecycle.registry.optimizers)
            new_blocks.refuse_set_from_outside(self._host, origin, like)
            warn_of_dropped_outputs(self._host, origin.stack.path, config["original"], origin.call)
            new_blocks.try_out(self._host, origin, like, module, request.init, request.isolated)
        addition = lifecycle.plan_addition(seed, origin.slot, module, follower)
        if request.optimizer_state == "copy":
            addition = replace(addition, like={new: known for _, new, known in counterparts(module, old)})
        self._reporter.warn_if_frozen(f"seed {seed.name!r}", like, module.parameters())
        act.germinate(addition, partial(self._report_germination, seed, began, act))
        lifecycle.insert_seed(seed, addition.before)
        self._set_out(act, seed, request)

    def _set_out(self, act: Act, seed: Seed, request: BlocksRequest) -> None:
        """What becomes of a new block in the act: permanent at once, or blended, or trained in isolation."""
        if request.isolated and not request.blend:
            return
        schedule = "cosine" if request.blend else "linear"
        ramp = Ramp((0.0,), 1.0, request.blend, schedules.resolve(schedule))
        act.blend(seed, ramp, partial(self._reporter.blend, seed, 1.0, request.blend, schedule))
        if not request.blend:
            act.fossilize(seed)

    def _follower(self, origin: Origin, at_start: bool, behind: str | None) -> str | None:
        """The seed that a new block is put before, among those at its slot; None: behind all.

        Args:
            origin: where the block is wired.
            at_start: whether it stands in front of the first block.
            behind: the new one that was put at that place before.
        """
        seeds = self._acts.staying()
        if behind is None and is_inserted(origin.front):
            behind = next(name for name in seeds if path_of(name) == origin.front)
            if at_start:
                return behind
        if behind is not None:
            return order.place(self._host, seeds, origin.slot, after=behind)
        there = [n for n, s in seeds.items() if s.slot == origin.slot.name and s.spec.call is not None]
        return there[0] if there else None

    def _number(self, stack: Stack) -> int | None:
        """A number that no block of the stack has, nor one that is planned."""
        number = new_blocks.fresh_number(self._host, stack)
        if number is None:
            return None
        planned: list[int | None] = [
            s.config["number"] for s in self._acts.staying().values() if _is_of(s, stack)
        ]
        return max([number, *(n + 1 for n in planned if n is not None)])


def _is_of(seed: Seed, stack: Stack) -> bool:
    return seed.spec.call is not None and seed.config.get("stack") == stack.path


def _group_like(
    old: Mapping[str, nn.Parameter], optimizers: Sequence[Any], name: str, parameter: nn.Parameter
) -> Any:
    """The group of the parameter that this one is a copy of."""
    like = old.get(name)
    for optimizer in optimizers:
        for group in shared_groups(optimizer):
            if any(known is like for known in group["params"]):
                return group
    return None
