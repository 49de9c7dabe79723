"""Compiled code as bytes: made by one process (`build`), run in another (`load`).

An artifact holds forward and backward for one kind of call, and the guards that say for which. It is
a pickle, so it is only ever taken from our own helper process, never from a file of a run.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fxgraft.compiling.calls import CallKind

Entry = Callable[..., Any]
"""``entry(module, *args, **kwargs)``."""


class Artifact:
    """Loaded compiled code.

    Attributes:
        fits: ``fits(module, *args, **kwargs)``: whether the code is right for this call.
        run: likewise; runs it, and must only be called where it fits.
    """

    def __init__(self, data: bytes):
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
    compiled: Any = torch.compile(entry, **{**options, "fullgraph": True})
    with kind.made_up(module, *others) as (args, kwargs):
        made = compiled.aot_compile(((module, *args), kwargs))
    data: bytes = type(made).serialize(made).serialized_data
    return data
