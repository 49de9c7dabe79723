"""A change of a ``GraphModule`` that happens as a whole, or not at all.

A graph that is swapped in generates its code, which can fail (a name that Python does not take); so can what
comes before and after. What a pass changes are attributes and registers of modules, and the code of the
class that each ``GraphModule`` has of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.fx as fx
from torch import nn

_REGISTERS = ("_modules", "_parameters", "_buffers")
_CODE = ("forward", "__call__", "_wrapped_call")


@contextmanager
def whole_or_not(graph_module: fx.GraphModule) -> Iterator[None]:
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
        """Let the module have that again."""
        for held, before in [(vars(self._module), self._own), *self._registers]:
            held.clear()
            held.update(before)
