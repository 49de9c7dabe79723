"""Compiled code as bytes: made by one process (`build`), run in another (`load`).

An artifact holds forward and backward for one kind of call, and the guards that say for which. It is
a pickle, so it is only ever taken from our own helper process, never from a file of a run.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._dynamo.guards import CheckFunctionManager

from fxgraft.compiling.calls import CallKind

Entry = Callable[..., Any]
"""``entry(module, *args, **kwargs)``."""


class Artifact:
    """Loaded compiled code.

    Attributes:
        fits: ``fits(module, *args, **kwargs)``: whether the code is right for this call.
        run: likewise; runs it, and must only be called where it fits.
    """

    def __init__(self, data: bytes, kind: CallKind):
        with kind.surroundings():  # guards on tensors are made anew, for the dispatch keys of now
            loaded: Any = torch.compiler.load_compiled_function(io.BytesIO(data))
        self.fits: Callable[..., bool] = loaded.guard_check
        self.run: Entry = loaded.fn


def build(
    entry: Entry, module: nn.Module, kind: CallKind, options: Mapping[str, Any], *others: nn.Module
) -> bytes:
    """Compile ``entry(module, ...)`` for one kind of call, in the helper.

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
    with kind.made_up(module, *others) as (args, kwargs):
        made = compiled.aot_compile(((module, *args), kwargs))
    data: bytes = type(made).serialize(made).serialized_data
    return data


def _with_filter(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``torch.compile`` with a filter for guards that cannot be serialized.

    Its own filter for artifacts overlooks guards that hold one of those inside. What they guard, the
    identity of code and classes, does not change while a variant is in use.
    """
    given = dict(options)
    mode, backend = given.pop("mode", None), given.get("backend", "inductor")
    if mode is not None and backend != "inductor":
        return dict(options)  # a mode leaves no room for options; only Inductor's modes are options
    own = dict(given.pop("options", None) or (torch._inductor.list_mode_options(mode) if mode else {}))
    return {**given, "options": {"guard_filter_fn": _serializable, **own}}


def _serializable(guards: Sequence[Any]) -> list[bool]:
    refused = set(CheckFunctionManager.UNSUPPORTED_SERIALIZATION_GUARD_TYPES)
    return [not g.is_global and refused.isdisjoint((g.guard_type, *g.derived_guard_types)) for g in guards]
