"""A ``state_dict`` with other seeds than the host has: the host inserts them, or refuses.

A state that has the entry ``_seeds._structure`` carries how its seeds are wired, and a host without seeds of
its own grows them. A state without that entry cannot: it is refused, also under ``strict=False``, which would
drop what grew, or leave it on weights that it did not grow on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fxgraft.errors import CheckpointError
from fxgraft.host.channels import Widened
from fxgraft.util.text import pluralize
from fxgraft_passes import GraftSpec
from fxgraft_passes.graft import SEEDS

if TYPE_CHECKING:
    from fxgraft.host.host import Host

ENTRY = f"{SEEDS}._structure"
"""The key, below the host's prefix, of a tensor of bytes that says how the seeds in a state are wired."""

DescribeStructure = Callable[["Host"], "tuple[Tensor, list[str]] | None"]
"""Returns the entry of a host's ``state_dict``, and the seeds that it describes; None where it cannot."""


@dataclass(frozen=True)
class LoadedEntry:
    """The entry that a host was grown from. It holds as long as nothing else has grown, or gone.

    Attributes:
        entry: the tensor of bytes.
        seeds: name and wiring of each.
        widenings: how the host's channels have grown.
    """

    entry: Tensor
    seeds: list[tuple[str, GraftSpec]]
    widenings: tuple[Widened, ...] = ()

    @classmethod
    def of(cls, entry: Tensor, host: Host) -> LoadedEntry:
        """The entry that ``host`` was grown from just now."""
        return cls(entry.detach().cpu().clone(), _wiring(host), host.widenings)

    def __call__(self, host: Host) -> tuple[Tensor, list[str]] | None:
        if (self.seeds, self.widenings) != (_wiring(host), host.widenings):
            return None
        return self.entry, [name for name, _ in self.seeds]


def add_structure_entry(host: Host, state: MutableMapping[str, Any], prefix: str) -> None:
    """Add the host's entry to a ``state`` of it, and remove seeds that the entry does not describe."""
    if host.structure_entry is None or (said := host.structure_entry(host)) is None:
        return
    state[f"{prefix}{ENTRY}"], names = said
    for name in set(_seeds_in(state, f"{prefix}{SEEDS}.")) - {*names, ENTRY.split(".")[1]}:
        for key in [key for key in state if key.startswith(f"{prefix}{SEEDS}.{name}.")]:
            del state[key]


@dataclass(frozen=True)
class StateReader:
    """What reads entries. It builds on this package, and is given by `read_with`.

    Attributes:
        names: the seeds that an entry describes. Raises `CheckpointError` for one that is damaged.
        alike: whether two entries describe the same seeds, in the same stages and at the same alphas.
        grow: lets a host have the seeds of an entry, without weights yet.
    """

    names: Callable[[Tensor], list[str]]
    alike: Callable[[Tensor, Tensor], bool]
    grow: Callable[[Host, Tensor], None]


_readers: list[StateReader] = []


def read_with(reader: StateReader) -> None:
    """Register the reader of the entries of states."""
    _readers[:] = [reader]


def insert_seeds_of(host: Host, state: MutableMapping[str, Any], prefix: str) -> None:
    """Insert the seeds of ``state``, or raise; before any weight is loaded. Removes the entry from ``state``.

    Raises:
        CheckpointError: the state has other seeds than the host, and the host cannot have those.
    """
    entry = state.pop(f"{prefix}{ENTRY}", None)
    ours = [placement.seed for placement in host.structure.placements]
    if entry is None:
        theirs = _seeds_in(state, f"{prefix}{SEEDS}.")
        if lost := [name for name in theirs if name not in ours]:
            raise CheckpointError(
                f"the state has {_named(lost)}, which the host has not, and does not say how they are wired. "
                f"SeedManager.load(path, host, ...) loads what manager.save(path) wrote, with what grew"
            )
        left = [name for name in ours if name not in theirs]
        if not left or any(f"{prefix}{name}" not in state for name in host.model_state()):
            return
        if host._links.on_structure is None:
            raise CheckpointError(
                f"the state has the host's weights without {_named(left)}, which would stay and run on "
                f"weights that they did not grow on. host.clear() takes all out; SeedManager.load(path, "
                f"host, ...) loads a run with its seeds; {{**host.state_dict(), **state}} keeps them"
            )
        host._links.on_structure(None)
        return
    reader, said = _readers[0], _seeds_in(state, f"{prefix}{SEEDS}.")
    if without := [name for name in reader.names(entry) if name not in said]:
        raise CheckpointError(
            f"the state says how {_named(without)} are wired, and has no weights of them. Load the whole "
            f"state_dict of the host, or use SeedManager.load"
        )
    now = host.structure_entry(host) if host.structure_entry is not None else None
    if now is not None and reader.alike(now[0], entry):
        return
    if host._links.on_structure is not None:
        host._links.on_structure(entry)
    elif (led_by := host._links.led_by) is not None and led_by() is not None:
        raise CheckpointError(
            "the state says how its seeds are wired, and the host has a SeedManager, which would not know "
            "them. Load the state before the manager is made, or the run: SeedManager.load(path, host, ...)"
        )
    else:
        reader.grow(host, entry)
    if not host.structure.placements:  # `on_structure` loads their weights later
        for key in [key for key in state if key.startswith(f"{prefix}{SEEDS}.")]:
            del state[key]


def _seeds_in(keys: Iterable[str], prefix: str) -> list[str]:
    return list(dict.fromkeys(key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)))


def _wiring(host: Host) -> list[tuple[str, GraftSpec]]:
    return [(placement.seed, placement.spec) for placement in host.structure.placements]


def _named(seeds: list[str]) -> str:
    return f"{pluralize(len(seeds), 'seed')} ({', '.join(seeds[:5])}{', …' if len(seeds) > 5 else ''})"
