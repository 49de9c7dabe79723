"""A host in a few lines: the table of ``print(host)``, and what the log of a run begins with."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxgraft.host import engine
from fxgraft.util.tables import text_table
from fxgraft.util.text import pluralize

if TYPE_CHECKING:
    from fxgraft.host.host import Host
    from fxgraft.seeds.seed import Seed

ROOT = "(root)"


@dataclass(frozen=True)
class _Line:
    name: str
    kind: str
    parameters: int
    slots: int
    seeds: tuple[str, ...]


def table_of(host: Host) -> str:
    """The class, how many parameters, slots and seeds there are, and where."""
    of_seeds = sum(p.numel() for graft in host.grafts().values() for p in graft.parameters())
    model = sum(parameter.numel() for parameter in engine.trees(host)[0].parameters())
    grown = f" and {of_seeds:,} of seeds" if host.grafts() else ""
    head = (
        f"host of {type(engine.trees(host)[0]).__name__}: {model:,} parameters{grown}, "
        f"{pluralize(len(host.slots), 'slot')}, {pluralize(len(host.grafts()), 'seed')}"
    )
    rows = [_cells(list(run)) for _, run in groupby(_lines(host), key=_alike)]
    return f"{head}\n{text_table(('module', 'class', 'parameters', 'slots', 'seeds'), rows)}"


def _lines(host: Host) -> Iterator[_Line]:
    slots: dict[str, int] = {}
    for slot in host.slots.values():
        slots[slot.region] = slots.get(slot.region, 0) + 1
    seeds: dict[str, list[str]] = {}
    for placement in host.structure.placements:
        fossil = placement.spec.fossil is not None
        alpha = host.graft(placement.seed).alpha
        state = "fossil" if fossil else f"alpha {float(alpha.float().mean()):.3g}"
        source, slot = placement.slot.source, placement.slot
        where = slot.name if source is None else f"{source.name} -> {slot.name}"
        seeds.setdefault(slot.region, []).append(f"{placement.seed} at {where} ({state})")
    seen: set[nn.Module] = set()
    for name, module in engine.trees(host)[0].named_modules():
        is_traced = name in host.regions
        if (is_traced or not name) and module not in seen:
            seen.add(module)
            parameters = sum(parameter.numel() for parameter in module.parameters())
            kind = type(module).__name__ + ("" if is_traced else ", not traced")
            yield _Line(name or ROOT, kind, parameters, slots.get(name, 0), tuple(seeds.get(name, ())))


def _alike(line: _Line) -> tuple[object, ...]:
    """Neighbours with the same key stand on one line: ``blocks.0 … blocks.11``."""
    parent, _, last = line.name.rpartition(".")
    if line.seeds or not last.isdecimal():
        return (line,)
    return parent, line.kind, line.parameters, line.slots


def _cells(run: Sequence[_Line]) -> tuple[object, ...]:
    first = run[0]
    name = first.name if len(run) == 1 else f"{first.name} … {run[-1].name}"
    return name, first.kind, first.parameters, first.slots, ", ".join(first.seeds)


def summarize_run(host: Host, seeds: Iterable[Seed]) -> dict[str, Any]:
    """The data of the event ``run_began``, in JSON types."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": type(host._root).__name__,
        "parameters": sum(parameter.numel() for parameter in host.host_parameters()),
        "slots": [
            {
                "name": slot.name,
                "shape": [*map(int, slot.shape)],
                "dtype": str(slot.dtype).removeprefix("torch."),
            }
            for slot in host.slots.values()
        ],
        "seeds": [seed.to_dict() for seed in seeds],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
