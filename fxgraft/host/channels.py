"""The channels of a host: what it can grow wider by, and the host as what the analysis looks at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import nn

from fxgraft.errors import ChannelError
from fxgraft.util.dtensor import local_tensor
from fxgraft_passes.channels.groups import ChannelGroup, find
from fxgraft_passes.channels.growth import tried
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.graft import SEEDS

if TYPE_CHECKING:
    from fxgraft.host.host import Host

Example = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a call."""


class Channels:
    """Finds the groups of channels of a host, once for each structure that it has.

    Args:
        example: the call that the host was traced with; None where it is not known any more.
    """

    def __init__(self, example: Example | None):
        self.example = example
        self._found: Mapping[str, ChannelGroup] = {}
        self._structure: object = None

    def of(self, host: Host) -> Mapping[str, ChannelGroup]:
        """The groups by their names."""
        if self._structure is not host.structure:
            subject = subject_of(host, self.example)
            groups = tried(subject, find(subject, _not_of_seeds))
            self._found, self._structure = MappingProxyType(groups), host.structure
        return self._found

    def forget(self) -> None:
        """The host has other parameters than before."""
        self._structure = None


def subject_of(host: Host, example: Example | None) -> Subject:
    """The host, its grafts included, with its example call.

    Raises:
        ChannelError: there is no example, or the host is sharded.
    """
    if example is None:
        raise ChannelError(
            "the host does not know the call that it was traced with, being a copy or read from a file: "
            "host.retrace(args, kwargs) tells it"
        )
    if sharded := next((name for name, p in host.named_parameters() if local_tensor(p) is not p), None):
        raise ChannelError(
            f"{sharded} is sharded: expected a host whose parameters are whole. Let it grow wider before "
            f"fully_shard; or save the run, load it unsharded, widen, and shard again"
        )
    root, *seeds = host.trees()
    modules: dict[str, nn.Module] = dict(root.named_modules())
    for tree in seeds:
        modules |= {f"{SEEDS}.{name}" if name else SEEDS: module for name, module in tree.named_modules()}

    @contextmanager
    def leave_untouched() -> Iterator[None]:
        with host.compiled.stopped() if host.compiled else nullcontext(), host.untouched():
            yield

    args, kwargs = example
    return Subject(root, modules, args, kwargs, leave_untouched)


def _not_of_seeds(path: str) -> str | None:
    if not path.startswith(f"{SEEDS}."):
        return None
    return (
        f"the seed {path.split('.')[1]!r} works on it: cull it, or fuse it, before the host grows wider there"
    )
