"""Inserted blocks in the ``forward`` of the block that they stand behind (or in front of).

    def forward(self, h, mask):                   def forward(self, h, mask):
        add = h + self.attn(h, mask)                  add = h + self.attn(h, mask)
        return add                                    block = self._graft_0.module(add, mask)
                                                      return block

An inserted block gets all that its neighbour gets, so a call of another form than the traced one, which has
no graph here, runs it as well: the value goes from block to block (`without_graph`). A block with an alpha, a
seed that is no fossil yet, runs in the graph only, as any seed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch.fx as fx
from torch import nn

from fxgraft.capture.call_form import CallForm
from fxgraft_passes import Call, GraftSpec, operators
from fxgraft_passes.graft_nodes import Arguments

Specs = tuple[tuple[str, GraftSpec], ...]
"""The attributes of a module that hold grafts, and how these are wired, in their order."""


def arguments(graph: fx.Graph, form: CallForm, call: Call) -> Arguments:
    """What a block is called with where the region of ``form`` is: the inputs of its graph, and constants."""
    nodes = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    value = nodes[next(known.name for known in form.inputs if known.expression == call.input)]
    args, kwargs = form.bind(nodes)
    place: int | str = next((i for i, given in enumerate(args) if given is value), call.input)
    return args, kwargs, place


def without_graph(forward: Callable[..., Any], specs: Specs) -> tuple[Callable[..., Any], bool]:
    """What runs a call of another form, and whether it lacks something of what grew.

    Args:
        forward: of the module's class.
        specs: of all grafts of the region.
    """
    fossils = tuple(
        (name, spec.call, spec.fossil)
        for name, spec in specs
        if spec.call is not None and spec.fossil is not None
    )
    return (_chain(forward, fossils) if fossils else as_the_class_has_it), len(fossils) < len(specs)


def as_the_class_has_it(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
    """The ``forward`` that the module's class has now: another one may be in its place since the trace."""
    return type(module).forward(module, *args, **kwargs)


@functools.cache  # equal regions have equal functions, and share their code
def _chain(forward: Callable[..., Any], fossils: tuple[tuple[str, Call, float], ...]) -> Callable[..., Any]:
    place = list(inspect.signature(forward).parameters).index(fossils[0][1].input) - 1
    in_front = [(name, call, alpha) for name, call, alpha in fossils if call.before]
    behind = [(name, call, alpha) for name, call, alpha in fossils if not call.before]

    def given(args: tuple[Any, ...], kwargs: dict[str, Any], name: str, value: Any) -> Any:
        if name in kwargs:
            return args, {**kwargs, name: value}
        return (*args[:place], value, *args[place + 1 :]), kwargs

    def run(module: Any, name: str, call: Call, alpha: float, value: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = given(args, kwargs, call.input, value)
        made = getattr(module, name).module(*args, **kwargs)
        made = made if call.element is None else made[call.element]
        return made if alpha == 1 else operators.folded(value, made, "convex", alpha)

    def chained(self: Any, *args: Any, **kwargs: Any) -> Any:
        for name, call, alpha in in_front:
            value = kwargs[call.input] if call.input in kwargs else args[place]
            value = run(self, name, call, alpha, value, args, kwargs)
            args, kwargs = given(args, kwargs, call.input, value)
        out = forward(self, *args, **kwargs)
        for name, call, alpha in behind:
            element = call.element
            value = run(self, name, call, alpha, out if element is None else out[element], args, kwargs)
            if element is None:
                out = value
            else:
                out = type(out)(value if i == element else other for i, other in enumerate(out))
        return out

    return chained
