"""What a host looks like to code that reads the class of a model: signature, name, base class.

A training framework asks the class of a model which labels it takes, whether it returns a loss and how it is
written. So each class of models has hosts of a class of their own::

    class Host[GPT2LMHeadModel](Host, PreTrainedModel):
        forward(self, input_ids=None, ..., labels=None)    # Host.forward, with the model's signature

What such a base class defines is the traced model's here, as any other attribute that `Host` does not have.
"""

from __future__ import annotations

import inspect
import weakref
from contextlib import suppress
from types import FunctionType
from typing import Any

from torch import nn

from fxgraft.host.host import Host

_ASKED_FOR = {("transformers.modeling_utils", "PreTrainedModel")}
"""Module and name of base classes that frameworks ask for by ``isinstance``."""

_made: weakref.WeakKeyDictionary[type[nn.Module], weakref.ref[type[Host]]] = weakref.WeakKeyDictionary()


def host_class(model: type[nn.Module]) -> type[Host]:
    """The class of hosts of models of that class."""
    known = _made.get(model)
    made = known() if known is not None else None
    if made is None:
        made = _make(model)
        _made[model] = weakref.ref(made)
    return made


def _make(model: type[nn.Module]) -> type[Host]:
    forward = FunctionType(Host.forward.__code__, Host.forward.__globals__, "forward")
    forward.__kwdefaults__, forward.__doc__ = Host.forward.__kwdefaults__, model.forward.__doc__
    with suppress(ValueError, TypeError):  # code that has none
        forward.__signature__ = inspect.signature(model.forward)  # type: ignore[attr-defined]

    def reduce(self: Host, protocol: Any) -> Any:
        if type(self) is not made:  # fully_shard has made a class of this one
            return super(Host, self).__reduce_ex__(protocol)
        return _new, (model,), self.__getstate__()

    namespace = {
        "forward": forward,
        "traced_class": model,
        "__reduce_ex__": reduce,
        "__doc__": Host.__doc__,
        "__module__": Host.__module__,
    }
    base = next((b for b in model.__mro__ if (b.__module__, b.__qualname__) in _ASKED_FOR), None)
    bases = (Host,) if base is None else (Host, _delegating(base), base)
    if base is not None:
        namespace["_get_name"] = lambda self: model.__name__  # it is looked up in tables of models
    made: type[Host] = type(f"Host[{model.__name__}]", bases, namespace)
    return made


def _new(model: type[nn.Module]) -> Host:
    """An empty host, for unpickling and copying."""
    cls = host_class(model)
    return cls.__new__(cls)


class _Delegated:
    """An attribute that is the traced model's; of the class, where the class is asked."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, host: Host | None, owner: Any) -> Any:
        return getattr(owner.traced_class if host is None else host.__dict__["_root"], self._name)


def _delegating(base: type[nn.Module]) -> type:
    """A class to stand before ``base``, so that nothing of ``base`` is run with the host as its self."""
    namespace: dict[str, Any] = {"__init_subclass__": classmethod(lambda cls, **options: None)}
    plain = set(nn.Module.__mro__)
    for name in {name for b in base.__mro__ if b not in plain for name in vars(b)}:
        if hasattr(nn.Module, name):
            namespace.setdefault(name, inspect.getattr_static(nn.Module, name))
        elif not (name.startswith("__") and name.endswith("__")):
            namespace[name] = _Delegated(name)
    for own in ("__dict__", "__weakref__", "__module__", "__doc__", "__annotations__"):
        namespace.pop(own, None)
    return type(f"As{base.__name__}", (), namespace)
