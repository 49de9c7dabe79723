"""Replacements of built-in functions that work on proxies, in the scopes of the code that is traced.

``isinstance``, ``type`` and ``len`` would see the proxy and not its value, and ``int`` cannot return a proxy.
Setting ``__class__`` on proxies would not help: torch's C++ would read their memory as that of a tensor.
"""

from __future__ import annotations

import builtins
import dis
import functools
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch
import torch.fx as fx
from torch import nn

from fxgraft.capture._proxy import ProxySize, is_instance

_asks: list[Callable[[nn.Module], None]] = []
"""Called with each module whose class the code asks for; the last one counts."""


class PatchedBuiltins:
    """Puts the replacements into the scope of each function that is entered, and takes them out again.

    Args:
        of_module: called with each module whose class the code asks for.
    """

    def __init__(self, of_module: Callable[[nn.Module], None]):
        self._of_module = of_module
        self._added: list[tuple[dict[str, Any], str]] = []

    def enter(self, frame: FrameType) -> None:
        """The function of ``frame`` is entered, and has done nothing yet."""
        scope = frame.f_globals
        for name in _called_in(frame.f_code):
            if name not in scope:
                scope[name] = _REPLACEMENTS[name]
                self._added.append((scope, name))
        if not _asks:
            _asks.append(self._of_module)

    def release(self) -> None:
        """Take them out of all scopes."""
        for scope, name in self._added:
            scope.pop(name, None)
        self._added.clear()
        _asks.clear()


@functools.lru_cache(maxsize=4096)
def _called_in(code: CodeType) -> tuple[str, ...]:
    """The names of replaced built-ins that ``code`` calls: elsewhere ``int`` may be a dtype."""
    found: dict[str, bool] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL" and instruction.argval in _REPLACEMENTS:
            found[instruction.argval] = bool((instruction.arg or 0) & 1) and found.get(
                instruction.argval, True
            )
    return tuple(name for name, is_called in found.items() if is_called)


def _isinstance(value: Any, kinds: Any) -> bool:
    if builtins.isinstance(value, nn.Module) and _asks:
        _asks[-1](value)
    return is_instance(value, _plain(kinds))


def _plain(kinds: Any) -> Any:
    """Classes, with the built-in ones in the place of their replacements."""
    if builtins.isinstance(kinds, tuple):
        return tuple(map(_plain, kinds))
    return {_Type: builtins.type, _Int: builtins.int}.get(kinds, kinds)


def _len(value: Any) -> Any:
    if builtins.isinstance(value, fx.Proxy) and builtins.isinstance(
        getattr(value, "_example", None), torch.Tensor
    ):
        return value.size(0)
    return builtins.len(value)


class _MetaType(builtins.type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if builtins.len(args) != 1 or kwargs:
            return builtins.type(*args, **kwargs)
        value = args[0]
        if builtins.isinstance(value, ProxySize):
            return torch.Size
        if builtins.isinstance(value, fx.Proxy) and hasattr(builtins.type(value), "_example"):
            return value.tracer.fix_type(value.node)  # type: ignore[attr-defined]
        if builtins.isinstance(value, nn.Module) and _asks:
            _asks[-1](value)
        return builtins.type(value)

    def __instancecheck__(cls, value: object) -> bool:
        return builtins.isinstance(value, builtins.type)


class _Type(metaclass=_MetaType):
    """Replaces ``type``."""


class _MetaInt(builtins.type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        value = args[0] if args else None
        if builtins.isinstance(value, fx.Proxy) and builtins.isinstance(
            getattr(value, "_example", None), (builtins.int, float)
        ):
            return value.tracer.create_proxy("call_function", builtins.int, args, kwargs)
        return builtins.int(*args, **kwargs)

    def __instancecheck__(cls, value: object) -> bool:
        return is_instance(value, builtins.int)

    def __getattr__(cls, name: str) -> Any:
        return getattr(builtins.int, name)


class _Int(metaclass=_MetaInt):
    """Replaces ``int``."""


_REPLACEMENTS: dict[str, Any] = {"isinstance": _isinstance, "len": _len, "type": _Type, "int": _Int}
