"""A host looks like its model to code that reads the class: signature, name, base class."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import Host
from tests.harness import assert_same_bits


class NamesOfAHost(nn.Module):
    """Its own names are some that a host has as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None, *, scale: float = 2.0) -> Any:
        return self.a(x) * scale

    def clear(self) -> str:
        return "the model's"


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def through_pickle(host: Host) -> Any:
    return pickle.loads(pickle.dumps(host))


def test_signature_and_name_are_the_models() -> None:
    host = fxgraft.trace(NamesOfAHost(), (X,))
    assert isinstance(host, Host)
    assert inspect.signature(host.forward) == inspect.signature(NamesOfAHost().forward)
    assert inspect.signature(type(host).forward) == inspect.signature(NamesOfAHost.forward)
    assert type(host).__name__ == "Host[NamesOfAHost]"
    assert type(host) is type(fxgraft.trace(NamesOfAHost(), (X,))), "one class for each class of models"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, through_pickle])
def test_copies_are_of_the_class_and_run(copied: Callable[[Host], Any]) -> None:
    host = fxgraft.trace(NamesOfAHost(), (X,))
    again = copied(host)
    assert type(again) is type(host)
    assert_same_bits(again(X, scale=3.0), host(X, scale=3.0))


def test_methods_of_a_host_are_its_own() -> None:
    host = fxgraft.trace(NamesOfAHost(), (X,))
    fxgraft.SeedManager(host).germinate("a", "mlp")
    host.clear()
    assert not host.structure.placements


class NamesOfOurs(nn.Module):
    """Its members have names that a host has for something else."""

    def __init__(self) -> None:
        super().__init__()
        self.slots, self.regions = nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4)
        self.graft = nn.Parameter(torch.ones(4))
        self.register_buffer("phase", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.regions(self.slots(x)) * self.graft + self.phase


def test_members_with_names_of_ours_are_found_by_name():
    model = NamesOfOurs()
    host = fxgraft.trace(model, (torch.zeros(2, 4),))
    assert {name for name, _ in model.named_modules()} == {"", "slots", "slots.0", "regions"}
    for name, module in host.named_modules():
        assert host.get_submodule(name) is module
    for name, parameter in model.named_parameters():
        assert host.get_parameter(name) is parameter
    assert host.get_buffer("phase") is model._buffers["phase"]
    with pytest.raises(AttributeError, match="nothing"):
        host.get_submodule("slots.nothing")
    with pytest.raises(AttributeError, match="nothing"):
        host.get_parameter("nothing")
