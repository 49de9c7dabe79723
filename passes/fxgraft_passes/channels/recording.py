"""One run of a model, as the list of the operations of torch that it carried out.

What runs is the code itself, so code that has no graph is seen as well as code that has one: a loop over
blocks, a cache, a helper function. Operations are seen where Python calls them (``F.linear``,
``Tensor.view``), with their numbers as the code gave them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


@dataclass
class Operation:
    """One call of a function of torch.

    Attributes:
        target: the function.
        args, kwargs: what it was given.
        result: what it returned.
        module: the qualified name of the module whose code called it.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    module: str

    @property
    def name(self) -> str:
        """The function's name, and where it was called."""
        return f"{name_of(self.target)} in {self.module or 'the model itself'}"


@dataclass
class Recording:
    """What a run did.

    Attributes:
        operations: in order.
        at: the module whose code runs; after a failure, the one in which it failed.
        given: what the model was called with.
        result: what it returned.
        returned: what modules returned, with the names of those, the innermost first.
    """

    operations: list[Operation] = field(default_factory=list)
    at: str = ""
    latest: str = ""
    given: list[Tensor] = field(default_factory=list)
    result: list[Tensor] = field(default_factory=list)
    returned: list[tuple[Tensor, str]] = field(default_factory=list)


def record(
    run: Callable[..., Any], names: dict[nn.Module, str], args: Any, kwargs: Any, into: Recording
) -> None:
    """Call ``run(*args, **kwargs)`` and write into ``into`` what it does, also as far as it comes.

    Args:
        run: the model.
        names: module -> its qualified name, of all that may be called.
        args: of the call.
        kwargs: of the call.
        into: the recording.
    """
    into.given = tensors_in((args, kwargs))
    with _whereabouts(names, into), _Recorder(into):
        result = run(*args, **kwargs)
    into.result = tensors_in(result)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested containers and dataclasses."""
    found = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_in([getattr(leaf, f.name, None) for f in fields(leaf)])
    return found


def as_it_is_now(value: Any) -> Any:
    """Nested lists, tuples and dictionaries in copies: code may append to a list that it has passed on."""
    if type(value) in (list, tuple):
        return type(value)(as_it_is_now(item) for item in value)
    if type(value) is dict:
        return {key: as_it_is_now(item) for key, item in value.items()}
    return value


def name_of(target: Any) -> str:
    """What a function is called."""
    own = str(getattr(target, "__name__", target))
    holder = getattr(target, "__self__", None)
    return str(getattr(holder, "__name__", own)) if own == "__get__" else own


_NOTHING_DONE = {"to", "type", "type_as", "contiguous", "float", "half", "bfloat16", "double"}
"""What gives its input back where that is so already."""


class _Recorder(TorchFunctionMode):
    def __init__(self, into: Recording):
        super().__init__()
        self._into = into

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._into.latest = name_of(func)
        result = func(*args, **kwargs)
        args, kwargs = as_it_is_now((args, kwargs))
        if args and result is args[0] and name_of(func) in _NOTHING_DONE:
            return result
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result)):
            self._into.operations.append(Operation(func, args, kwargs, result, self._into.at))
        elif name_of(func) == "__setitem__":
            self._into.operations.append(Operation(func, args, kwargs, args[0], self._into.at))
        return result


@contextmanager
def _whereabouts(names: dict[nn.Module, str], into: Recording) -> Iterator[None]:
    """Keep ``into.at`` at the module that runs; where a call fails, at the innermost that failed."""
    stack: list[str] = []

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(into.at)
        into.at = names.get(module, into.at)

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        into.returned += [(tensor, f"{into.at} ({type(module).__name__})") for tensor in tensors_in(result)]
        into.at = stack.pop()

    handles = [
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave),
    ]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
