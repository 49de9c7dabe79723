"""The channels of a host: what it can grow wider by, each growth, and the host as the analysis sees it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft.capture.fallback import FallbackReport, report_fallbacks_at_most
from fxgraft.errors import ChannelError
from fxgraft.host import engine
from fxgraft.util.tables import TableMapping
from fxgraft.util.tensors import local_tensor
from fxgraft_passes import Phase
from fxgraft_passes.channels.groups import ChannelGroup, find
from fxgraft_passes.channels.settings import Setting
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.channels.trying import tried, tried_one
from fxgraft_passes.graft import SEEDS
from fxgraft_passes.operators import branches_shown

if TYPE_CHECKING:
    from fxgraft.host.host import Host


@dataclass(frozen=True)
class Before:
    """What a growth changes, as it was.

    Attributes:
        shapes: path -> shape, of the tensors.
        settings: the numbers of modules.
    """

    shapes: Mapping[str, tuple[int, ...]]
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Widened:
    """One growth of one group.

    Attributes:
        group: its name.
        by: how many channels more.
        init: how they began.
        numbers: module, attribute, value: what norms were given, that no shape tells.
        seeds: what had grown in the host by then.
        before: what was there, to go back; None for a host that was made in these sizes.
    """

    group: str
    by: int
    init: str
    numbers: tuple[tuple[str, str, float], ...] = ()
    seeds: tuple[str, ...] = ()
    before: Before | None = field(default=None, compare=False, repr=False)


Example = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a call."""


class ChannelGroups(TableMapping[ChannelGroup]):
    """Name -> group of channels, those that lead first; prints as a table."""

    headers = ("channels", "size", "grow by", "tensors", "fixed")

    def _row(self, name: str, group: ChannelGroup) -> tuple[object, ...]:
        return name, group.size, group.grain, len(group.members), group.fixed or ""


class Channels:
    """Finds the groups of channels of a host, once for each structure that it has, and each phase of that.

    Args:
        example: the call that the host was traced with; None where it is not known any more.
        root: the model, as it was traced.
    """

    def __init__(self, example: Example | None = None, root: nn.Module | None = None):
        self._example = example
        self._then = None if root is None else _floating(root)
        self._groups: Mapping[str, ChannelGroup] = {}
        self._tried: dict[str, ChannelGroup] = {}
        self._structure: object = None
        self._phase: Phase | None = None

    def call(self, host: Host) -> Example:
        """The example call; where the host has been moved or converted since, so is the call.

        Raises:
            ChannelError: it is not known.
        """
        if self._example is None:
            raise ChannelError(
                "the host does not know the call that it was traced with, being a copy or read from a file: "
                "host.retrace(args, kwargs) tells it"
            )
        now = _floating(host)
        if now is None or self._then is None:
            return self._example

        def fitting(tensor: Tensor) -> Tensor:
            is_of_then = tensor.dtype is self._then.dtype and now.dtype is not self._then.dtype  # type: ignore[union-attr]
            return tensor.to(now.device, now.dtype if is_of_then else None)

        args, kwargs = pytree.tree_map_only(Tensor, fitting, self._example)
        return args, kwargs

    def of(self, host: Host) -> ChannelGroups:
        """The groups by their names."""
        groups = self.untried(host)
        if self._tried.keys() != groups.keys():
            self._tried = tried(subject_of(host, self.call(host)), groups)
        return ChannelGroups(self._tried)

    def one(self, host: Host, name: str) -> ChannelGroup:
        """One of them; the others are not tried. Raises `KeyError`."""
        groups = self.untried(host)
        if name not in self._tried:
            self._tried[name] = tried_one(subject_of(host, self.call(host)), groups, name)
        return self._tried[name]

    def untried(self, host: Host) -> Mapping[str, ChannelGroup]:
        """The groups as the analysis has them: whether the host runs with more channels was not tried."""
        if self._structure is not host.structure or self._phase is not host.phase:  # each has code of its own
            subject = subject_of(host, self.call(host))
            fossils = {p.seed for p in host.structure.placements if p.spec.fossil is not None}
            self._groups, self._tried = find(subject, lambda path: _of_a_seed(path, fossils)), {}
            self._structure, self._phase = host.structure, host.phase
        return self._groups

    def forget(self) -> None:
        """The host has other parameters than before."""
        self._structure = None


def _floating(model: nn.Module) -> Tensor | None:
    """A floating parameter, whose dtype and device are taken for the model's."""
    found = next((p for p in model.parameters() if p.is_floating_point()), None)
    return None if found is None else torch.empty(0, dtype=found.dtype, device=found.device)


def subject_of(host: Host, example: Example) -> Subject:
    """The host, its grafts included, with its example call.

    Raises:
        ChannelError: the host is sharded.
    """
    if sharded := next((name for name, p in host.named_parameters() if local_tensor(p) is not p), None):
        raise ChannelError(
            f"{sharded} is sharded: expected a host whose parameters are whole. Let it grow wider before "
            f"fully_shard; or save the run, load it unsharded, widen, and shard again"
        )
    root, *seeds = engine.trees(host)
    modules: dict[str, nn.Module] = dict(root.named_modules())
    for tree in seeds:
        modules |= {f"{SEEDS}.{name}" if name else SEEDS: module for name, module in tree.named_modules()}

    @contextmanager
    def leave_untouched() -> Iterator[None]:
        compiled = host.compiled.stopped() if host.compiled else nullcontext()
        with (
            compiled,
            engine.untouched(host),
            report_fallbacks_at_most(FallbackReport.IGNORE),
            branches_shown(),
        ):
            yield

    args, kwargs = example
    return Subject(root, modules, args, kwargs, leave_untouched)


def example_of(host: Host) -> Subject | None:
    """The host with its example call; None where that is not known, as of a copy, or the host is sharded."""
    try:
        return subject_of(host, host.example_call())
    except ChannelError:
        return None


def _of_a_seed(path: str, fossils: Collection[str]) -> str | None:
    """Why the parameter cannot grow, where it is a live seed's; those of fossils are the host's."""
    if not path.startswith(f"{SEEDS}.") or (seed := path.split(".")[1]) in fossils:
        return None
    return f"the seed {seed!r} works on it: cull or fossilize it before the host grows wider there"
