"""A second module tree over the same tensors.

The clone has the model's classes, parameters, buffers and hooks, but registers of its own: what is
installed in it (a rewritten ``forward``, a converted buffer) never shows in the model.
"""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict, deque
from types import CellType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

from torch import Tensor, nn

from fxgraft import _torch
from fxgraft._torch import is_hook_with_module
from fxgraft.capture._code import is_own_class
from fxgraft.capture._contents import content_of
from fxgraft.errors import TraceError
from fxgraft_passes.saved import NOT_THE_MODELS
from fxgraft_passes.saved_names import slots_of


def clone_tree(model: nn.Module) -> nn.Module:
    """A module tree like ``model`` that shares its tensors. Raises `TraceError` for lazy modules.

    Modules, and what refers to them from attributes (containers, bound methods, partials, weak references,
    objects of the model's own classes), are remapped into the clone. Everything else is shared.
    """
    memo = _Memo()
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            raise TraceError(
                f"{type(module).__name__} has no shapes yet: run the model once before tracing it"
            )
        # object.__new__: GraphModule and others do more than allocate in theirs.
        memo[id(module)] = object.__new__(type(module))
    memo.modules = frozenset(memo)
    for module in modules:
        for reference in weakref.getweakrefs(module):
            make = weakref.ref if isinstance(reference, weakref.ref) else weakref.proxy
            memo[id(reference)] = make(memo[id(module)])
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
    return module.__dict__.get(_torch.COMPILED_CALL) is not None or _is_wrapper(module)


def _is_wrapper(module: nn.Module) -> bool:
    # By name: the compiler takes a second to import.
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules


def _uncompile(clone: nn.Module) -> None:
    """Make a clone run its own code: compiled code is that of the original, with the original's modes."""
    clone.__dict__.pop(_torch.COMPILED_CALL, None)
    if _is_wrapper(clone):
        inner = clone._modules["_orig_mod"]
        clone.__dict__["forward"] = MethodType(type(inner).__call__, inner)


class _Memo(dict[int, Any]):
    """The id of an object of the model -> its counterpart in the clone.

    Attributes:
        modules: the ids of the model's modules.
        holders: the id of an object -> whether it holds one of them, to any depth.
    """

    def __init__(self) -> None:
        super().__init__()
        self.modules: frozenset[int] = frozenset()
        self.holders: dict[int, bool] = {}
        self.kept: list[object] = []  # so that no id is given twice

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is a module of the model, refers to one weakly, or holds one."""
        if id(value) in self.modules or (isinstance(value, _WEAK) and id(value) in self):
            return True
        if id(value) not in self.holders:
            self.holders[id(value)] = False  # in a circle, the others tell
            self.kept.append(value)
            self.holders[id(value)] = any(map(self.holds, _parts(value)))
        return self.holders[id(value)]


_WEAK = (weakref.ref, weakref.ProxyType, weakref.CallableProxyType)
_WEAK_CONTAINERS = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)


def _parts(value: Any) -> list[Any]:
    """What an object that a module refers to may hold modules in."""
    if isinstance(value, _WEAK):  # of a proxy every question goes to the object
        return []
    if isinstance(value, (dict, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)):
        return [*value.keys(), *value.values(), *_variables(value)]
    if isinstance(value, (list, tuple, set, frozenset, deque, weakref.WeakSet)):
        return [*value, *_variables(value)]
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        return [content_of(cell) for cell in value.__closure__ or ()]
    return _variables(value) if _is_copied(value) else []


def _variables(value: Any) -> list[Any]:
    slots = [getattr(value, name) for name in slots_of(type(value)) if hasattr(value, name)]
    return [*getattr(value, "__dict__", {}).values(), *slots]


def _is_copied(value: Any) -> bool:
    """Whether an object can be copied attribute by attribute: of the model's own classes, say."""
    kind = type(value)
    if isinstance(value, (type, ModuleType, nn.Module, Tensor)):
        return False
    if isinstance(value, tuple):
        return hasattr(value, "_make")
    if kind is SimpleNamespace or is_hook_with_module(value):
        return True
    return is_own_class(kind) and not kind.__module__.startswith(NOT_THE_MODELS)


def _copied(value: Any, memo: _Memo) -> Any:
    """An object of a model's own class: what holds modules in it is the clone's, and all else is shared."""
    if isinstance(value, tuple):
        return type(value)._make(_remap(item, memo) for item in value)  # type: ignore[attr-defined]
    make: Any = next(cls for cls in type(value).__mro__ if not is_own_class(cls)).__new__
    copy = memo[id(value)] = make(type(value))
    if isinstance(value, dict):
        dict.update(copy, {_remap(k, memo): _remap(item, memo) for k, item in dict.items(value)})
    elif isinstance(value, list):
        list.extend(copy, [_remap(item, memo) for item in list.__iter__(value)])
    for name, held in vars(value).items() if hasattr(value, "__dict__") else ():
        vars(copy)[name] = _remap(held, memo) if memo.holds(held) else held
    for name in slots_of(type(value)):
        if hasattr(value, name):
            held = getattr(value, name)
            object.__setattr__(copy, name, _remap(held, memo) if memo.holds(held) else held)
    return copy


def _rebound(function: FunctionType, memo: _Memo) -> FunctionType:
    """A function that closes over modules of the model, over those of the clone."""
    closure = tuple(
        CellType(memo[id(content_of(cell))]) if id(content_of(cell)) in memo else cell
        for cell in function.__closure__ or ()
    )
    made = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, closure
    )
    made.__kwdefaults__, made.__qualname__ = function.__kwdefaults__, function.__qualname__
    made.__dict__.update(function.__dict__)
    memo[id(function)] = made
    return made


def _remap(value: Any, memo: _Memo) -> Any:
    """``value`` with the model's modules replaced by the clone's; containers are new, leaves shared."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, MethodType) and id(value.__self__) in memo:
        return MethodType(value.__func__, memo[id(value.__self__)])
    if type(value) is FunctionType and any(id(content_of(cell)) in memo for cell in value.__closure__ or ()):
        return _rebound(value, memo)
    if type(value) is functools.partial:
        args = [_remap(item, memo) for item in value.args]
        kwargs = {key: _remap(item, memo) for key, item in value.keywords.items()}
        return functools.partial(_remap(value.func, memo), *args, **kwargs)
    if type(value) in (dict, OrderedDict):
        copy = memo[id(value)] = type(value)()
        copy.update((_remap(key, memo), _remap(item, memo)) for key, item in value.items())
        return copy
    if type(value) is list:
        listed: list[Any] = []
        memo[id(value)] = listed
        listed.extend(_remap(item, memo) for item in value)
        return listed
    if type(value) in (tuple, set):
        return type(value)(_remap(item, memo) for item in value)
    if isinstance(value, _WEAK_CONTAINERS) and memo.holds(value):
        items: Any = value.items() if hasattr(value, "items") else [(item, None) for item in value]
        made = type(value)()
        for key, item in list(items):
            if isinstance(made, weakref.WeakSet):
                made.add(_remap(key, memo))
            else:
                made[_remap(key, memo)] = _remap(item, memo)
        memo[id(value)] = made
        return made
    return _copied(value, memo) if _is_copied(value) and memo.holds(value) else value
