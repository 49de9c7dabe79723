"""Attributes of a model whose names a host has for itself: the model keeps its own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.capture.capture import Capture
from fxgraft.host.host import Host


class Named(nn.Module):
    """A layer, and attributes of any names, which its forward reads."""

    def __init__(self, names: list[str]):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.names = names
        for name in names:
            setattr(self, name, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        for name in self.names:
            y = y * getattr(self, name)
        return y


def names_of_a_host() -> list[str]:
    """All that a host sets for itself, and nn.Module does not."""
    own = set(Host(Capture(Named([]), (torch.randn(2, 4),), {})).__dict__)
    return sorted(own - set(nn.Module().__dict__) - {"_root"})


NAMES = names_of_a_host()


@pytest.mark.parametrize("name", NAMES)
def test_an_attribute_of_the_model_stays_the_models(name: str):
    model, x = Named([name]), torch.randn(2, 4)
    wanted = model(x)
    host = fxgraft.trace(model, (x,))
    assert getattr(model, name) == 3
    assert torch.equal(host(x), wanted)
    assert torch.equal(copy.deepcopy(host)(x), wanted)
    manager = fxgraft.SeedManager(host)
    manager.germinate("layer", "mlp", hidden=2)
    assert torch.equal(host(x), wanted)
    host.clear()
    host.retrace((x,), {})
    assert torch.equal(host(x), wanted)
    assert getattr(fxgraft.unwrap(host), name) == 3


def test_what_is_set_from_outside_is_the_models_where_the_host_has_none():
    host = fxgraft.trace(Named(["scale"]), (torch.randn(2, 4),))
    host.scale = 5
    assert host._root.scale == 5
    assert {"_values", "_channels", "_running", "_traced", "_own", "widenings"} <= set(NAMES)
