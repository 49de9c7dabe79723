"""Lets recorders see what code reads and writes, while a model runs its example call.

Three things are instrumented, for the time of `Instruments.used` only:

* access to attributes: of ``nn.Module``, and of each class of which a recorder has met an object;
* calls of functions (``sys.setprofile``): each function of the model's own code that is entered, and the
  functions of torch and of Python that tell of a state of the process;
* nothing of torch's operations: those are the tracer's.

What runs in other threads passes through unseen.
"""

from __future__ import annotations

import builtins
import gc
import importlib
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType, FunctionType
from typing import Any

import torch
import torch.distributed
import torch.nn.attention
from torch import nn

from fxgraft import _torch
from fxgraft.capture._builtins import PatchedBuiltins
from fxgraft.capture._code import is_own
from fxgraft.capture._external_state import ExternalStateWatch
from fxgraft.capture._proxy import UntraceableError
from fxgraft.capture._recorder import ReadRecorder

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that can be changed
_HOOKS = ("__getattribute__", "__setattr__", "__delattr__")
_ALL_HOOKS = (*_HOOKS, "__getattr__")
_UNSEEN_WRITES = ("torch.fx", "torch.overrides", "torch._", "fxgraft", "copy")
_UNSEEN = (*_UNSEEN_WRITES, "torch.nn.modules.module")
_STATES = {
    id(getattr(torch, name))
    for name in (
        "is_grad_enabled",
        "is_inference_mode_enabled",
        "get_default_dtype",
        "is_anomaly_enabled",
        "is_anomaly_check_nan_enabled",
        "get_num_threads",
    )
}
_OF_PROCESSES = (
    [getattr(torch.distributed, name) for name in ("is_initialized", "get_rank", "get_world_size")]
    if torch.distributed.is_available()
    else []
)
_STATES_IN_PYTHON = {
    function.__code__: function
    for function in (
        torch.are_deterministic_algorithms_enabled,
        torch.is_deterministic_algorithms_warn_only_enabled,
        torch.get_float32_matmul_precision,
        torch.initial_seed,
        *_OF_PROCESSES,
    )
}
_OF_AUTOCAST = {
    id(getattr(torch, name))
    for name in (
        "is_autocast_enabled",
        "get_autocast_dtype",
        "is_autocast_cpu_enabled",
        "get_autocast_cpu_dtype",
        "get_autocast_gpu_dtype",
    )
}
_REFUSED = {
    id(builtins.print): "prints in its forward",
    id(builtins.open): "opens a file in its forward",
    id(builtins.input): "waits for input in its forward",
    id(builtins.globals): "looks at all its globals in its forward",
    id(builtins.eval): "runs code from a text in its forward",
    id(builtins.exec): "runs code from a text in its forward",
    **{
        id(clock): "reads the clock in its forward"
        for clock in (time.time, time.time_ns, time.perf_counter, time.perf_counter_ns, time.monotonic)
    },
}
_REFUSED_IN_PYTHON = {
    function.__code__: what
    for function, what in (
        (inspect.unwrap(torch.random.manual_seed), "seeds the random stream in its forward"),
        (torch.random.set_rng_state, "sets the random stream in its forward"),
        (inspect.unwrap(torch.random.fork_rng), "keeps the random stream in its forward"),
        (torch.autograd.graph.saved_tensors_hooks.__enter__, "hooks into saved tensors in its forward"),
        (inspect.unwrap(torch.nn.attention.sdpa_kernel), "chooses attention kernels in its forward"),
    )
}
_IMPORTS = importlib.import_module.__code__
_MAKES_MODULE = nn.Module.__init__.__code__
_READS_ENVIRONMENT = type(os.environ).__getitem__.__code__


class Instruments:
    """Notifies recorders, and the watch over external state, in the runs of one capture."""

    def __init__(self) -> None:
        self._watch: ExternalStateWatch | None = None
        self._recorders: list[tuple[ReadRecorder, Callable[[], bool]]] = []
        self._patched: dict[type, dict[str, Any]] = {}
        self._thread = threading.get_ident()
        self._sees_calls: bool | None = None  # None outside of `used`
        self._builtins = PatchedBuiltins(self._asked_for_class)

    @property
    def is_used(self) -> bool:
        """Whether the process is instrumented now."""
        return self._sees_calls is not None

    def see_calls(self, wanted: bool) -> bool:
        """See calls of functions, or not, from now on; returns what it was. The caller puts it back.

        Nothing has to be seen of the tracer itself, and of torch's operations: Python calls a profiler
        several times for each function that they call, which is most of what a trace costs.
        """
        before = bool(self._sees_calls)
        if self._sees_calls is None or wanted is before or threading.get_ident() != self._thread:
            return before
        sys.setprofile(self._profile if wanted else None)
        self._sees_calls = wanted
        return before

    @contextmanager
    def recording(self, recorder: ReadRecorder, is_following: Callable[[], bool]) -> Iterator[None]:
        """Tell ``recorder`` of what happens inside, whenever ``is_following()``."""
        self._recorders.append((recorder, is_following))
        try:
            yield
        finally:
            self._recorders.pop()

    @contextmanager
    def used(self, watch: ExternalStateWatch) -> Iterator[None]:
        """Instrument the process inside, and tell ``watch`` too."""
        profile: Any = sys.getprofile()
        collects = gc.isenabled()
        gc.disable()  # a callback of the collector would be taken for the model's code
        self._watch = watch
        self.instrument(nn.Module)
        sys.setprofile(self._profile)
        self._sees_calls = True
        try:
            yield
        finally:
            sys.setprofile(None)
            self._sees_calls = None
            self._builtins.release()
            if hasattr(profile, "enable"):  # cProfile, which is no function
                profile.enable()
            else:
                sys.setprofile(profile)
            if collects:
                gc.enable()
            for cls, own in self._patched.items():
                for name in _ALL_HOOKS:
                    if name in own:
                        setattr(cls, name, own[name])
                    elif name in _HOOKS:
                        delattr(cls, name)
            self._patched.clear()

    def instrument(self, cls: type) -> None:
        """Tell of access to attributes of objects of ``cls``, where that can be."""
        if cls in self._patched or not cls.__flags__ & _HEAP_TYPE:
            return
        if issubclass(cls, nn.Module) and cls is not nn.Module:
            return
        read, write, delete = (getattr(cls, name) for name in _HOOKS)

        def recorded(owner: Any, name: str) -> Any:
            try:
                value = read(owner, name)
            except AttributeError:
                if (recorder := self._now(name)) is not None:
                    recorder.missed(owner, name)
                raise
            if (recorder := self._now(name)) is not None:
                if name == "__dict__":
                    recorder.read_all(owner)
                else:
                    recorder.read(owner, name, value)
            return value

        def found(owner: Any, name: str) -> Any:
            value = own["__getattr__"](owner, name)
            if (recorder := self._now(name)) is not None:
                recorder.found(owner, name, value)
            return value

        def written(owner: Any, name: str, value: Any) -> None:
            if (recorder := self._now(name, _UNSEEN_WRITES)) is not None:
                if _has(owner, name, value):
                    recorder.read(owner, name, value)  # to set it again changes nothing, while it is so
                else:
                    recorder.wrote(owner, name)
            write(owner, name, value)

        def deleted(owner: Any, name: str) -> None:
            if (recorder := self._now(name, _UNSEEN_WRITES)) is not None:
                recorder.wrote(owner, name)
            delete(owner, name)

        own = {name: cls.__dict__[name] for name in _ALL_HOOKS if name in cls.__dict__}
        try:
            for name, hook in zip(_HOOKS, (recorded, written, deleted), strict=True):
                setattr(cls, name, hook)
            if isinstance(own.get("__getattr__"), FunctionType) and cls is not nn.Module:
                setattr(cls, "__getattr__", found)  # noqa: B010
        except (TypeError, AttributeError):  # its metaclass does not allow that
            return
        self._patched[cls] = own

    def _now(self, name: str, unseen: tuple[str, ...] = _UNSEEN) -> ReadRecorder | None:
        """The recorder to tell of access to the attribute ``name`` by the code two frames above, if any."""
        if not self._recorders or threading.get_ident() != self._thread:
            return None
        if name.startswith("__") and name != "__dict__":
            return None
        recorder, is_following = self._recorders[-1]
        if not is_following() or str(sys._getframe(2).f_globals.get("__name__", "")).startswith(unseen):
            return None
        return recorder

    def _profile(self, frame: FrameType, event: str, called: Any) -> None:
        if event == "call":
            self._entered(frame)
        elif event == "c_call" and self._recorders:
            recorder, is_following = self._recorders[-1]
            if is_following() and is_own(frame):
                self._called(recorder, called)

    def _entered(self, frame: FrameType) -> None:
        own = is_own(frame)
        if own and self._watch is not None:
            self._watch.enter(frame)
        if not self._recorders:
            return
        recorder, is_following = self._recorders[-1]
        if not is_following():
            return
        code = frame.f_code
        if own:
            self._builtins.enter(frame)
            try:
                recorder.enter(frame)
            except UntraceableError as error:  # Python would drop a profiler that raises
                recorder.refuse(error)
        elif code is _MAKES_MODULE:
            recorder.made(frame.f_locals["self"])
        elif code is _IMPORTS and frame.f_back is not None and is_own(frame.f_back):
            recorder.imported(str(frame.f_locals["name"]))
        elif code is _READS_ENVIRONMENT:
            recorder.read_environment(os.environ, frame.f_locals["key"])
        elif code in _REFUSED_IN_PYTHON and _is_asked_by_own(frame):
            recorder.refuse(UntraceableError(_REFUSED_IN_PYTHON[code]))
        elif code in _STATES_IN_PYTHON and frame.f_back is not None and is_own(frame.f_back):
            function = _STATES_IN_PYTHON[code]
            recorder.asked(function, function())

    def _asked_for_class(self, module: nn.Module) -> None:
        if self._recorders:
            recorder, is_following = self._recorders[-1]
            if is_following():
                recorder.asked_for_class(module)

    def _called(self, recorder: ReadRecorder, called: Any) -> None:
        known = id(called)  # not every function can be hashed
        if known in _STATES:
            recorder.asked(called, called())
        elif known in _OF_AUTOCAST:
            recorder.asked_autocast()
        elif known in _REFUSED:
            recorder.refuse(UntraceableError(_REFUSED[known]))
        elif isinstance(variable := getattr(called, "__self__", None), ContextVar):
            try:
                recorder.used_context(variable, called.__name__)
            except UntraceableError as error:
                recorder.refuse(error)


_WRAPPERS = ("contextlib", *_torch.COMPILER_WRAPPERS)


def _is_asked_by_own(frame: FrameType) -> bool:
    """Whether a model's own code calls this function, perhaps by a ``with``."""
    caller = frame.f_back
    while caller is not None and str(caller.f_globals.get("__name__")).startswith(_WRAPPERS):
        caller = caller.f_back
    return caller is not None and is_own(caller)


def _has(owner: Any, name: str, value: Any) -> bool:
    """Whether an object has that very value already: to set it again changes nothing."""
    try:
        held = object.__getattribute__(owner, "__dict__")
    except AttributeError:
        return False
    return name in held and held[name] is value
