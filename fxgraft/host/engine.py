"""Swapping the structure of a host, and running it temporarily in another form.

For the packages of the library only. These are functions, and not methods, so that a host has no names beside
those that are documented: every other attribute of a host is its model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxgraft.host._observing import observe
from fxgraft.host.save_pretrained import watch
from fxgraft.slots.structure import Structure
from fxgraft_passes import Graft, Phase, devices
from fxgraft_passes.graft import SEEDS
from fxgraft_passes.untouched import untouched as restored

if TYPE_CHECKING:
    from fxgraft.compiling.job import CompileTask, Job
    from fxgraft.host.host import Host
    from fxgraft_passes.channels.groups import ChannelGroup


WIDER = ", which is wider"
"""What `grown_in` says of channels."""


# The structure


def trees(host: Host) -> list[nn.Module]:
    """The module trees that run: the model's, and that of the seeds if there are any."""
    seeds = host._modules.get(SEEDS)
    return [host._root, seeds] if seeds is not None else [host._root]


def prepare(host: Host, structure: Structure, phases: tuple[Phase, ...]) -> None:
    """Generate and verify what ``structure`` needs to run; nothing that runs is touched."""
    host._running.prepare(structure, phases)


def ensure_block_regions(host: Host, structure: Structure, grafts: Mapping[str, Graft]) -> None:
    """Make the regions in inserted blocks of ``structure``; nothing that runs is touched."""
    host._traced.insert_blocks(structure, grafts)


def set_structure(host: Host, structure: Structure, phase: Phase, grafts: Mapping[str, Graft]) -> None:
    """Swap in a structure. ``grafts`` are the modules of all its seeds, by name."""
    traced = host._traced
    ensure_block_regions(host, structure, grafts)
    host._running.enter(structure, phase, grafts)
    traced.remove_blocks(structure)
    were_known = traced.forget_stacks()
    if were_known or any(p.spec.call for p in structure.placements):
        host._depths.follow(host._root, host.stacks, traced.regions)
    host._modules.pop(SEEDS, None)
    if grafts:
        seeds = host._modules[SEEDS] = nn.Module()
        seeds.training = host.training
        for placement in structure.placements:
            seeds.add_module(placement.seed, grafts[placement.seed])
    host._own.forget_fossils()
    observe(host)
    watch_writing(host)
    for twin, follow in list(host._links.followers.items()):
        follow(host, twin)


def first_call_values(host: Host) -> dict[str, Any]:
    """What the first call of the model has set once and for all in ``host``; empty before that call."""
    return host._first_call.values(host._root)


def awaits_first_call(host: Host) -> frozenset[str]:
    """The names of attributes that the first call of the model will set; empty after that call."""
    return host._first_call.awaited(host._root)


def had_first_call(undo: ExitStack, host: Host, values: Mapping[str, Any]) -> None:
    """Put ``host`` into the state after its first call, which set those ``values``. ``undo`` reverts it."""
    host._first_call.restore(undo, host._root, values)


def clear(undo: ExitStack, host: Host) -> None:
    """Take out every graft, as `Host.clear` does. ``undo`` gets the callbacks that restore them."""
    links = host._links
    for name in ("structure_entry", "widenings"):
        undo.callback(setattr, host, name, getattr(host, name))
    for name in ("led_by", "on_replaced"):
        undo.callback(setattr, links, name, getattr(links, name))
    undo.callback(set_structure, host, host.structure, host.phase, host.grafts())
    host.clear()


# What runs


@contextmanager
def borrowing(host: Host, what: str) -> Iterator[None]:
    """The host runs temporarily in another form: seeds cannot change inside."""
    links = host._links
    before, links.borrowed = links.borrowed, what
    try:
        yield
    finally:
        links.borrowed = before


@contextmanager
def probing(
    host: Host, structure: Structure, phase: Phase, extra_grafts: Mapping[str, Graft] | None = None
) -> Iterator[nn.Module]:
    """The model, in eager mode, with part of the host's grafts in another phase, and put back.

    ``extra_grafts`` are grafts of ``structure`` that the host does not have.
    """
    with host._running.probing(structure, phase, host.grafts(), extra_grafts or {}):
        yield host._root


@contextmanager
def untouched(host: Host, also: Sequence[object] = ()) -> Iterator[None]:
    """A block in which the host may run without a trace: at its end all that its code reaches is as before.

    Args:
        host: what runs in the block.
        also: other objects that are to be as before.
    """
    try:
        with restored(*trees(host), also=[*host._external_state.roots(host._root), *also]):
            yield
    finally:
        devices.forget_casts()


def warm_up(host: Host, before: Structure) -> None:
    """Compile every forward of the structure for the calls seen so far, where that is missing.

    Args:
        host: the host.
        before: the structure that this one replaced: only units that differ are looked at.
    """
    host._running.warm_up(before, host.grafts(), *trees(host)[1:])


def repeat_eagerly(host: Host, region: str) -> None:
    """Repeat the latest call of the compiled units around ``region`` in eager mode; leaves no trace."""
    host._running.repeat_eagerly(region, *trees(host)[1:])


def compile_in_helper(
    host: Host, structure: Structure, grafts: Mapping[str, Graft], tasks: Sequence[CompileTask]
) -> Job:
    """Compile for ``structure`` in the compiler process. What runs here is as before afterwards.

    Args:
        host: a compiled one.
        structure: for which the tasks are.
        grafts: the modules of all its seeds, by name.
        tasks: what to make.

    Raises:
        NotSendableError: something cannot be given to another process.
    """
    from fxgraft.compiling.forwards import forward_of  # which is there: the host is compiled
    from fxgraft.compiling.job import Job

    assert host.compiled is not None
    units = {task.unit for task in tasks}
    names = host.structure.by_region.keys() | structure.by_region.keys()

    def home(name: str) -> str:
        return (structure if name in structure.by_region else host.structure).home(name)

    modules = [host.regions[name].module for name in names if any(unit.holds(home(name)) for unit in units)]
    forwards = {}
    for phase in {task.phase for task in tasks}:
        with probing(host, structure, phase, grafts):
            forwards[phase] = [(module, forward_of(module)) for module in modules]
    seeds = [
        p
        for p in structure.placements
        if any(unit.holds(structure.home(structure.runs_in(p))) for unit in units)
    ]
    return Job(tasks, host.compiled.options, forwards, [grafts[p.seed] for p in seeds])


# The model, and what has become of it


def owns(host: Host, tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is a parameter or buffer of the traced model's, or of a fossil's."""
    return tensor in host._own


def forget_own(host: Host) -> None:
    """The model has other parameters than before (it was sharded): `owns` looks again."""
    host._own.forget()


def untried_channels(host: Host) -> Mapping[str, ChannelGroup]:
    """``host.channels`` before it is tried which of them the host runs with when they are larger."""
    return host._channels.untried(host)


def channel_group(host: Host, name: str) -> ChannelGroup:
    """``host.channels[name]``, without trying the others."""
    return host._channels.one(host, name)


def widened(host: Host) -> None:
    """The layers of the model are of other sizes now."""
    host._channels.forget()
    host._own.forget()
    watch_writing(host)


def grown_in(host: Host, module: str) -> list[str]:
    """The seeds within the module of that name; and whatever has grown wider, wherever that is."""
    wider = [f"{widening.group}{WIDER}" for widening in host.widenings]
    by_region = host.structure.by_region
    within = (r for r in by_region if not module or f"{r}.".startswith(f"{module}."))
    return [*wider, *(placement.seed for region in within for placement in by_region[region])]


def has_deepened(host: Host, config: Any) -> bool:
    """Whether a configuration is the host's own copy, which is as deep as its stacks are now."""
    return host._depths.is_copy(config)


def watch_writing(host: Host) -> None:
    """Guard ``save_pretrained`` of the model's modules in which something grew."""
    root_name = type(host._root).__name__
    watch(host._writers, lambda module: grown_in(host, module), host._links.on_write, root_name)
