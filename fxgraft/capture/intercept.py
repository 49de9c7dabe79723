"""What ``torch.fx`` does not see of a module's code, brought to the tracer while it traces.

``torch.fx`` records what is called with a proxy. Three things slip by it, and each would make a graph
that computes something else than the code: operations on no proxy (``torch.arange(n)``), custom
autograd functions (their ``forward`` is followed and their ``backward`` lost), and what torch asks of the
type of a value. (The built-ins that do are in `_builtins`.)
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.fx as fx
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property
from torch.utils import _pytree as pytree

from fxgraft.capture._proxy import is_instance

if TYPE_CHECKING:
    from fxgraft.capture._tracer import RegionTracer


class EveryOperation(TorchFunctionMode):
    """Makes a node of each torch operation, of those without a proxy among their arguments too."""

    def __init__(self, tracer: RegionTracer):
        super().__init__()
        self._tracer = tracer

    def __enter__(self) -> Any:
        _followed.append(self._tracer)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> Any:
        _followed.pop()
        return super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._tracer.is_following:
            return func(*args, **kwargs)
        if any_proxy(args, kwargs) is not None:
            return self._record(func, args, kwargs)
        self._tracer.refuse_write(func, args, kwargs)
        value = func(*args, **kwargs)
        if any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value)):
            return self._record(func, args, kwargs, (value,))
        self._tracer.took_for_constant(func)
        return value

    def _record(self, func: Any, args: Any, kwargs: Any, known: tuple[Any, ...] = ()) -> Any:
        kind, target = "call_function", func
        if is_tensor_method_or_property(func):
            kind, target = "call_method", func.__name__
        if target == "__get__":
            kind, target, args = "call_function", getattr, (args[0], func.__self__.__name__)
        if target == "__getitem__":
            kind, target = "call_function", operator.getitem
        return self._tracer.create_known(kind, target, tuple(args), kwargs, known)


@dataclass(frozen=True)
class AutogradCall:
    """``function.apply`` as one node, ``backward`` and all. Make them with `autograd_call`."""

    function: type[torch.autograd.Function]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function.apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def __reduce__(self) -> tuple[Any, ...]:
        return autograd_call, (self.function,)


@functools.cache
def autograd_call(function: type[torch.autograd.Function]) -> AutogradCall:
    """One object for each function: equal graphs have equal globals, and share their code."""
    return AutogradCall(function)


_FACTORIES = (
    "zeros",
    "ones",
    "empty",
    "rand",
    "randn",
    "full",
    "arange",
    "eye",
    "linspace",
    "logspace",
    "randperm",
)


@contextmanager
def autograd_calls_as_nodes() -> Iterator[None]:
    """Make nodes of calls with proxies of custom autograd functions and factories."""
    own = torch.autograd.Function.__dict__["apply"]

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        proxy = any_proxy(args, kwargs)
        if proxy is None:
            return own.__get__(None, cls)(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", autograd_call(cls), args, kwargs)

    factories = {name: getattr(torch, name) for name in _FACTORIES}
    of_autocast = {name: getattr(torch.autocast, name) for name in ("__init__", "__enter__", "__exit__")}
    is_tensor = torch.is_tensor
    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        for name, factory in factories.items():
            setattr(torch, name, _of_sizes(factory))
        for name, method in of_autocast.items():
            setattr(torch.autocast, name, _AUTOCAST[name](method))
        torch.is_tensor = lambda obj: is_instance(obj, torch.Tensor)  # type: ignore[assignment]
        yield
    finally:
        torch.is_tensor = is_tensor
        for name, method in of_autocast.items():
            setattr(torch.autocast, name, method)
        torch.autograd.Function.apply = own  # type: ignore[method-assign]
        for name, factory in factories.items():
            setattr(torch, name, factory)


def _made(method: Any) -> Any:
    def made(
        self: Any, device_type: Any, dtype: Any = None, enabled: Any = True, cache_enabled: Any = None
    ) -> None:
        self._asked = (device_type, dtype, enabled, cache_enabled)
        method(self, *(value._example if isinstance(value, fx.Proxy) else value for value in self._asked))

    return made


def _entered(method: Any) -> Any:
    def entered(self: Any) -> Any:
        result = method(self)
        if _followed and _followed[-1].is_following and hasattr(self, "_asked"):
            self._node = _followed[-1].enter_autocast(self._asked)
        return result

    return entered


def _left(method: Any) -> Any:
    def left(self: Any, *error: Any) -> Any:
        result = method(self, *error)
        if (node := self.__dict__.pop("_node", None)) is not None and _followed:
            _followed[-1].exit_autocast(node)
        return result

    return left


_AUTOCAST = {"__init__": _made, "__enter__": _entered, "__exit__": _left}
_followed: list[RegionTracer] = []
"""The tracers at work, outermost first."""


def _of_sizes(factory: Any) -> Any:
    # torch's argument parser takes a proxy for an integer in a tuple of sizes only.
    @functools.wraps(factory)
    def made(*sizes: Any, **options: Any) -> Any:
        proxy = any_proxy(sizes, options)
        if proxy is None:
            return factory(*sizes, **options)
        return proxy.tracer.create_proxy("call_function", factory, sizes, options)

    return made


def _of_dtypes(limits: type) -> type:
    """``torch.finfo`` or ``torch.iinfo``, also of a dtype that is a proxy."""

    class Meta(type):
        def __call__(cls, *args: Any) -> Any:
            proxy = any_proxy(args)
            return (
                limits(*args)
                if proxy is None
                else proxy.tracer.create_proxy("call_function", limits, args, {})
            )

        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, limits)

    return Meta(limits.__name__, (), {})


_LIMITS = {name: getattr(torch, name) for name in ("finfo", "iinfo")}
_STAND_INS = {name: _of_dtypes(limits) for name, limits in _LIMITS.items()}


@contextmanager
def limits_of_proxies(followed: bool) -> Iterator[None]:
    """Make ``torch.finfo`` and ``torch.iinfo`` accept proxies while a module's code is traced, and only then.

    Dynamo, which an operation may start, keeps what it finds there.
    """
    before = {name: getattr(torch, name) for name in _LIMITS}
    for name, found in (_STAND_INS if followed else _LIMITS).items():
        setattr(torch, name, found)
    try:
        yield
    finally:
        for name, found in before.items():
            setattr(torch, name, found)


def any_proxy(*structures: Any) -> fx.Proxy | None:
    """A proxy somewhere in the arguments, or None."""
    found: list[fx.Proxy] = []

    def look(value: Any) -> Any:
        if isinstance(value, fx.Proxy):
            found.append(value)
        return value

    fx.node.map_aggregate(structures, look)
    return found[0] if found else None
