"""The ranks of a ``DistributedDataParallel``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from fxgraft import commands
from fxgraft.commands.inbox import Inbox
from fxgraft.distributed._averaging import average_gradients, broadcast
from fxgraft.distributed._exchange import Exchange
from fxgraft.distributed.peers import Order
from fxgraft.errors import DistributedError
from fxgraft.host.host import Host
from fxgraft.lifecycle.change import Addition
from fxgraft.util.tensors import local_tensor
from fxgraft_passes import Graft, devices

if TYPE_CHECKING:
    from fxgraft.distributed._dcp import Folder

_HOOKS = "_fxgraft_hooks"
"""Where a ``DistributedDataParallel`` keeps the handles of our hooks, one for each host in it."""


class Replicas:
    """The ranks of a ``DistributedDataParallel``, or of what is like it.

    Args:
        wrapper: around ``host``, or the host itself: what the user calls.
        group: the ranks.
        buffers: whether those of seeds follow rank 0.
        host: where the seeds are.
        inbox: of rank 0's commands.
        state: what has to be the same on all ranks, as text for people.
        backward: called when a backward pass of ``wrapper`` begins that averages.
    """

    def __init__(
        self,
        wrapper: nn.Module,
        group: dist.ProcessGroup,
        buffers: bool,
        host: Host,
        inbox: Inbox,
        state: Callable[[], str],
        backward: Callable[[], None],
    ):
        self._group = group
        self.folder: Folder | None = None
        ranks = dist.get_process_group_ranks(self._group)
        # Of its own: whatever else runs over the group of the gradients, orders cannot be mixed up.
        talk = dist.new_group(
            ranks, backend="gloo", timeout=_timeout(self._group), use_local_synchronization=True
        )
        self._messages = Exchange(talk)
        self.rank, self.size = self._messages.rank, self._messages.size
        self._host, self._inbox, self._state, self._backward = host, inbox, state, backward
        self._buffers = buffers
        self._accumulates = False
        self._is_fresh = False  # whether there was an exchange since the last step
        self._known: weakref.WeakSet[Graft] = weakref.WeakSet()
        self._taken: list[Order] = []
        hooks = wrapper.__dict__.setdefault(_HOOKS, {})
        if (before := hooks.pop(id(host), None)) is not None:
            before.remove()  # of an earlier manager
        hooks[id(host)] = wrapper.register_forward_hook(_after_forward(weakref.ref(self)))

    def send(self, topic: str, value: Any) -> None:
        self._messages.send(topic, value)

    def received(self, topic: str) -> list[Any]:
        return self._messages.received(topic)

    def withdraw(self, topic: str) -> None:
        self._messages.forget(topic)

    def settle(self) -> None:
        if not self._is_fresh:
            self._exchange()
        self._is_fresh = False
        self._accumulates = False
        self._messages.deliver()

    def average(self) -> bool:
        if self._accumulates:
            return False
        self._exchange()
        grafts = self._host.grafts()
        modules = [graft.module for graft in grafts.values()]
        if self._buffers:
            broadcast((b for module in modules for b in module.buffers()), self._group)
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        average_gradients(parameters, self._group)
        for name in self._overwritten(grafts):
            for parameter in grafts[name].module.parameters():
                parameter.grad = None  # it is not that of the weights that the seed has now
        return True

    def orders(self, inbox: Inbox) -> Iterator[Order]:
        taken, self._taken = self._taken, []
        received = self._messages.received("commands")[0] or []
        if self.rank == 0:
            yield from taken
        else:
            yield from ((commands.parse(command), None) for command in received)

    def share(self, value: Any) -> Any:
        return self._messages.share(value)

    def mean(self, value: float) -> float:
        return self._messages.mean(value)

    def distribute(self, addition: Addition) -> Callable[[], None]:
        return _nothing

    def begin(self, accumulates: bool) -> None:
        """A backward pass of the host begins."""
        self._accumulates = accumulates
        if not accumulates:
            self._send_pending()
            self._messages.begin(self._state())
            self._backward()

    def _exchange(self) -> None:
        self._send_pending()
        self._messages.finish(self._state())
        self._is_fresh = True

    def _send_pending(self) -> None:
        """What is to be said with every exchange: commands, and how the weights of new seeds begin."""
        if self.rank == 0:
            self._taken += self._inbox.take()
            if self._taken:
                self._messages.send("commands", [commands.to_dict(order) for order, _ in self._taken])
        for name, graft in self._host.grafts().items():
            if graft not in self._known:
                self._messages.send(f"weights of {name}", _fingerprint(graft.module))

    def _overwritten(self, grafts: dict[str, Graft]) -> list[str]:
        """New seeds whose weights were not the same on all ranks: they have those of rank 0 now."""
        found = []
        for name, graft in grafts.items():
            if graft in self._known:
                continue
            self._known.add(graft)
            if len(set(self._messages.received(f"weights of {name}"))) > 1:
                broadcast((*graft.module.parameters(), *graft.module.buffers()), self._group)
                found.append(name)
        return found


def _nothing() -> None:
    pass


def _after_forward(owner: weakref.ref[Replicas]) -> Callable[..., None]:
    """A forward hook that notices the backward pass: it begins where a gradient arrives at the outputs."""

    def hook(wrapper: nn.Module, args: Any, output: Any) -> None:
        if not torch.is_grad_enabled() or owner() is None:
            return
        accumulates = False
        if isinstance(wrapper, DistributedDataParallel):
            if wrapper._join_config.enable:
                raise DistributedError(
                    "join() with uneven inputs is not supported: give every rank as many batches"
                )
            accumulates = not wrapper.require_backward_grad_sync

        def begins(_: Tensor) -> None:
            if (peers := owner()) is not None:
                peers.begin(accumulates)

        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(begins)  # type: ignore[no-untyped-call]

    return hook


def _tensors(output: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(output)
    for leaf in leaves:  # outputs of a kind that pytree does not know
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            leaves = [*leaves, *pytree.tree_leaves(vars(leaf))]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _timeout(group: dist.ProcessGroup) -> timedelta | None:
    """How long ``group`` waits for a rank; None where its backend does not say."""
    for device in reversed(devices.types()):
        try:
            found: timedelta = group._get_backend(torch.device(device)).options._timeout
            return found
        except (RuntimeError, AttributeError):
            continue
    return None


def _fingerprint(module: nn.Module) -> str:
    """Of all weights, in every bit."""
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        tensor = local_tensor(tensor)
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # Of a copy: fully_shard could not free the memory of a tensor that numpy has had.
        whole = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        digest.update(whole.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
