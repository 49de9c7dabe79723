"""From a graph to a ``forward``: the only place where code is generated.

Functions of equal source share one object, so that equal regions share one code object (and
``torch.compile`` one compiled graph). Unlike ``GraphModule.recompile`` nothing stays behind: source
lines leave ``linecache`` with the function.
"""

from __future__ import annotations

import linecache
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch.fx as fx
from torch import nn

from fxgraft.capture._guarded_entry import entry_scope, entry_source
from fxgraft.capture.call_form import CallForm
from fxgraft.capture.fallback import nothing_lost
from fxgraft_passes.proofs import verify

_functions: weakref.WeakValueDictionary[Any, FunctionType] = weakref.WeakValueDictionary()
_serial = 0


@dataclass(frozen=True)
class Generated:
    """A verified graph with the function that runs it. Holds no tensors.

    Attributes:
        graph: what runs.
        source: Python, as printed by ``region.code``.
        function: ``forward(self, ...)``; ``self`` is the region's module.
    """

    graph: fx.Graph
    source: str
    function: FunctionType

    def bound_to(self, module: nn.Module) -> Callable[..., Any]:
        """The function as a method of ``module``."""
        return MethodType(self.function, module)


def generate(graph: fx.Graph, form: CallForm, fallback: Callable[..., Any], lacks: bool = True) -> Generated:
    """Verify ``graph`` and write its ``forward``.

    Args:
        graph: the region's graph.
        form: the calls that the graph is right for.
        fallback: the module's own ``forward``, for calls of another form.
        lacks: whether such calls lack some of what grew, and are counted.
    """
    verify(graph)
    code = graph.python_code("self")
    source, scope = code.src.strip().replace(" -> _Any_", "", 1) + "\n", dict(code.globals)
    if not form.is_plain:
        source = source.replace("def forward(", "def _graph(", 1) + "\n\n" + entry_source(form)
        scope.update(entry_scope(form), _fallback=fallback)
        if not lacks:
            scope["_fell_back"] = nothing_lost
    return Generated(graph, source, _function(source, scope))


def _function(source: str, scope: dict[str, Any]) -> FunctionType:
    global _serial
    key = (source, tuple(sorted((name, id(value)) for name, value in scope.items())))
    if (known := _functions.get(key)) is not None:
        return known
    _serial += 1
    filename = f"<fxgraft {_serial}>"
    exec(compile(source, filename, "exec"), scope)
    function: FunctionType = scope["forward"]
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    weakref.finalize(function, linecache.cache.pop, filename, None)
    _functions[key] = function
    return function
