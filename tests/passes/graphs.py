"""Small graph modules, and what the tests of the passes look at in one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn

from fxgraft_passes.observe import observe

GOLDEN = Path(__file__).parent.parent / "golden"
REGENERATE = "FXGRAFT_REGENERATE_GOLDEN"


class LayerReluLayer(nn.Module):
    """The example of the passes' docstrings."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 4)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc2(self.relu(self.fc1(x)))


class Twice(nn.Module):
    """One module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.fc(self.relu(self.fc(x))))


class InPlace(nn.Module):
    """The consumer of ``conv`` writes into its value."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).mean((2, 3)))


class Fan(nn.Module):
    """One value with many consumers: an operand twice, a keyword, nested in a list, and the output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        y = self.fc(x)
        return {"sum": y + y, "cat": torch.cat([x, y], dim=1), "clamp": torch.clamp(input=y, min=0.1), "y": y}


def traced(net: nn.Module) -> fx.GraphModule:
    """The graph module of ``net``, observed if it takes one batch of the usual form."""
    graph_module = fx.symbolic_trace(net)
    shape = (3, 2, 6, 6) if isinstance(net, InPlace) else (3, 4)
    with suppress(TypeError, RuntimeError):  # it takes others
        observe(graph_module, torch.zeros(shape, dtype=next(net.parameters(), torch.empty(0)).dtype))
    return graph_module


def state_of(graph_module: fx.GraphModule) -> dict[str, Any]:
    """All that a pass may change: graph, marks, user order, code, attributes."""
    graph = graph_module.graph
    return {
        "graph": str(graph),
        "users": [(node.name, [user.name for user in node.users]) for node in graph.nodes],
        "grafts": [(node.name, node.meta.get("graft"), node.meta.get("graft_of")) for node in graph.nodes],
        "code": graph_module.code,
        "modules": [name for name, _ in graph_module.named_modules()],
        "keys": list(graph_module.state_dict()),
    }


def identity_of(graph_module: fx.GraphModule) -> tuple[object, object]:
    """The graph and the generated function: other objects once a graph is swapped or code generated."""
    return graph_module.graph, type(graph_module).forward


def input_for(net: nn.Module) -> Tensor:
    """An example batch."""
    return torch.randn(3, 2, 6, 6) if isinstance(net, InPlace) else torch.randn(3, 4)


def gradients_after(graph_module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Parameter -> gradient of a loss with another weight for each output."""
    graph_module.zero_grad()
    out = graph_module(x)
    (out * torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return {n: p.grad.clone() for n, p in graph_module.named_parameters() if p.grad is not None}


def check_golden(name: str, text: str) -> None:
    """Compare with ``tests/golden/<name>.txt``, or write it where ``FXGRAFT_REGENERATE_GOLDEN`` is set."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get(REGENERATE):
        path.write_text(text)
    assert path.read_text() == text, f"{path.name}: regenerate with {REGENERATE}=1 if the change is meant"
