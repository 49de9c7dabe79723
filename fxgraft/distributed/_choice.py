"""Which ranks train a host: this one alone, those of a ``DistributedDataParallel``, or those of FSDP2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fxgraft.commands.inbox import Inbox
from fxgraft.distributed._replicas import Replicas
from fxgraft.distributed._unwrapped import Unwrapped, is_one_of_several
from fxgraft.distributed.peers import Alone, Peers
from fxgraft.host import engine
from fxgraft.host.host import Host


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
    return Alone()


def _is_sharded(host: Host) -> bool:
    """Whether any part of ``host`` went through ``fully_shard``."""
    # Where that was not imported nobody has sharded anything. (The compiler imports it, too.)
    imported = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(imported, "FSDPModule", ())
    return any(isinstance(module, kind) for tree in (host, *engine.trees(host)) for module in tree.modules())
