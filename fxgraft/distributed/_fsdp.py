"""The ranks of a host that ``fully_shard`` has sharded, and what such a host can and cannot do.

    host = fxgraft.trace(model, example)
    for block in host.blocks:  # of the host: the model's own modules are others
        fully_shard(block)
    fully_shard(host)  # last
    optimizer = ...  # of the sharded parameters
    manager = fxgraft.SeedManager(host, optimizer)

Seeds lie on the mesh of the host, see `_fsdp_seeds`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from fxgraft import _torch
from fxgraft.commands.inbox import Inbox
from fxgraft.distributed._averaging import broadcast
from fxgraft.distributed._dcp import Folder
from fxgraft.distributed._fsdp_seeds import SHARD_FROM, distribute
from fxgraft.distributed._replicas import Replicas
from fxgraft.errors import DistributedError
from fxgraft.host.host import Host
from fxgraft.lifecycle.change import Addition
from fxgraft.telemetry.events import logger
from fxgraft.util.tensors import local_tensor

ORDER = (
    "trace the model, fully_shard the host's blocks (not the model's), then the host, then make optimizer "
    "and manager"
)


class Shards(Replicas):
    """The ranks of a sharded host.

    Args:
        host: sharded.
        inbox, state, backward: as of `Replicas`.
        shard_from: elements from which a parameter of a seed is sharded; by default `SHARD_FROM`.

    Attributes:
        folder: how runs on these ranks are saved.
    """

    def __init__(
        self,
        host: Host,
        inbox: Inbox,
        state: Callable[[], str],
        backward: Callable[[], None],
        shard_from: int | None,
    ):
        self._mesh = _mesh(host)
        self._shard_from = SHARD_FROM if shard_from is None else shard_from
        group = self._mesh.get_group()
        super().__init__(host, group, True, host, inbox, state, backward)
        self.folder = Folder(self._mesh, group, self._messages)
        if self.rank == 0:
            logger.warning(
                "the isolation check does not run on a sharded host: seeds are isolated, unchecked"
            )

    def distribute(self, addition: Addition) -> Callable[[], None]:
        """Bring a seed that goes live onto the ranks; returns what undoes it. Every rank calls it.

        Raises:
            DistributedError: the host, or the seed's place in it, cannot have seeds while it is sharded.
        """
        if self._host.compiled is not None:
            raise DistributedError(
                "the host is compiled and sharded: seeds cannot go live in it. Shard a host that is not "
                "compiled, or train the compiled one in DistributedDataParallel"
            )
        if addition.seed.spec.objective == "shadow":
            raise DistributedError(
                f"seed {addition.seed.name!r}: a sharded host has no shadow(); expected objective 'trust' or "
                f"'straight_through'"
            )
        undo = distribute(addition.graft.module, self._mesh, self._shard_from)
        broadcast(addition.graft.module.buffers(), self._group)
        return undo

    def average(self) -> bool:
        self._exchange()
        grafts = self._host.grafts().values()
        broadcast((b for graft in grafts for b in graft.module.buffers()), self._group)
        self._agree_on_finite([list(graft.module.parameters()) for graft in grafts])
        for name in self._host.grafts():
            self._known.add(self._host.graft(name))
        return True

    def _agree_on_finite(self, seeds: Sequence[Sequence[nn.Parameter]]) -> None:
        """A NaN or inf in one rank's part of a seed's gradients makes those of all ranks NaN.

        So all ranks drop the same gradients.
        """
        grads = [[local_tensor(p.grad) for p in seed if p.grad is not None] for seed in seeds]
        if not grads:
            return
        device = next((g.device for seed in grads for g in seed), torch.device(self._mesh.device_type))
        fine = [all(bool(torch.isfinite(g).all()) for g in seed) for seed in grads]
        agreed = torch.tensor(fine, dtype=torch.int32, device=device)
        dist.all_reduce(agreed, dist.ReduceOp.MIN, group=self._group)
        for seed, is_fine in zip(grads, agreed.tolist(), strict=True):
            if not is_fine:
                for grad in seed:
                    grad.fill_(float("nan"))


def check(host: Host, optimizers: Sequence[Optimizer], strict: bool) -> None:
    """Raise `DistributedError` for a sharded host that was made in another order, or cannot be grown."""
    if not isinstance(host, FSDPModule):
        raise DistributedError(f"parts of the host are sharded, and the host itself is not: {ORDER}")
    if host.compiled is not None:
        raise DistributedError("the host is compiled and sharded, which is not supported: do without compile")
    if strict:
        raise DistributedError(
            "strict=True: the isolation check cannot run on a sharded host. Train with strict=False there, "
            "and check on one process"
        )
    reshard(host)
    for module in host.modules():
        if isinstance(module, FSDPModule):
            _check_policies(module)
    ours = {id(p) for p in host.parameters()}
    for optimizer in optimizers:
        if not any(id(p) in ours for group in optimizer.param_groups for p in group["params"]):
            raise DistributedError(
                f"{type(optimizer).__name__} has none of the host's parameters, which fully_shard has "
                f"replaced: {ORDER}"
            )


def reshard(host: nn.Module) -> None:
    """Make every parameter its DTensor again: after a forward those of the host itself are gathered."""
    for module in host.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _check_policies(module: FSDPModule) -> None:
    for group in _torch.fsdp_groups(module):
        if group.mp_policy.param_dtype is not None:
            raise DistributedError(
                f"expected fully_shard without a param_dtype; got {group.mp_policy}. Seeds do not follow "
                f"it: use autocast, or convert the host before it is sharded"
            )
        if type(group.offload_policy).__name__ != "OffloadPolicy":
            raise DistributedError(f"expected fully_shard without offloading; got {group.offload_policy}")


def _mesh(host: Host) -> DeviceMesh:
    meshes = {p.device_mesh for p in host.parameters() if isinstance(p, DTensor)}
    if len(meshes) != 1 or (mesh := meshes.pop()).ndim != 1:
        raise DistributedError(
            "expected a host that is sharded on one mesh of one dimension; two dimensions (HSDP, tensor "
            "parallel) and several meshes are not supported"
        )
    return mesh
