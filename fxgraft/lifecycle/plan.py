"""What a germination would change, found without changing anything.

The seed is built on the ``meta`` device: it takes no memory, and the host may be there too.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from fxgraft.blueprints import Cost
from fxgraft.errors import BlueprintError
from fxgraft.host.host import Host
from fxgraft.lifecycle import building
from fxgraft.lifecycle.building import BlueprintLike, Surroundings
from fxgraft.optimizers.places import Destination
from fxgraft.slots.structure import Placement, Structure, kind_of
from fxgraft.util.flops import count_flops
from fxgraft.util.tables import text_table
from fxgraft_passes import GraftSpec, Phase, Slot, devices
from fxgraft_passes.graft import SEEDS, check_name
from fxgraft_passes.observe import observation_of


@dataclass(frozen=True)
class GerminationPlan:
    """What a germination would change; ``str`` gives a page.

    Attributes:
        name: the seed's.
        slot: where it goes.
        source: the earlier slot that it reads, or None.
        blueprint: what it is made from.
        mode, objective, isolated: how it is wired.
        reads: the shape of what it reads, in the example call.
        shape, dtype: of the value at the slot, in the example call; the dtype as the host is now.
        parameters: name of each new parameter, below ``_seeds.<name>.module`` -> its shape.
        parameter_bytes: of all of them.
        forward_flops, backward_flops: of the seed in a call of the example's size, two for each multiply-add;
            matrix products, convolutions and attention only, as torch's ``FlopCounterMode`` counts.
        groups: name of each new parameter -> the optimizer and the group that it would go to; empty without
            an optimizer.
        order: the names of the seeds at the slot, the planned one among them, as they would compose.
        diffs: region -> unified diff of its generated code, from now to with the seed in isolation.
    """

    name: str
    slot: str
    source: str | None
    blueprint: str
    mode: str
    objective: str
    isolated: bool
    reads: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    parameters: Mapping[str, tuple[int, ...]]
    parameter_bytes: int
    forward_flops: int
    backward_flops: int
    groups: Mapping[str, Destination]
    order: tuple[str, ...]
    diffs: Mapping[str, str]

    @property
    def parameter_count(self) -> int:
        """How many numbers the seed learns."""
        return sum(map(math.prod, self.parameters.values()))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries, lists, strings and numbers (for JSON)."""
        return {
            **asdict(self),
            "dtype": str(self.dtype).removeprefix("torch."),
            "parameter_count": self.parameter_count,
        }

    def _parameter_table(self) -> str:
        rows = [
            (f"{SEEDS}.{self.name}.module.{name}", shape, self.groups.get(name))
            for name, shape in self.parameters.items()
        ]
        if not self.groups:  # there is no optimizer
            return text_table(("parameter", "shape"), [row[:2] for row in rows])
        return text_table(("parameter", "shape", "goes to"), rows)

    def __str__(self) -> str:
        wiring = f"{self.mode}, {self.objective}, {'isolated' if self.isolated else 'not isolated'}"
        source = f", reading {self.source!r} {self.reads}" if self.source else ""
        dtype = str(self.dtype).removeprefix("torch.")
        lines = [
            f"plan: {self.blueprint} as seed {self.name!r} at slot {self.slot!r} ({wiring}){source}",
            f"  value       {dtype} {self.shape}",
            f"  parameters  {self.parameter_count:,} in {len(self.parameters)} tensors, "
            f"{self.parameter_bytes / 2**20:.2f} MiB",
            *([self._parameter_table()] if self.parameters else []),
            f"  FLOPs       {self.forward_flops:,} forward, {self.backward_flops:,} backward, in a call of "
            f"the example's size",
        ]
        if len(self.order) > 1:
            lines.append(f"  order       {', '.join(self.order)}")
        for region, diff in self.diffs.items():
            lines += [f"  code of region {region!r}", *(f"    {line}" for line in diff.splitlines())]
        return "\n".join(lines)


def plan(
    host: Host,
    slot: Slot,
    spec: GraftSpec,
    blueprint: BlueprintLike,
    name: str,
    config: Mapping[str, Any],
    behind: Container[str] = (),
    preview: Callable[[nn.Module], Mapping[str, Destination]] = lambda module: {},
) -> GerminationPlan:
    """Plan the germination of ``blueprint`` at ``slot``; see `SeedManager.plan`.

    ``behind`` are the names of the seeds that it would stand before. ``preview`` tells where each trainable
    parameter of a module would go.
    """
    check_name(name)
    around = building.surroundings(host, slot, without_data=True)
    module = _built(blueprint, slot, spec.mode, around, config)
    forward, backward = _flops(module, slot, around, spec.isolated)
    placement = Placement(name, slot, spec, kind_of(module))
    structure = host.structure.with_placement(placement, behind)
    return GerminationPlan(
        name=name,
        slot=slot.name,
        source=slot.source.name if slot.source is not None else None,
        blueprint=building.label(blueprint),
        mode=spec.mode,
        objective=spec.objective,
        isolated=spec.isolated,
        reads=tuple(slot.input.shape),
        shape=tuple(slot.shape),
        dtype=around.dtype,
        parameters={n: tuple(p.shape) for n, p in module.named_parameters() if p.requires_grad},
        parameter_bytes=sum(p.nbytes for p in module.parameters() if p.requires_grad),
        forward_flops=forward,
        backward_flops=backward,
        groups=preview(module),
        order=tuple(p.seed for p in structure.placements if p.values & placement.values),
        diffs=_diffs(host, structure),
    )


def price(
    host: Host,
    slot: Slot,
    spec: GraftSpec,
    blueprint: str,
    config: Mapping[str, Any],
    shapes: Collection[torch.Size] = (),
) -> Cost:
    """What a seed would cost: as `plan`, without the code that it would change.

    The seed has to take ``shapes``, too: those that the value has beside that of the example.

    Raises:
        SlotError, BlueprintError: as `SeedManager.germinate` would; or the seed does not take such a shape.
    """
    around = building.surroundings(host, slot, without_data=True)
    module = _built(blueprint, slot, spec.mode, around, config)
    same_rank = all(len(shape) == len(slot.shape) for shape in shapes)
    if shapes and not (same_rank and _takes(module, around, _all_at_once(slot.shape, shapes))):
        _refuse_one_size_only(module, slot, blueprint, around, shapes)
    forward, _ = _flops(module, slot, around, spec.isolated)
    return Cost(sum(p.numel() for p in module.parameters() if p.requires_grad), forward)


def _built(
    blueprint: BlueprintLike, slot: Slot, mode: str, around: Surroundings, config: Mapping[str, Any]
) -> nn.Module:
    """The seed without data. What a factory computes from data is built for real, and dropped."""
    empty = around.without_data()
    if isinstance(blueprint, nn.Module):
        return building.build(_without_data(blueprint), slot, mode, empty, 0, config, device=empty.device)
    try:
        return building.build(blueprint, slot, mode, empty, 0, config, device=empty.device)
    except BlueprintError:
        if devices.is_meta(around.device):
            raise
        return building.build(blueprint, slot, mode, empty, 0, config)


def _without_data(module: nn.Module) -> nn.Module:
    """A copy of ``module`` on the meta device; its weights are not copied on the way."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(module, memo)


def _takes(module: nn.Module, around: Surroundings, shape: torch.Size) -> bool:
    """Whether a module makes a value of ``shape`` from one."""
    try:
        with torch.no_grad():
            out = module(torch.empty(shape, dtype=around.reads.dtype, device="meta"))
    except Exception:  # of a user's module: whatever it raises, it does not take that shape
        return False
    return isinstance(out, torch.Tensor) and out.shape == shape


def _all_at_once(shape: torch.Size, others: Collection[torch.Size]) -> torch.Size:
    """A shape that differs from ``shape`` wherever one of the others does: one run instead of several."""
    sizes = (pair for other in others for pair in enumerate(other))
    changed = {axis: size for axis, size in sizes if size != shape[axis]}
    return torch.Size(changed.get(axis, size) for axis, size in enumerate(shape))


def _refuse_one_size_only(
    module: nn.Module, slot: Slot, blueprint: str, around: Surroundings, shapes: Collection[torch.Size]
) -> None:
    """Raise `BlueprintError` for a module that does not take one of the shapes."""
    for shape in shapes:
        if not _takes(module, around, shape):
            raise BlueprintError(
                f"{blueprint} at slot {slot.name!r}: it is made for {tuple(slot.shape)}, as in the example, "
                f"and does not run with {tuple(shape)}, as with another input. Where all inputs have one "
                f"size, name it: SEED(slot={slot.name!r}, blueprint={blueprint!r})"
            )


def _flops(module: nn.Module, slot: Slot, around: Surroundings, isolated: bool) -> tuple[int, int]:
    """Of a forward and a backward pass of the host, which may run the slot several times.

    The input has a gradient where the seed is to affect the host.
    """
    seen = observation_of(slot.node)
    calls = seen.calls if seen is not None else 1
    read = torch.empty(slot.input.shape, dtype=around.reads.dtype, device="meta", requires_grad=not isolated)
    outputs: list[Any] = []
    with torch.enable_grad():
        forward = count_flops(lambda: outputs.append(module(read)))
        (out,) = outputs
        backward = count_flops(out.sum().backward) if out.requires_grad else 0
    return calls * forward, calls * backward


def _diffs(host: Host, structure: Structure) -> dict[str, str]:
    """Region -> how its code would change."""
    before = host.structure
    changed = before.by_region.keys() | structure.by_region.keys()
    codes = {name: (_code(host, before, name), _code(host, structure, name)) for name in sorted(changed)}
    return {
        name: "\n".join(
            difflib.unified_diff(ours.splitlines(), theirs.splitlines(), "now", "with the seed", lineterm="")
        )
        for name, (ours, theirs) in codes.items()
        if ours != theirs
    }


def _code(host: Host, structure: Structure, region: str) -> str:
    parts = [host.regions[name] for name in structure.merged.get(region, ())]
    return host.regions[region].forward_for(structure.wirings(region), Phase.ISOLATED, parts).source
