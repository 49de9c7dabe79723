"""Which ranks train a host: this one alone, those of a ``DistributedDataParallel``, or those of FSDP2.

A host may have been given to its manager without its ``DistributedDataParallel``, in one of several
processes. The manager would lead seeds of this process alone, and the ranks would drift apart without a word.
Whether several ranks train the host cannot be seen on the host: what is around it is looked for when the
manager is made, when a seed is added, and in the step after that (a wrapper may be made later than the
manager).
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Sequence

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fxgraft.commands.inbox import Inbox
from fxgraft.distributed._replicas import Replicas
from fxgraft.distributed.peers import Peers, SingleProcess
from fxgraft.errors import DistributedError
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.host.wrapped import around, size
from fxgraft.lifecycle.change import Addition
from fxgraft.telemetry import logger


class Unwrapped(SingleProcess):
    """One process of several, alone with its host.

    Args:
        host: the host.

    Raises:
        DistributedError: several ranks train the host.
    """

    def __init__(self, host: Host):
        super().__init__()
        self._host = weakref.ref(host)
        self._look_again = True
        self._has_warned = False
        self._look()

    def settle(self) -> None:
        super().settle()
        if self._look_again:
            self._look_again = False
            self._look()

    def distribute(self, addition: Addition) -> Callable[[], None]:
        self._look()
        self._look_again = True
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "this is one of %d processes, and the manager was given the host without a "
                "DistributedDataParallel around it: its seeds are this process's own; others neither know of "
                "them nor average their gradients. Where the processes train one host, wrap it, and give "
                "the wrapper: SeedManager(DistributedDataParallel(host), ...)",
                dist.get_world_size(),
            )
        return lambda: None

    def _look(self) -> None:
        host = self._host()
        if host is None or not around(host):
            return
        gc.collect()  # one that is dead, and not yet collected, is none
        for wrapper in around(host):
            raise DistributedError(_what_is_wrong(wrapper, host))


def is_one_of_several() -> bool:
    """Whether this process trains beside others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _what_is_wrong(wrapper: DistributedDataParallel, host: Host) -> str:
    found = f"{size(wrapper)} ranks train the host through a DistributedDataParallel"
    if wrapper.module is host:
        return (
            f"host: expected that wrapper, SeedManager(ddp, ...), as {found}; got the host alone: each "
            f"rank's seeds would be its own, and the ranks would drift apart"
        )
    if any(module is host for module in wrapper.modules()):
        return (
            f"host: {found} around a {type(wrapper.module).__name__} that contains it. Say so: "
            f"SeedManager(host, ..., ddp=ddp); else each rank's seeds would be its own, and drift apart"
        )
    return (
        f"host: {found} around a {type(wrapper.module).__name__} that has its parameters and does not call "
        f"it: that is, as a rule, the model that was traced, whose forward runs without the seeds. Wrap the "
        f"host, DistributedDataParallel(host), train that, and give it: SeedManager(ddp, ...)"
    )


def peers_of(
    given: nn.Module,
    host: Host,
    inbox: Inbox,
    state: Callable[[], str],
    backward: Callable[[], None],
    optimizers: Sequence[Optimizer] = (),
    strict: bool = False,
    shard_from: int | None = None,
) -> Peers:
    """The ranks that train ``given``: of the ``DistributedDataParallel`` that it is, or of a sharded host.

    Raises:
        DistributedError: the host is sharded in a way in which it cannot be grown; or several ranks train it,
            and it was given without what is around it.
    """
    if _is_sharded(host):
        from fxgraft.distributed import _fsdp  # which imports seventy modules that no other host needs

        _fsdp.check(host, optimizers, strict)
        engine.forget_own(host)
        return _fsdp.Shards(host, inbox, state, backward, shard_from)
    if isinstance(given, DistributedDataParallel) and given.process_group.size() > 1:
        return Replicas(given, given.process_group, given.broadcast_buffers, host, inbox, state, backward)
    if not isinstance(given, DistributedDataParallel) and is_one_of_several():
        return Unwrapped(host)
    return SingleProcess()


def _is_sharded(host: Host) -> bool:
    """Whether any part of ``host`` went through ``fully_shard``."""
    # Where that was not imported nothing is sharded. (The compiler imports it, too.)
    imported = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(imported, "FSDPModule", ())
    return any(isinstance(module, kind) for tree in (host, *engine.trees(host)) for module in tree.modules())
