"""What the workers about sharded hosts share: a model, its training, and what has to be equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import fxgraft
from fxgraft.util.bits import bits
from tests.distributed.ranks import RANK, SIZE, NormedBlock


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), NormedBlock(12), NormedBlock(12), nn.Linear(12, 3)).to(dtype)


def shard(host: fxgraft.Host) -> fxgraft.Host:
    """As docs/distributed.md has it: children first, then the host."""
    for child in (host.get_submodule("1"), host.get_submodule("2")):
        fully_shard(child)
    fully_shard(host)
    return host


class Run:
    """One host in training: sharded, or whole on each process (``sharded=False``)."""

    def __init__(
        self,
        sharded: bool = True,
        dtype: torch.dtype = torch.float32,
        load: str | None = None,
        optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.AdamW(p, 1e-2),
        **options: Any,
    ):
        self.sharded, self.dtype = sharded, dtype
        self.host = fxgraft.trace(model(dtype), (torch.zeros(4, 6, dtype=dtype),))
        if sharded:
            shard(self.host)
            options = {"shard_from": 64, **options}
        self.optimizer = optimizer(self.host.parameters())
        make = fxgraft.SeedManager if load is None else _loader(load)
        self.manager = make(self.host, self.optimizer, **options)
        self.steps = 0

    def batch(self) -> tuple[Tensor, Tensor]:
        """This rank's share of the step's 8 examples; alone, all of them."""
        draw = torch.Generator().manual_seed(100 + self.steps)
        x, y = torch.randn(8, 6, generator=draw), torch.randint(0, 3, (8,), generator=draw)
        share, start = (8 // SIZE, RANK * (8 // SIZE)) if self.sharded else (8, 0)
        return x[start : start + share].to(self.dtype), y[start : start + share]

    def backward(self) -> None:
        x, y = self.batch()
        nn.functional.cross_entropy(self.host(x), y).backward()

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.backward()
            self.optimizer.step()
            self.manager.step()
            self.steps += 1

    def weights(self) -> dict[str, Tensor]:
        """Everything that is saved, gathered."""
        found = {name: gathered(tensor) for name, tensor in self.host.state_dict().items()}
        names = {id(p): name for name, p in self.host.named_parameters()}
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                found[f"{key} of {names[id(parameter)]}"] = gathered(value)
        return found

    def host_gradients(self) -> dict[str, Tensor]:
        return {
            name: gathered(p.grad)
            for name, p in self.host.named_parameters()
            if p.grad is not None and not name.startswith("_seeds.")
        }


def _loader(path: str) -> Callable[..., fxgraft.SeedManager]:
    return lambda *args, **options: fxgraft.SeedManager.load(path, *args, **options)


def gathered(tensor: Tensor) -> Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().clone()


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """To the bit."""
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    different = [n for n in a if a[n].shape != b[n].shape or not torch.equal(bits(a[n]), bits(b[n]))]
    assert not different, different[:5]


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    for name, value in a.items():
        torch.testing.assert_close(
            value, b[name], rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )
