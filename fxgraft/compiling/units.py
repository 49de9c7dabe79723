"""Which modules are compiled as a whole.

``granularity="host"``: one unit, the host. ``"region"``: its blocks, so that a change compiles one
block anew, and equal blocks share their code; what is between them runs eager. ``"auto"``: blocks
where the model repeats one at least `MIN_REPEATS` times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

from torch import nn

from fxgraft.slots.structure import Structure, is_within
from fxgraft_passes.graft import SEEDS

GRANULARITIES = ("host", "region", "auto")
MIN_REPEATS = 4
"""How often a block has to be there for ``"auto"`` to compile by region."""


@dataclass(frozen=True, eq=False)
class Unit:
    """A module that is compiled as a whole.

    Attributes:
        name: qualified; ``""`` is the root.
        module: the module.
        kind: equal for blocks that are alike: of one class, with the same settings and shapes.
    """

    name: str
    module: nn.Module
    kind: str

    def holds(self, region: str) -> bool:
        """Whether the region of that name runs inside this unit."""
        return is_within(region, self.name)

    def local(self, structure: Structure) -> Structure:
        """The part of ``structure`` in this unit, as seen from it."""
        return structure.within(self.name) if self.name else structure


def units_of(root: nn.Module, granularity: str) -> list[Unit]:
    """The units of a model, none inside another. Raises `ValueError` for an unknown granularity."""
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity: expected one of {', '.join(GRANULARITIES)}; got {granularity!r}")
    whole = [Unit("", root, "")]  # there is only one: its code needs no distinction
    if granularity == "host":
        return whole
    found = _blocks(root)
    most = max(Counter(unit.kind for unit in found).values(), default=0)
    return whole if most < (MIN_REPEATS if granularity == "auto" else 1) else found


def _blocks(root: nn.Module) -> list[Unit]:
    """The outermost modules that repeat, and the outermost that have none of those inside.

    Modules without children stay eager: entering compiled code costs more than it saves there.
    """
    named = {name: module for name, module in root.named_modules() if any(module.children())}
    kinds = {name: block_kind(module) for name, module in named.items() if name}
    counts = Counter(kinds.values())
    repeated = {name for name, kind in kinds.items() if counts[kind] > 1 and _is_callable(named[name])}
    above = {name[:i] for name in repeated for i in range(len(name)) if name[i] == "."}
    units: list[Unit] = []
    for name in kinds:  # parents come before their children
        if any(unit.holds(name) for unit in units) or (name in above and name not in repeated):
            continue
        if _is_callable(named[name]):
            units.append(Unit(name, named[name], kinds[name]))
    return units


def units_in(seed: str, module: nn.Module, kinds: Container[str]) -> list[Unit]:
    """The units of a seed that stands between blocks: itself or what is inside of it, if that is a block
    of a known kind; otherwise itself, unless it has no children.
    """
    prefix = f"{SEEDS}.{seed}.module"
    found: list[Unit] = []
    for name, part in module.named_modules():
        path = f"{prefix}.{name}".rstrip(".")
        if any(unit.holds(path) for unit in found) or not _is_callable(part) or not any(part.children()):
            continue
        if (kind := block_kind(part)) in kinds:
            found.append(Unit(path, part, kind))
    if not found and any(module.children()) and _is_callable(module):
        found.append(Unit(prefix, module, block_kind(module)))
    return found


def block_kind(module: nn.Module) -> str:
    """Equal for modules of one class, with the same settings, shapes and dtypes."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    shapes = [(name, tuple(t.shape), str(t.dtype), t.requires_grad) for name, t in tensors]
    return f"{type(module).__module__}.{type(module).__qualname__}:{module!r}:{shapes}"


def _is_callable(module: nn.Module) -> bool:
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict))
