"""The warning that a region's seeds do not run: it was called in another form than it was traced in."""

from __future__ import annotations

import warnings
import weakref

import torch
from torch import nn

_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def name_region(module: nn.Module, name: str) -> None:
    """Let the warning call ``module`` by its qualified name."""
    _names[module] = name


def warn_of_fallback(module: nn.Module) -> None:
    """Warn that the seeds in ``module`` did not run in this call; once for each module."""
    kind = type(module).__name__
    if torch.compiler.is_compiling():
        _warn_at_compile_time(kind)
    elif module not in _warned:
        _warned.add(module)
        name = _names.get(module)
        _warn(f"{name!r} ({kind})" if name else kind)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _warn_at_compile_time(kind: str) -> None:
    # Runs while the call is compiled: nothing of it is in the graph.
    _warn(f"a {kind}")


def _warn(who: str) -> None:
    warnings.warn(
        f"{who} was called with other kinds of arguments than in the example call of fxgraft.trace: "
        f"it runs as the model has it, and its seeds do not run in such calls",
        stacklevel=4,
    )
