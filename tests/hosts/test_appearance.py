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
