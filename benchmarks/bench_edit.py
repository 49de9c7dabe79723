"""What a germination and a cull cost in hosts of 100 to 50,000 nodes, eager; and by hand with torch.fx.

The host is modular: blocks of six nodes, ten to a stage, and stages of stages. By hand one graph holds
the whole model, as `torch.fx.symbolic_trace` gives it, and each edit generates all of its code anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import fx, nn
from torch.optim import AdamW

import fxgraft
from benchmarks.budgets import EDIT
from benchmarks.rows import Row, Spread
from benchmarks.settings import Settings
from benchmarks.workloads import MlpBlock

SIZES = (100, 1_000, 10_000, 50_000)
SMALL, LARGE = 100, 10_000
WIDTH = 8
NODES_OF_A_BLOCK = 6
WARM_UP = 3


def rows(settings: Settings) -> Iterator[Row]:
    """One of each size and edit; the budget is on the germination in 10,000 nodes."""
    if settings.workloads and "modular" not in settings.workloads:
        return
    hosts = {}
    for size in SIZES[:2] if settings.quick else SIZES:
        settings.say(f"a host of {size:,} nodes")
        hosts[size] = Editable(size)
    yield from compare(hosts, settings)


class Editable:
    """A host of about ``size`` nodes, and the same model as one graph."""

    def __init__(self, size: int):
        model, x = modular(size), torch.randn(2, WIDTH)
        self.size = size
        self.graph = fx.symbolic_trace(modular(size))
        self.host = fxgraft.trace(model, (x,))
        self.manager = fxgraft.SeedManager(self.host, AdamW(self.host.parameters(), 1e-3))
        self.places = [name for name in self.host.slots if name.endswith("relu")]
        self._turn = 0

    def next_place(self) -> str:
        """Another block each time, all over the host."""
        self._turn += 1
        return self.places[self._turn * 7919 % len(self.places)]


def compare(hosts: dict[int, Editable], settings: Settings) -> Iterator[Row]:
    """All sizes in turns."""
    found: dict[tuple[str, int], list[float]] = {}
    for turn in range(WARM_UP + settings.repeats):
        for size, editable in hosts.items():
            for what, seconds in _edits(editable, settings.meter.once):
                if turn >= WARM_UP:
                    found.setdefault((what, size), []).append(seconds)
    smallest = min(hosts)
    for (what, size), seconds in found.items():
        base = found[what, smallest]
        spread = Spread.of(a / b for a, b in zip(seconds, base, strict=True))
        budget = EDIT if (what, size) == ("germinate", LARGE) and smallest == SMALL else None
        figures = (Spread.of(seconds).median * 1e3, Spread.of(base).median * 1e3)
        against = f"in {smallest} nodes"
        yield Row(
            "edit", "modular", "eager", f"{what} in {size:,} nodes", against, spread, "x", budget, figures
        )


def _edits(editable: Editable, once: Callable[..., float]) -> Iterator[tuple[str, float]]:
    manager, place = editable.manager, editable.next_place()
    seconds = once(f"germinate in {editable.size:,}", lambda: manager.germinate(place, "low_rank"))
    yield "germinate", seconds
    seed = next(reversed(manager.seeds.values()))
    yield "cull", once(f"cull in {editable.size:,}", lambda: manager.cull(seed))
    graph = editable.graph
    yield "insert by hand", once(f"by hand in {editable.size:,}", lambda: insert(graph, place))
    graph.delete_submodule("seed")
    remove(graph)


def insert(model: fx.GraphModule, target: str) -> None:
    """What a user of torch.fx does: the seed behind the call of ``target``, and the code anew."""
    node = next(n for n in model.graph.nodes if n.op == "call_module" and n.target == target)
    model.add_submodule(
        "seed", nn.Sequential(nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, WIDTH, bias=False))
    )
    with model.graph.inserting_after(node):
        seed = model.graph.call_module("seed", (node,))
    with model.graph.inserting_after(seed):
        total = model.graph.call_function(torch.add, (node, seed))
    node.replace_all_uses_with(total, lambda user: user not in (seed, total))
    model.recompile()


def remove(model: fx.GraphModule) -> None:
    """Take it out of the graph again."""
    seed = next(n for n in model.graph.nodes if n.target == "seed")
    total = next(user for user in seed.users)
    total.replace_all_uses_with(seed.args[0])
    model.graph.erase_node(total)
    model.graph.erase_node(seed)


def modular(nodes: int) -> nn.Module:
    """A model of about ``nodes`` nodes."""
    blocks: Sequence[nn.Module] = [MlpBlock(WIDTH) for _ in range(max(nodes // NODES_OF_A_BLOCK, 1))]
    while len(blocks) > 10:
        blocks = [nn.Sequential(*blocks[i : i + 10]) for i in range(0, len(blocks), 10)]
    return nn.Sequential(*blocks)
