"""The state of objects, and of all that they hold: seen as it is now, compared later, put back.

A forward can write into anything that it reaches: the attributes of modules, lists and dictionaries of any
depth, plain objects, tensors that are no buffers, parameters, generators of random numbers. `Snapshot` walks
there from a few roots. Everything that runs a model as if it had not run (`untouched`) stands on it.

What is not walked into: classes, modules of Python, and what holds a model rather than belongs to it (locks,
threads, queues, loggers, optimizers, loaders of data, trainers, fxgraft itself): another thread may be at
work there. What is done for each kind of object is in `saved`.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch

from fxgraft_passes._torch import unseen_by_modes
from fxgraft_passes.saved import LIBRARIES, save
from fxgraft_passes.saved_names import PLAIN, Dict, Saved, Variables

MAX_OBJECTS = 200_000
"""How many objects a snapshot holds at most: what is further away is left as it is."""


class Snapshot:
    """What ``roots`` hold now, to any depth.

    No ``TorchFunctionMode`` sees a snapshot being taken or put back: one that records what a model does must
    not record that too.

    Args:
        roots: objects to start from: modules, containers, cells of closures, anything. Of a class or a module
            of Python given as a root, its own variables.
    """

    def __init__(self, roots: Iterable[object]):
        self._seen: dict[int, object] = {}  # holds them, so that no id is given twice
        self._saved: list[Saved] = []
        with unseen_by_modes():
            self._walk(deque(roots))

    def _walk(self, waiting: deque[object]) -> None:
        given = set(map(id, waiting))
        classes: dict[type, list[type]] = {}
        while waiting and len(self._seen) < MAX_OBJECTS:
            value = waiting.popleft()
            if isinstance(value, PLAIN) or id(value) in self._seen:
                continue
            if isinstance(value, type) and id(value) not in given:
                continue  # an object of that class may come later, and then the class is one to look at
            self._seen[id(value)] = value
            if (saved := save(value, is_root=id(value) in given)) is not None:
                self._saved.append(saved)
                waiting.extend(saved.parts())
                if (kind := type(value)) not in classes:
                    classes[kind] = _classes_of(value)
                    given.update(map(id, classes[kind]))
                    waiting.extend(classes[kind])
            else:
                waiting.extend(_parts(value))

    def changes(self) -> Iterator[tuple[object, str]]:
        """What is not as it was: the object, and what of it in words (``"its item 'aux'"``)."""
        with unseen_by_modes():
            found = [(saved.value, saved.change()) for saved in self._saved]
        for value, what in found:
            if what is not None:
                yield value, what

    def set_since(self) -> Iterator[tuple[object, str, Any]]:
        """Attributes that were missing or None, and are numbers, texts or dtypes now: object, name, value."""
        for saved in self._saved:
            if type(saved) is Variables:
                for name, now in vars(saved.value).items():
                    if (
                        saved.before.get(name) is None
                        and isinstance(now, (*PLAIN, torch.dtype))
                        and now is not None
                    ):
                        yield saved.value, name, now

    def added_since(self) -> Iterator[tuple[dict[Any, Any], dict[Any, Any]]]:
        """Dictionaries with keys that they had not: the dictionary, and its new entries."""
        for saved in self._saved:
            if type(saved) is Dict and (new := saved.added()):
                yield saved.value, new

    def restore(self) -> None:
        """Put everything back; what is as it was is not written to."""
        with unseen_by_modes():
            for saved in self._saved:
                if saved.change() is not None:
                    saved.restore()


def _classes_of(value: object) -> list[type]:
    """The classes of an object that are the model's own: their variables can be written through it."""
    if isinstance(value, (type, ModuleType)):
        return []
    return [cls for cls in type(value).__mro__ if cls.__module__.split(".")[0] not in LIBRARIES]


def _parts(value: Any) -> Iterable[object]:
    """What an object that cannot change itself holds."""
    if isinstance(value, (tuple, frozenset)):
        return value
    if isinstance(value, functools.partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, FunctionType):
        defaults = (value.__defaults__ or (), value.__kwdefaults__ or {})
        return (*(value.__closure__ or ()), *defaults, getattr(value, "__wrapped__", None))
    return ()
