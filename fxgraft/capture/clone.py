"""A second module tree over the same tensors.

The clone has the model's classes, parameters, buffers and hooks, but registers of its own: what is
installed in it (a rewritten ``forward``, a converted buffer) never shows in the model.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

from fxgraft.errors import TraceError


def clone_tree(model: nn.Module) -> nn.Module:
    """A module tree like ``model`` that shares its tensors. Raises `TraceError` for lazy modules.

    Modules, and what refers to them from attributes (containers, bound methods, partials), are
    remapped into the clone. Everything else is shared.
    """
    memo: dict[int, Any] = {}
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            raise TraceError(
                f"{type(module).__name__} has no shapes yet: run the model once before tracing it"
            )
        # object.__new__: GraphModule and others do more than allocate in theirs.
        memo[id(module)] = object.__new__(type(module))
    for module in modules:
        state = {name: _remap(value, memo) for name, value in module.__dict__.items()}
        memo[id(module)].__dict__.update(state)
    for module in modules:
        if is_compiled(module):
            _uncompile(memo[id(module)])
    clone = memo[id(model)]
    assert isinstance(clone, nn.Module)
    return clone


def is_compiled(module: nn.Module) -> bool:
    """Whether a module runs compiled code: by its own ``compile()``, or wrapped by ``torch.compile``."""
    return module.__dict__.get("_compiled_call_impl") is not None or _is_wrapper(module)


def _is_wrapper(module: nn.Module) -> bool:
    # By name: the compiler takes a second to import.
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules


def _uncompile(clone: nn.Module) -> None:
    """Let a clone run its own code: what was compiled is that of the original, with the original's modes."""
    clone.__dict__.pop("_compiled_call_impl", None)
    if _is_wrapper(clone):
        inner = clone._modules["_orig_mod"]
        clone.__dict__["forward"] = MethodType(type(inner).__call__, inner)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """A function that closes over modules of the model, over those of the clone."""
    closure = tuple(
        CellType(memo[id(_content(cell))]) if id(_content(cell)) in memo else cell
        for cell in function.__closure__ or ()
    )
    made = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, closure
    )
    made.__kwdefaults__, made.__qualname__ = function.__kwdefaults__, function.__qualname__
    made.__dict__.update(function.__dict__)
    memo[id(function)] = made
    return made


def _remap(value: Any, memo: dict[int, Any]) -> Any:
    """``value`` with the model's modules replaced by the clone's; containers are new, leaves shared."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, MethodType) and id(value.__self__) in memo:
        return MethodType(value.__func__, memo[id(value.__self__)])
    if type(value) is FunctionType and any(id(_content(cell)) in memo for cell in value.__closure__ or ()):
        return _rebound(value, memo)
    if type(value) is functools.partial:
        args = [_remap(item, memo) for item in value.args]
        kwargs = {key: _remap(item, memo) for key, item in value.keywords.items()}
        return functools.partial(_remap(value.func, memo), *args, **kwargs)
    if type(value) in (dict, OrderedDict):
        copy = memo[id(value)] = type(value)()
        copy.update((key, _remap(item, memo)) for key, item in value.items())
        return copy
    if type(value) is list:
        items: list[Any] = []
        memo[id(value)] = items
        items.extend(_remap(item, memo) for item in value)
        return items
    if type(value) in (tuple, set):
        return type(value)(_remap(item, memo) for item in value)
    return value
