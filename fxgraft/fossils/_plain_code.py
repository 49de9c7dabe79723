"""Classes with a generated ``forward``, for modules that have to run where there is no fxgraft.

The text of this file travels in the pickles of such modules, and is run when one is loaded: so it uses
Python's standard library and torch, and nothing else. Loading a pickle runs code, as ever: load those
that you trust.

    pickle of a module -> GrownCode (this text, the base class, the generated source) -> its class
                       -> the attributes of the module
"""

from __future__ import annotations

import copyreg
import importlib
import linecache
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

_REBUILD = "exec(text, scope) or scope['GrownCode'](*parts)"


class GrownCode:
    """What a class with a generated ``forward`` is made of. Pickles as its own text.

    Calling it gives an instance without attributes, as unpickling needs it.

    Attributes:
        text: the source of this file.
        base: the class whose ``forward`` is replaced.
        name: what the new class is called.
        source: defines ``forward(self, ...)``; or nothing, where the base class's is right.
        modules: names that ``source`` uses for modules -> what to import.
        functions: names that it uses for functions of this file -> their names here.
        values: other names that it uses -> their values.
        grown: the children that the base class does not know of.
        inside: what grew in such a module, where it can write itself to a folder that has no place for that.
        made: the class.
    """

    def __init__(
        self,
        text: str,
        base: type[nn.Module],
        name: str,
        source: str,
        modules: Mapping[str, str],
        functions: Mapping[str, str],
        values: Mapping[str, Any],
        grown: Sequence[str] = (),
        inside: Sequence[str] = (),
    ):
        self.text, self.base, self.name, self.source = text, base, name, source
        self.modules, self.functions, self.values = dict(modules), dict(functions), dict(values)
        self.grown, self.inside = tuple(grown), tuple(inside)
        self.made = self._make()

    def _make(self) -> type[nn.Module]:
        imported = {alias: importlib.import_module(path) for alias, path in self.modules.items()}
        functions = {alias: PLAIN[name] for alias, name in self.functions.items()}
        scope = {**imported, **functions, **self.values, "_fallback": self.base.forward}
        filename = f"<grown {self.name} {id(self):x}>"  # by which a trace knows it: `GENERATED`
        exec(compile(self.source, filename, "exec"), scope)
        lines = self.source.splitlines(keepends=True)
        linecache.cache[filename] = (len(self.source), None, lines, filename)  # for tracebacks
        weakref.finalize(self, linecache.cache.pop, filename, None)
        return _class_of(self, scope.get("forward", self.base.forward))

    def __call__(self) -> nn.Module:
        return object.__new__(self.made)

    def __reduce__(self) -> tuple[Any, ...]:
        used = (self.modules, self.functions, self.values, self.grown, self.inside)
        parts = (self.text, self.base, self.name, self.source, *used)
        return eval, (_REBUILD, {"text": self.text, "scope": {"__name__": "grown"}, "parts": parts})


_kinds: dict[type, type] = {}


def _kind_of(base: type) -> type:
    """The metaclass of a class that is made of ``base``: it lets the class itself be pickled, by its code.

    What grew further holds its class so, and it is the base of another one in the next unwrapped model.
    """
    if type(base) not in _kinds:
        made = _kinds[type(base)] = type("GrownKind", (type(base),), {})
        copyreg.pickle(made, lambda cls: (getattr, (cls.grown_code, "made")))  # type: ignore[attr-defined]
    return _kinds[type(base)]


def _class_of(code: GrownCode, generated: Callable[..., Any]) -> type[nn.Module]:
    base: Any = code.base

    class Grown(base, metaclass=_kind_of(base)):  # type: ignore[metaclass, misc]
        grown_code = code
        forward = generated

        def _own_forward(self, *args: Any, **kwargs: Any) -> Any:
            return base.forward(self, *args, **kwargs)

        def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
            return code, (), self.__getstate__()

    if code.inside:
        Grown.save_pretrained = _refuse_to_write(code.name, code.inside)
    Grown.__name__ = Grown.__qualname__ = code.name
    if issubclass(base, nn.Sequential):
        _hide(Grown, code.grown)
    # Not one of torch's own, which some tools take to run as torch wrote it.
    Grown.__module__ = "grown" if base.__module__.startswith("torch.") else base.__module__
    Grown.__doc__ = base.__doc__
    return Grown


def _refuse_to_write(name: str, grown: Sequence[str]) -> Callable[..., None]:
    """A ``save_pretrained`` for a model that ``from_pretrained`` would build without what grew."""

    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> None:
        # An error of fxgraft's where that is there at all.
        kind: type[Exception] = getattr(sys.modules.get("fxgraft.errors"), "CheckpointError", RuntimeError)
        raise kind(
            f"{name}.save_pretrained: expected a model in which nothing grew; it has {', '.join(grown)}, and "
            f"from_pretrained would build it without them. torch.save(model, path) writes all of it, for "
            f"torch.load(path, weights_only=False)"
        )

    return save_pretrained


def _hide(container: Any, names: Sequence[str]) -> None:
    """Keep what was grown out of the layers of a Sequential: its own code would run them in the chain."""

    def known(self: nn.Sequential) -> list[nn.Module]:
        return [module for name, module in self._modules.items() if name not in names]  # type: ignore[misc]

    container.__iter__ = lambda self: iter(known(self))
    container.__len__ = lambda self: len(known(self))


# What generated code may call, in plain Python.


def by_mode(training: bool, in_training: Any, in_eval: Any) -> Any:
    """The constant for the current train/eval mode."""
    return in_training if training else in_eval


def run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A module's own code."""
    return forward(*args, **kwargs)


def returned(value: Any) -> Any:
    """What a module returned whose code is part of another's."""
    return value


def code_holds() -> bool:
    """Whether code is what it was in the trace; not checked any more."""
    return True


_of_thread = threading.local()


def _open() -> list[Any]:
    found: list[Any] = _of_thread.__dict__.setdefault("open", [])
    return found


def enter_autocast(device_type: str, dtype: torch.dtype | None, enabled: bool, cache: bool | None) -> Any:
    """``torch.autocast(...).__enter__()``, that compilers follow."""
    entered = torch.amp.autocast_mode._enter_autocast(device_type, dtype, enabled, cache)  # type: ignore[no-untyped-call]
    if not torch.compiler.is_compiling():
        _open().append(entered)
    return entered


def exit_autocast(entered: Any) -> None:
    """Leave what `enter_autocast` returned."""
    if not torch.compiler.is_compiling():
        _open().pop()
    torch.amp.autocast_mode._exit_autocast(entered)  # type: ignore[no-untyped-call]


def open_autocasts() -> int:
    """How many this thread has entered and not left."""
    return 0 if torch.compiler.is_compiling() else len(_open())


def leave_autocasts(wanted: int) -> None:
    """Leave all but so many: where a graph has raised inside of them."""
    while len(_open()) > wanted:
        exit_autocast(_open()[-1])


def not_watched(root: nn.Module, *paths: str) -> bool:
    """Whether calls of these submodules are just runs of their ``forward``: nothing is hooked in."""
    for path in paths:
        module = root.get_submodule(path)
        if module._forward_hooks or module._forward_pre_hooks:
            return False
        if module._backward_hooks or module._backward_pre_hooks:
            return False
        if "forward" in module.__dict__:
            return False
    return True


def fell_back(module: nn.Module, given: Any) -> None:
    """Warn that a call is not of the form that the grown code is right for; no export is made of it."""
    message = (
        f"a {type(module).__name__} was called with other kinds of arguments than in the example call that "
        f"it was traced with: it runs without what was grown in it"
    )
    if torch.compiler.is_exporting():
        raise RuntimeError(
            f"{message}, so the exported program would be another model. Export "
            "a call of the form of that example"
        )
    warnings.warn(message, stacklevel=3)


PLAIN: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        by_mode,
        run,
        returned,
        code_holds,
        enter_autocast,
        exit_autocast,
        open_autocasts,
        leave_autocasts,
        not_watched,
        fell_back,
    )
}
"""The name of a function of fxgraft -> its replacement here."""
