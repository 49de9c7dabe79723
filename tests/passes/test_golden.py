"""The text of graphs and code that each pass writes, compared exactly with ``tests/golden``.

``FXGRAFT_REGENERATE_GOLDEN=1 pytest tests/passes/test_golden.py`` writes the files anew.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.fx as fx
from torch import nn

from fxgraft_passes import (
    Cull,
    FindSlots,
    Fossilize,
    Germinate,
    GraftSpec,
    Phase,
    SplitEdge,
    rejections_of,
    slots_of,
)
from fxgraft_passes.graft import MODES
from tests.passes.graphs import GOLDEN, Fan, InPlace, LayerReluLayer, Twice, check_golden, input_for, traced


def germinated(mode: str, phase: Phase, isolated: bool = True) -> fx.GraphModule:
    spec = GraftSpec(mode, isolated=isolated)
    return Germinate("relu", "a", nn.Linear(4, 4), spec, phase)(traced(LayerReluLayer())).graph_module


def fossilized(mode: str, alpha: float) -> fx.GraphModule:
    return Fossilize("a", alpha)(germinated(mode, Phase.BLENDED)).graph_module


def two_seeds(*names: str) -> fx.GraphModule:
    graph_module = traced(LayerReluLayer())
    for name in names:
        Germinate("relu", name, nn.Linear(4, 4))(graph_module)
    return graph_module


def one_of_two_culled() -> fx.GraphModule:
    return Cull("a")(two_seeds("a", "b")).graph_module


def second_call() -> fx.GraphModule:
    return Germinate("relu_1", "a", nn.Linear(4, 4))(traced(Twice())).graph_module


def in_place(phase: Phase) -> fx.GraphModule:
    spec = GraftSpec(copy=True)
    return Germinate("conv", "a", nn.Conv2d(3, 3, 1), spec, phase)(traced(InPlace())).graph_module


def branch(mode: str, phase: Phase, copy_source: bool = False) -> fx.GraphModule:
    spec = GraftSpec(mode, copy_source=copy_source)
    seed = nn.Linear(4, 2)
    return Germinate("fc2", "a", seed, spec, phase, source="fc1")(traced(LayerReluLayer())).graph_module


def printed(graph_module: fx.GraphModule) -> str:
    return f"{graph_module.graph}\n{graph_module.code.rstrip()}\n"


def found(net: nn.Module) -> str:
    graph_module = FindSlots(example_args=(input_for(net),))(traced(net)).graph_module
    slots = [
        f"{s.name}: node {s.node}, {tuple(s.shape)} {s.dtype} on {s.device}"
        f"{', channels_last' if s.channels_last else ''}{', copy' if s.copy else ''}"
        for s in slots_of(graph_module.graph)
    ]
    reasons = [f"{name}: no slot, {reason}" for name, reason in rejections_of(graph_module.graph).items()]
    return "\n".join([*slots, *reasons]) + "\n"


class Rejected(nn.Module):
    """A slot, and values that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 4))
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        size = x.size(0)
        y = self.fc(x).view(size, 4)
        y.argmax(1)
        return y * self.scale.sum(), y > 0


CASES: dict[str, Callable[[], str]] = {
    "host": lambda: printed(traced(LayerReluLayer())),
    **{
        f"germinate-{mode}-{phase.value}": lambda m=mode, p=phase: printed(germinated(m, p))
        for mode, phase in product(MODES, Phase)
    },
    **{
        f"germinate-{mode}-{phase.value}-attached": lambda m=mode, p=phase: printed(germinated(m, p, False))
        for mode, phase in product(MODES, Phase)
    },
    **{
        f"fossilize-{mode}-{alpha}": lambda m=mode, a=alpha: printed(fossilized(m, a))
        for mode, alpha in product(MODES, (1.0, 0.5))
    },
    "two-seeds-ab": lambda: printed(two_seeds("a", "b")),
    "two-seeds-ba": lambda: printed(two_seeds("b", "a")),
    "two-seeds-one-culled": lambda: printed(one_of_two_culled()),
    "shared-module-second-call": lambda: printed(second_call()),
    **{
        f"branch-{mode}-{phase.value}": lambda m=mode, p=phase: printed(branch(m, p))
        for mode, phase in product(("residual", "convex"), Phase)
    },
    "branch-copied": lambda: printed(branch("residual", Phase.ISOLATED, True)),
    "branch-fossilized": lambda: printed(Fossilize("a")(branch("residual", Phase.BLENDED)).graph_module),
    "branch-copied-fossilized": lambda: printed(
        Fossilize("a", 0.5)(branch("convex", Phase.BLENDED, True)).graph_module
    ),
    "split-edge": lambda: printed(SplitEdge("fc", "clamp")(traced(Fan())).graph_module),
    "in-place-isolated": lambda: printed(in_place(Phase.ISOLATED)),
    "in-place-blended": lambda: printed(in_place(Phase.BLENDED)),
    "find-slots-net": lambda: found(LayerReluLayer()),
    "find-slots-twice": lambda: found(Twice()),
    "find-slots-in-place": lambda: found(InPlace()),
    "find-slots-rejected": lambda: found(Rejected()),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    check_golden(name, CASES[name]())


def test_there_is_a_case_for_every_file():
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == sorted(CASES)


@pytest.mark.parametrize(("mode", "phase"), list(product(MODES, Phase)))
def test_cull_leaves_the_text_of_the_host(mode, phase):
    check_golden("host", printed(Cull("a")(germinated(mode, phase)).graph_module))
