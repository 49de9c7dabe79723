"""A region: one module, the call that it was traced under, and its graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.fx as fx
from torch import nn

from fxgraft.capture.call_form import CallForm
from fxgraft.codegen import Generated, generate
from fxgraft_passes import FindSlots, Slot, rejections_of, slots_of


class Region:
    """A module whose ``forward`` is known as a graph.

    Attributes:
        name: the module's qualified name; ``""`` is the root.
        module: the module itself, of the host's tree.
        form: the call that the graph is right for.
        base: the graph without seeds. Never changed.
    """

    def __init__(self, name: str, module: nn.Module, form: CallForm, base: fx.Graph):
        self.name = name
        self.module = module
        self.form = form
        self.base = base
        self._live: Generated | None = None
        FindSlots(region=name).rewrite(base)

    @property
    def graph(self) -> fx.Graph:
        """The graph that runs now, grafts included."""
        return self._live.graph if self._live else self.base

    @property
    def code(self) -> str:
        """The generated source that runs now (for an empty region: that would run)."""
        return (self._live or self.generate(self.base)).source

    def generate(self, graph: fx.Graph) -> Generated:
        """The ``forward`` of a graph made from this region's, not installed yet."""
        return generate(graph, self.form, type(self.module).forward)

    @property
    def slots(self) -> list[Slot]:
        """The slots of this region, in the order of its graph."""
        return slots_of(self.base)

    @property
    def rejected(self) -> Mapping[str, str]:
        """The nodes of this region that are no slots, with the reason."""
        return rejections_of(self.base)

    def install(self, generated: Generated | None) -> None:
        """Let ``generated`` be the module's ``forward``; None: the class's own again."""
        self._live = generated
        if generated is None:
            self.module.__dict__.pop("forward", None)
        else:
            forward: Callable[..., Any] = generated.bound_to(self.module)
            self.module.__dict__["forward"] = forward
