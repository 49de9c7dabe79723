"""From a graph to a ``forward``: the only place where code is generated.

Functions of equal source share one object, so that equal regions share one code object (and
``torch.compile`` one compiled graph). Unlike ``GraphModule.recompile`` nothing stays behind: source
lines leave ``linecache`` with the function.
"""

from __future__ import annotations

import keyword
import linecache
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch.fx as fx
from torch import nn

from fxgraft.capture._facts import expression
from fxgraft.capture._guarded_entry import entry_scope, entry_source
from fxgraft.capture.call_form import CallForm
from fxgraft.capture.fallback import nothing_lost
from fxgraft.errors import SlotError
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
    source = _with_any_names(source, graph)
    if not form.is_plain:
        source = source.replace("def forward(", "def _graph(", 1) + "\n\n" + entry_source(form)
        scope.update(entry_scope(form), _fallback=fallback)
        if not lacks:
            scope["_fell_back"] = nothing_lost
    return Generated(graph, source, _function(source, scope))


def _with_any_names(source: str, graph: fx.Graph) -> str:
    """``source`` of ``graph``, with members written so that Python can read them, whatever they are called.

    ``torch.fx`` writes ``self.layers.class`` for a child named ``class``, and puts others in plain quotes.
    """
    targets = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    for target in sorted(filter(_is_misread, targets), key=len):  # a member comes before what is in it
        names = target.split(".")
        written = "self"
        for name in names:
            written = f"{written}.{name}" if name.isidentifier() else f'getattr({written}, "{name}")'
        readable = expression("self", tuple(("attr", name) for name in names))
        source = re.sub(re.escape(written) + r"(?!\w)", readable.replace("\\", r"\\"), source)
    return source


def _is_misread(target: str) -> bool:
    """Whether Python reads what ``torch.fx`` writes for a member otherwise, or not at all."""
    is_text = target.isprintable() and '"' not in target and "\\" not in target
    return not is_text or any(map(keyword.iskeyword, target.split(".")))


def _function(source: str, scope: dict[str, Any]) -> FunctionType:
    global _serial
    key = (source, tuple(sorted((name, id(value)) for name, value in scope.items())))
    if (known := _functions.get(key)) is not None:
        return known
    _serial += 1
    filename = f"<fxgraft {_serial}>"
    try:
        made = compile(source, filename, "exec")
    except SyntaxError as error:
        raise SlotError(
            f"no code can be written for this place: {error.msg}: {(error.text or '').strip()!r}. Expected "
            f"arguments and members with names that Python has no other use for: rename that one, or take a "
            f"slot of another module"
        ) from error
    exec(made, scope)
    function: FunctionType = scope["forward"]
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    weakref.finalize(function, linecache.cache.pop, filename, None)
    _functions[key] = function
    return function
