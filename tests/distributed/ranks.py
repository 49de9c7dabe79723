"""What the workers share: a model, its training on this rank's part of the data, and what has to be equal."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fxgraft

RANK, SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class NormedBlock(nn.Module):
    """A residual block. (No batch normalisation: DDP makes its statistics equal at the next forward only.)"""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(width), nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(torch.relu(self.wide(self.norm(x))))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), NormedBlock(12), NormedBlock(12), nn.Linear(12, 3))


class Run:
    """One host in training on every rank.

    Args:
        wrap: whether to train through DistributedDataParallel.
        make: the model.
        prepare: called with the host before it is wrapped.
        ddp: options of DistributedDataParallel.
        load: a file to go on from.
        dtype: of the model and the data.
        optimizer: of parameters.
        **options: of the manager.
    """

    def __init__(
        self,
        wrap: bool = True,
        make: Callable[[], nn.Module] = model,
        prepare: Callable[[fxgraft.Host], None] | None = None,
        ddp: dict[str, Any] | None = None,
        load: str | None = None,
        dtype: torch.dtype = torch.float32,
        optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.AdamW(p, 1e-2),
        **options: Any,
    ):
        self.dtype = dtype
        self.host = fxgraft.trace(make().to(dtype), (torch.zeros(4, 6, dtype=dtype),))
        if prepare is not None:
            prepare(self.host)
        self.model: nn.Module = DistributedDataParallel(self.host, **(ddp or {})) if wrap else self.host
        self.optimizer = optimizer(self.host.parameters())
        arguments = self.model, self.optimizer
        self.manager = (
            fxgraft.SeedManager.load(load, *arguments, **options)
            if load
            else fxgraft.SeedManager(*arguments, **options)
        )
        self.steps = 0

    def batch(self) -> tuple[Tensor, Tensor]:
        """This rank's share of the step's 8 examples; alone, all of them."""
        draw = torch.Generator().manual_seed(100 + self.steps)
        x, y = torch.randn(8, 6, generator=draw), torch.randint(0, 3, (8,), generator=draw)
        share = 8 // SIZE if isinstance(self.model, DistributedDataParallel) else 8
        start = RANK * share if share < 8 else 0
        return x[start : start + share].to(self.dtype), y[start : start + share]

    def backward(self) -> Tensor:
        x, y = self.batch()
        loss = nn.functional.cross_entropy(self.model(x), y)
        loss.backward()
        return loss

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(list(self.host.host_parameters()), 1.0)
        self.optimizer.step()
        self.manager.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def train(self, steps: int = 1, same: bool = True) -> None:
        for _ in range(steps):
            self.backward()
            self.update()
            if same:
                self.assert_ranks_are_the_same()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that a rank knows: weights, buffers, optimizer state."""
        yield from self.host.state_dict().items()
        names = {id(p): name for name, p in self.host.named_parameters()}
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    yield f"{key} of {names[id(parameter)]}", value

    def assert_ranks_are_the_same(self) -> None:
        """To the bit, in everything."""
        mine = {name: _hash(tensor) for name, tensor in self.tensors()}
        found: list[Any] = [None] * SIZE
        dist.all_gather_object(found, mine)
        for rank, theirs in enumerate(found):
            assert theirs.keys() == found[0].keys(), (rank, theirs.keys() ^ found[0].keys())
            different = [name for name in theirs if theirs[name] != found[0][name]]
            assert not different, f"step {self.steps}: rank {rank} differs from rank 0 in {different[:5]}"


def _hash(tensor: Tensor) -> str:
    plain = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(plain.numpy().tobytes()).hexdigest()


@contextmanager
def group(timeout: float = 60.0) -> Iterator[None]:
    """The process group of a worker; its process ends with it.

    At once: in one of eight runs a plain DistributedDataParallel over gloo aborts on its way out of the
    interpreter ("terminate called without an active exception", torch 2.13), after all is done.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    yield
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


def say(what: str) -> None:
    """Print once, and when all ranks have come so far."""
    dist.barrier()
    if RANK == 0:
        print(f"ok {what}", flush=True)
