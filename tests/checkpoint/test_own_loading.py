"""Models with a part in how their states are written and read: versions, hooks, a loading of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.checkpoint import file
from fxgraft.errors import CheckpointError
from tests.harness import assert_same_bits, frozen

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


class Scaled(nn.Linear):
    """Its first version kept the weight at half the scale."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version", 1) < 2:
            state[f"{prefix}weight"] = state[f"{prefix}weight"] * 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Two(nn.Module):
    def __init__(self, head: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 12), head(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


class Halved(Two):
    """Its states have half of a weight; a hook doubles it again."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[nn.Module] = []
        self._register_state_dict_hook(self.write)
        self.register_load_state_dict_pre_hook(self.read)
        self.register_load_state_dict_post_hook(lambda module, keys: self.seen.append(module))

    @staticmethod
    def write(module: nn.Module, state: Any, prefix: str, metadata: Any) -> Any:
        state[f"{prefix}head.weight"] = state[f"{prefix}head.weight"] / 2
        return state

    @staticmethod
    def read(module: nn.Module, state: Any, prefix: str, *rest: Any) -> None:
        state[f"{prefix}head.weight"] = state[f"{prefix}head.weight"] * 2


class Renamed(Halved):
    """Its states have other names than its members."""

    @staticmethod
    def write(module: nn.Module, state: Any, prefix: str, metadata: Any) -> Any:
        for key in ("weight", "bias"):
            state[f"{prefix}old.{key}"] = state.pop(f"{prefix}head.{key}")
        return state

    @staticmethod
    def read(module: nn.Module, state: Any, prefix: str, *rest: Any) -> None:
        for key in ("weight", "bias"):
            state[f"{prefix}head.{key}"] = state.pop(f"{prefix}old.{key}")


class Overriding(Halved):
    """The same in its own code."""

    def __init__(self) -> None:
        Two.__init__(self)
        self._register_state_dict_hook(self.write)

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        self.read(self, state, prefix)
        super()._load_from_state_dict(state, prefix, *rest)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "version": lambda: Two(Scaled),
    "values": Halved,
    "names": Renamed,
    "own code": Overriding,
}


def made(make: Callable[[], nn.Module]) -> tuple[fxgraft.Host, torch.optim.Optimizer]:
    host = fxgraft.trace(make(), (X,))
    return host, torch.optim.SGD(host.parameters(), 0.1)


@pytest.mark.parametrize("seeds", [0, 1])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_gets_its_own_weights_back(name: str, seeds: int, tmp_path: Path) -> None:
    host, optimizer = made(MODELS[name])
    manager = fxgraft.SeedManager(host, optimizer)
    if seeds:
        manager.germinate("relu", "mlp", name="a")
        manager.blend("a", steps=0)
    manager.save(tmp_path / "run")
    expected = frozen(host(X))
    again, other = made(MODELS[name])
    fxgraft.SeedManager.load(tmp_path / "run", again, other)
    assert_same_bits(frozen(again(X)), expected, "SeedManager.load")
    model = fxgraft.load_model(tmp_path / "run", MODELS[name]())
    assert_same_bits(frozen(model(X)), expected, "load_model")
    host.load_state_dict(host.state_dict())
    assert_same_bits(frozen(host(X)), expected, "load_state_dict")
    plain = MODELS[name]()
    plain.load_state_dict(host.model_state())
    manager.cull_all()
    assert_same_bits(frozen(plain(X)), frozen(host(X)), "model_state")


def test_a_file_without_versions_loads_as_before(tmp_path: Path) -> None:
    host, optimizer = made(MODELS["version"])
    fxgraft.SeedManager(host, optimizer).save(tmp_path / "run")
    manifest, tensors = file.read(tmp_path / "run")
    for damaged in ({"$dict": [["", 3]]}, 3):
        file.write(tmp_path / "run", {**manifest, "versions": damaged}, tensors)
        with pytest.raises(CheckpointError):
            fxgraft.SeedManager.load(tmp_path / "run", *made(MODELS["version"]))
    del manifest["versions"]
    file.write(tmp_path / "run", manifest, tensors)
    again, other = made(MODELS["version"])
    fxgraft.SeedManager.load(tmp_path / "run", again, other)
    assert torch.equal(again.head.weight, host.head.weight * 2)


def test_hooks_of_the_model_and_of_the_host_are_called() -> None:
    called: list[Any] = []
    model = Halved()
    model.register_load_state_dict_pre_hook(lambda module, *_: called.append(module.body))
    host = fxgraft.trace(model, (X,))
    del model
    host.register_state_dict_pre_hook(lambda *_: called.append("write"))
    host.register_load_state_dict_pre_hook(lambda *_: called.append("read"))
    host.load_state_dict(copy.deepcopy(host.state_dict()))
    assert called == ["write", host.body, "read"]
    assert len(host.seen) == 1


def test_a_hook_that_fails_leaves_host_and_optimizer_as_before(tmp_path: Path) -> None:
    """Weights of modules before it had been loaded by then."""

    class Refusing(Scaled):
        refuses = False

        def _load_from_state_dict(self, *given: Any) -> None:
            if self.refuses:
                raise RuntimeError("not this one")
            super()._load_from_state_dict(*given)

    host, optimizer = made(lambda: Two(Refusing))
    manager = fxgraft.SeedManager(host, optimizer)
    manager.germinate("relu", "mlp", name="a")
    manager.save(tmp_path / "run")
    again, other = made(lambda: Two(Refusing))
    before = frozen(again.state_dict())
    again.head.refuses = True
    with pytest.raises(CheckpointError, match=r"not this one.*host and optimizers are as before"):
        fxgraft.SeedManager.load(tmp_path / "run", again, other)
    assert_same_bits(frozen(again.state_dict()), before, "host")
    assert sum(len(group["params"]) for group in other.param_groups) == 4
