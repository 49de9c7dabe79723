"""The engine of a host is no part of it: those names are the model's."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.host import engine
from fxgraft.host._links import Links

ENGINE = [name for name, _ in inspect.getmembers(engine, inspect.isfunction) if not name.startswith("_")]
LINKS = list(Links.__dataclass_fields__)


class Named(nn.Module):
    """A model that has attributes of all these names."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        for name in (*ENGINE, *LINKS):
            if name != "clear":  # which a host has
                setattr(self, name, f"the model's {name}")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def test_a_model_may_have_attributes_of_the_engines_names() -> None:
    torch.manual_seed(0)
    model, x = Named(), torch.randn(3, 4)
    host = fxgraft.trace(model, (x,))
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    manager = fxgraft.SeedManager(host, optimizer, check_every=1)
    manager.germinate("layers.1", "mlp", name="a")
    host(x).sum().backward()
    optimizer.step()
    manager.step()
    assert manager.measure("a", lambda: host(x).square().mean()) is not None
    manager.cull("a")
    assert len(ENGINE) > 10
    for name in (*ENGINE, *LINKS):
        if name != "clear":
            assert getattr(host, name) == f"the model's {name}"
    host.borrowed = "another"
    assert engine.trees(host)[0].borrowed == "another"
