"""Buffers that are in no ``state_dict``, and that a model fills, enlarges or empties as it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.checkpoint import file
from fxgraft.errors import CheckpointError
from tests.harness import assert_same_bits, frozen, warnings_in

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
SAID = "buffers that are in no state_dict are now as in the saved run"


class Cached(nn.Module):
    cache: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 12), nn.Linear(12, 2)
        self.register_buffer("cache", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.renew(x)
        hidden = torch.relu(self.first(x))
        return self.last(hidden if self.cache is None else hidden * self.cache[: len(x), None])

    def renew(self, x: Tensor) -> None:
        """What a forward does to the cache."""


class Grows(Cached):
    def renew(self, x: Tensor) -> None:
        if self.cache is not None and len(self.cache) < len(x):
            self.cache = torch.arange(len(x)).float()


class Fills(Cached):
    def __init__(self) -> None:
        super().__init__()
        self.cache = None

    def renew(self, x: Tensor) -> None:
        if self.cache is None:
            self.cache = torch.rand(8)


class Empties(Cached):
    def renew(self, x: Tensor) -> None:
        if len(x) > 2:
            self.cache = None


class Expanded(Cached):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.ones(1).expand(8), persistent=False)


class Registers(Cached):
    def __init__(self) -> None:
        super().__init__()
        del self.cache

    def renew(self, x: Tensor) -> None:
        if "cache" not in self._buffers:
            self.register_buffer("cache", torch.rand(8), persistent=False)


def made(model: type[nn.Module]) -> fxgraft.Host:
    torch.manual_seed(0)
    return fxgraft.trace(model(), (X[:2],))


def saved(model: type[nn.Module], path: Path) -> fxgraft.Host:
    host = made(model)
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    host(X).sum().backward()
    optimizer.step()
    manager.step()
    manager.save(path)
    return host


@pytest.mark.parametrize("model", [Grows, Fills, Empties, Registers, Expanded])
def test_a_cache_is_as_it_was(
    model: type[nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = saved(model, tmp_path / "run")
    again = made(model)
    again.double().float()  # a cache belongs where the model's other tensors are
    fxgraft.SeedManager.load(tmp_path / "run", again, torch.optim.SGD(again.parameters(), 0.1))
    assert_same_bits(frozen(dict(again.named_buffers())), frozen(dict(host.named_buffers())), "buffers")
    assert dict(again.state_dict()).keys() == dict(host.state_dict()).keys()
    assert_same_bits(frozen(again(X)), frozen(host(X)), "output")
    assert [SAID in text for text in warnings_in(caplog)] == ([] if model is Expanded else [True])
    evaluated = fxgraft.load_model(tmp_path / "run", model())
    assert_same_bits(frozen(evaluated(X)), frozen(host(X)), "load_model")


def test_a_buffer_without_a_place_and_one_that_is_missing(tmp_path: Path) -> None:
    saved(Grows, tmp_path / "run")
    manifest, tensors = file.read(tmp_path / "run")
    for names, what in ((["cache", "first"], "no place"), (["cache", "a.b"], "no place"), ([], "has none")):
        packed = {"$dict": [[name, {"$tensor": "buffer.cache"}] for name in names]}
        file.write(tmp_path / "run", {**manifest, "buffers": packed}, tensors)
        host = made(Grows)
        before = frozen(dict(host.state_dict()))
        with pytest.raises(CheckpointError, match=rf"{what}.*Expected a host of the model that was saved"):
            fxgraft.SeedManager.load(tmp_path / "run", host, torch.optim.SGD(host.parameters(), 0.1))
        assert_same_bits(frozen(dict(host.state_dict())), before, "host")
