"""Compiled code as bytes: made by one process (`build`), run in another (`Loading`).

An artifact holds forward and backward for one kind of call, and the guards that say for which. It is
a pickle, so it is only ever taken from our own compiler process, never from a file of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fxgraft import _torch
from fxgraft.compiling._calls import CallKind

Entry = Callable[..., Any]
"""``entry(module, *args, **kwargs)``."""


class Artifact:
    """Loaded compiled code for calls of one kind.

    Args:
        code: what runs.
        check: what checks the local variables of ``entry``.

    Attributes:
        run: ``run(module, *args, **kwargs)``; must only be called where it fits.
        is_tried: whether it was compared with eager mode, as far as it can be.
    """

    def __init__(self, code: Entry, check: Callable[[dict[str, Any]], bool]):
        self.run = code
        self.is_tried = False
        self._check = check

    def fits(self, module: nn.Module, *args: Any, **kwargs: Any) -> bool:
        """Whether the code is right for this call."""
        return self._check({"module": module, "args": args, "kwargs": kwargs})


class Loading:
    """An artifact on its way from bytes, in parts of tens of milliseconds each.

    What ``torch.compiler.load_compiled_function`` does at once: the code (here, in any thread), and then,
    on the training thread and in two calls of `advance`, the guards.

    Args:
        data: what `build` made.
        kind: the kind of call that it was made for.
    """

    def __init__(self, data: bytes, kind: CallKind):
        self._parts = _torch.ArtifactParts(data)
        self._kind = kind
        self._guards: Any = None

    def advance(self) -> Artifact | None:
        """Go on by one part; return the artifact when it is whole."""
        with self._kind.surroundings():  # guards on tensors are made anew, for the dispatch keys of now
            if self._guards is None:
                self._guards = self._parts.guards_state()
                return None
            return Artifact(*self._parts.code(self._guards))


def build(
    entry: Entry, module: nn.Module, kind: CallKind, options: Mapping[str, Any], *others: nn.Module
) -> bytes:
    """Compile ``entry(module, ...)`` for one kind of call, in the compiler process.

    Gradients of parameters must be None: guards on tensors that have one cannot be loaded. Raises
    whatever the compiler does.

    Args:
        entry: a function over a code object of its own.
        module: the unit.
        kind: the call.
        options: of ``torch.compile``.
        others: further modules to bring into the kind's mode.
    """
    compiled: Any = torch.compile(entry, **{**_with_filter(options), "fullgraph": True})
    with kind.example_call(module, *others) as (args, kwargs):
        made = compiled.aot_compile(((module, *args), kwargs))
    return _torch.artifact_bytes(made, entry.__globals__)


def _with_filter(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``torch.compile`` with a filter for guards that cannot be serialized.

    Its own filter for artifacts overlooks guards that hold one of those inside. What they guard, the
    identity of code and classes, does not change while a variant is in use. Nor do defaults of functions,
    which are in the key of a variant: torch's artifacts have functions without their keyword-only ones.
    """
    given = dict(options)
    mode, backend = given.pop("mode", None), given.get("backend", "inductor")
    if mode is not None and backend != "inductor":
        return dict(options)  # a mode leaves no room for options; only Inductor's modes are options
    own = dict(given.pop("options", None) or (_torch.mode_options(mode) if mode else {}))
    return {**given, "options": {"guard_filter_fn": _serializable, **own}}


def _serializable(guards: Sequence[Any]) -> list[bool]:
    refused = _torch.unserializable_guards()
    return [
        not g.is_global
        and refused.isdisjoint((g.guard_type, *g.derived_guard_types))
        and "__kwdefaults__" not in g.name
        for g in guards
    ]
