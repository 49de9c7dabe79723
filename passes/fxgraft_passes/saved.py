"""One object as it was, for each kind of object that can change; see `snapshot`."""

from __future__ import annotations

import contextvars
import functools
import random
import sys
import threading
import weakref
from collections import OrderedDict, deque
from types import CellType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fxgraft_passes import _torch
from fxgraft_passes._saved_values import Array, SavedTensor, State
from fxgraft_passes.saved_names import (
    Cell,
    Dict,
    Items,
    PythonSlots,
    Saved,
    SavedClass,
    SavedContextVariable,
    SavedFunction,
    SavedVariable,
    SavedWeakContainer,
    Variable,
    Variables,
    is_function,
    slots_of,
)

LIBRARIES = frozenset(sys.stdlib_module_names) | {
    *(
        "torch",
        "functorch",
        "numpy",
        "sympy",
        "networkx",
        "fxgraft",
        "fxgraft_passes",
        "hypothesis",
        "_pytest",
    ),
}
"""The packages whose code is not a model's own."""

NOT_THE_MODELS = (
    "_thread", "threading", "queue", "multiprocessing", "concurrent", "asyncio", "logging", "weakref",
    "socket", "torch.optim", "torch.utils.data", "torch.distributed", "torch.fx", "lightning",
    "pytorch_lightning", "accelerate", "fxgraft",
)  # fmt: skip
"""Where classes are from whose objects hold a model, or are shared with other threads."""

_CONTAINERS: dict[type, type[Saved]] = {dict: Dict, OrderedDict: Dict, list: Items, set: Items, deque: Items}
"""What most objects of a model are, the registers of modules above all: looked up before anything else."""


def save(value: Any, is_root: bool = False) -> Saved | None:
    """One object as it is now; None for what cannot change or is not the model's."""
    kind = type(value)
    if (known := _CONTAINERS.get(kind)) is not None:
        return known(value)
    if isinstance(value, nn.Module):
        return Variables(value)
    if isinstance(value, (type, ModuleType)):
        return SavedClass(value) if is_root else None
    if isinstance(value, Tensor):
        return SavedTensor(value) if value.layout is torch.strided and not _is_wrapped(value) else None
    if isinstance(value, torch.Generator):
        return State(value, value.get_state, value.set_state)
    if isinstance(value, CellType):
        return Cell(value)
    if isinstance(value, Variable):
        return SavedVariable(value)
    if isinstance(value, FunctionType):
        return SavedFunction(value) if _is_of_model(value) else None
    if isinstance(value, contextvars.ContextVar):
        return SavedContextVariable(value)
    if isinstance(value, (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)):
        return SavedWeakContainer(value)
    if isinstance(value, threading.local):
        return Variables(value)
    if is_function(value) or isinstance(value, (tuple, frozenset, functools.partial)):
        return None
    if isinstance(value, dict):
        return Dict(value)
    if isinstance(value, (list, deque, set, bytearray)):
        return Items(value)
    if kind.__module__.startswith(NOT_THE_MODELS):
        return None
    if kind.__module__.split(".")[0] == "numpy":
        return _of_numpy(value)
    if isinstance(value, random.Random):
        return State(value, value.getstate, value.setstate)
    if slots_of(kind):
        return PythonSlots(value)
    return Variables(value) if isinstance(getattr(value, "__dict__", None), dict) else None


def _of_numpy(value: Any) -> Saved | None:
    if hasattr(value, "tobytes") and hasattr(value, "__setitem__"):
        return Array(value)
    if (bits := getattr(value, "bit_generator", None)) is not None:
        return State(value, lambda: bits.state, lambda state: setattr(bits, "state", state))
    if hasattr(value, "get_state") and hasattr(value, "set_state"):
        return State(value, value.get_state, value.set_state)
    return None


def _is_of_model(function: FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] not in LIBRARIES


def _is_wrapped(value: Tensor) -> bool:
    """Whether a tensor has no memory of its own to look at: one of ``torch.func``, or around others."""
    return _torch.is_wrapped_by_transform(value) or is_traceable_wrapper_subclass(value)
