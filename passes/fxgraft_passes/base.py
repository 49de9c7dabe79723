"""The pass contract: a frozen dataclass, called on a ``GraphModule``, functional in its graph.

    gm --Pass(options)--> PassResult(gm, modified)

A pass rewrites a *copy* of the graph and swaps it in, verified and recompiled, when all went well:
a pass that raises has changed nothing. The same object is returned, as ``torch.fx``'s ``PassManager``
expects, and no code is generated where nothing was modified.

A graph that is swapped in generates its code, which can fail (a name that Python does not take); so can what
comes before and after. What a pass changes are attributes and registers of modules, and the code of the
class that each ``GraphModule`` has of its own: `all_or_nothing` restores these.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.fx as fx
from torch import nn
from torch.fx.passes.infra.pass_base import PassResult

from fxgraft_passes import _torch
from fxgraft_passes._recovering import recover
from fxgraft_passes.errors import FxGraftError
from fxgraft_passes.metadata import metadata
from fxgraft_passes.proofs import verify

_REGISTERS = ("_modules", "_parameters", "_buffers")
_CODE = ("forward", "__call__", "_wrapped_call")


@contextmanager
def all_or_nothing(graph_module: fx.GraphModule) -> Iterator[None]:
    """Change a module inside; if that fails, its graph, its code and its attributes come back as they were.

    What is inside of tensors does not.
    """
    kind = type(graph_module)
    code = {name: vars(kind)[name] for name in _CODE if name in vars(kind)}
    modules = [_Attributes(module) for module in graph_module.modules()]
    try:
        yield
    except BaseException:
        for attributes in modules:
            attributes.restore()
        for name in _CODE:
            if name in code:
                setattr(kind, name, code[name])
            elif name in vars(kind):
                delattr(kind, name)
        raise


class _Attributes:
    """What a module has now."""

    def __init__(self, module: nn.Module):
        self._module, self._own = module, dict(vars(module))
        self._registers: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (register, dict(register)) for register in (vars(module)[name] for name in _REGISTERS)
        ]

    def restore(self) -> None:
        """Restore what was saved."""
        for held, before in [(vars(self._module), self._own), *self._registers]:
            held.clear()
            held.update(before)


class GraphPass(ABC):
    """Base class of the passes. `rewrite` changes the graph, `attach` adds the modules that it refers to."""

    @abstractmethod
    def rewrite(self, graph: fx.Graph) -> bool:
        """Rewrite a graph in place, without its modules.

        Args:
            graph: the graph; if it raises, the graph may be half changed, and is to be thrown away.

        Returns:
            Whether anything changed.
        """

    def attach(self, graph_module: fx.GraphModule) -> None:  # noqa: B027
        """Add to the module what the rewritten graph refers to. Most passes add nothing.

        Args:
            graph_module: the module whose graph was rewritten.
        """

    def __call__(self, graph_module: fx.GraphModule) -> PassResult:
        with all_or_nothing(graph_module):
            return self.apply(graph_module)

    def apply(self, graph_module: fx.GraphModule) -> PassResult:
        """The pass, as it is called; if it raises, the call puts everything back.

        Args:
            graph_module: the module.
        """
        recover(graph_module.graph)
        graph = copy_graph(graph_module.graph)
        if not self.rewrite(graph):
            return PassResult(graph_module, False)
        verify(graph)
        self.attach(graph_module)
        graph_module.graph = graph  # generates the code
        return PassResult(graph_module, True)


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy with the same node names and metadata, so that the copy's code reads the same."""
    copied = _torch.empty_like_graph(graph)
    _torch.take_code_generator(copied, graph)
    env: dict[fx.Node, fx.Node] = {}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in env:
            raise FxGraftError(
                f"the graph is malformed: {node} is read before it is computed: expected nodes in the order "
                "in which they run"
            )
        return env[node]

    for node in graph.nodes:
        env[node] = copied.node_copy(node, copy_of)
        if slot := metadata(node).get("slot"):
            metadata(env[node])["slot"] = dataclasses.replace(slot, node=env[node])
    return copied


def node_named(graph: fx.Graph, name: str) -> fx.Node | None:
    """The node of that name, or None."""
    return next((node for node in graph.nodes if node.name == name), None)
