"""What averages gradients of a host's own parameters: whether a ``DistributedDataParallel`` is around it."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from fxgraft.host.host import Host


def is_wrapped(host: Host) -> bool:
    """Whether a ``DistributedDataParallel``, be it of one rank, has buckets for the host's own parameters."""
    if not (dist.is_available() and dist.is_initialized()) or not around(host, least=1):
        return False
    gc.collect()  # one that is dead, and not yet collected, is none
    return bool(around(host, least=1))


def around(host: Host, least: int = 2) -> list[DistributedDataParallel]:
    """What averages gradients of the host's own parameters over that many ranks, or more."""
    own = {id(parameter) for parameter in host.host_parameters()}
    living = (one for one in gc.get_objects() if issubclass(type(one), DistributedDataParallel))
    return [one for one in living if size(one) >= least and _has(one.parameters(), own)]


def size(wrapper: DistributedDataParallel) -> int:
    """Over how many ranks it averages."""
    group = wrapper.__dict__.get("process_group")  # which one that is being made does not have yet
    return group.size() if group is not None else 0


def _has(parameters: Iterable[nn.Parameter], own: set[int]) -> bool:
    return any(id(parameter) in own for parameter in parameters)
