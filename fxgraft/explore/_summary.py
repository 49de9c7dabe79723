"""A growth as text: where it grew, what that gave, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fxgraft.explore._growth_state import GrowthState
from fxgraft.explore._rounds import STAYED
from fxgraft.explore.growth_settings import Budget
from fxgraft.util.tables import text_table
from fxgraft.util.text import pluralize

COLUMNS = ("step", "what", "slot", "blueprint", "parameters", "contribution", "reason")


def text_of(
    memory: GrowthState, budget: Budget, step: int, sizes: Mapping[str, float], cost: Mapping[str, Any]
) -> str:
    """The lines of ``print(growth)``.

    Args:
        memory: what the growth remembers.
        budget: its limits.
        step: of the training.
        sizes: what the host has now, as factors of what it had: of ``parameters``, ``flops``, ``memory``.
        cost: see `AutoGrowth.cost`.
    """
    kept = [entry for entry in memory.history if entry["what"] in STAYED]
    lines = [
        f"autogrow: {memory.phase} at step {step}; {len(kept)} kept; {_size(budget, sizes)}",
        f"gained: {_gain(memory, kept)}",
        f"cost: {_cost(cost)}",
    ]
    if memory.history:
        lines.append(text_table(COLUMNS, [[entry[name] for name in COLUMNS] for entry in memory.history]))
    return "\n".join(lines)


def _size(budget: Budget, sizes: Mapping[str, float]) -> str:
    said = {
        "parameters": "times the parameters",
        "flops": "times the FLOPs of a forward pass",
        "memory": "times the memory",
    }
    parts = []
    for name, factor in sizes.items():
        limit = getattr(budget, name)
        parts.append(f"{factor:.2f} {said[name]}" + ("" if limit is None else f", of {limit:g}"))
    return "; ".join(parts)


def _gain(memory: GrowthState, kept: Sequence[Mapping[str, Any]]) -> str:
    """The losses before and after, and what the parts contributed when they were judged."""
    if not kept or memory.first is None or memory.last is None:
        return "nothing was kept"
    together = sum(entry["contribution"] or 0.0 for entry in kept)
    return (
        f"the loss was {memory.first:.4g} before it grew, and {memory.last:.4g} after the last change; the "
        f"contributions add up to {together:.4g}"
    )


def _cost(cost: Mapping[str, Any]) -> str:
    evaluated = "unknown" if cost["evaluated"] is None else large(cost["evaluated"])
    parts = [
        f"{large(cost['explored'])} FLOPs to explore",
        f"{large(cost['tried'])} to try candidates",
        f"{evaluated} for {pluralize(cost['evaluations'], 'evaluation')}",
    ]
    text = ", ".join(parts)
    if cost["training_steps"] is not None:
        least = "" if cost["complete"] else "at least "
        steps = round(cost["training_steps"])
        text += f": {least}as much as {steps:,} training step{'' if steps == 1 else 's'} before it grew"
    return f"{text}; {cost['seconds']:.2f} s"


def large(count: int) -> str:
    """A number with three digits and a prefix: ``1.23 M``."""
    if count < 1000:
        return str(count)
    rounded = round(float(f"{count:.3g}"))
    power = min((len(str(rounded)) - 1) // 3, 6)
    return f"{rounded / 1000**power:g} {' kMGTPE'[power]}"
