"""Numbers and texts in a module's attributes, which are constants of its graph from tracing on.

    return self.inner(x) * self.scale   ->   mul = inner * 1.0

What is set later counts in the module's own code, and not in code that was generated from the graph.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_PLAIN = (bool, int, float, str, type(None))
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


class Constants:
    """What a module's attributes were when it was traced."""

    def __init__(self, module: nn.Module):
        self._traced = _plain(module)

    def changed(self, module: nn.Module) -> list[str]:
        """What was set since, as ``scale was 1.0 and is 2.0``."""
        now = _plain(module)
        return [
            f"{name} was {traced!r} and is {now[name]!r}"
            for name, traced in self._traced.items()
            if name in now and repr(now[name]) != repr(traced)  # where two NaNs are equal
        ]


def _plain(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in module.__dict__.items()
        if isinstance(value, _PLAIN) and name not in _OF_EVERY_MODULE
    }
