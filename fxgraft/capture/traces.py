"""What the runs of `Capture` put in the place of each module's ``forward``: a recorder, or a tracer."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from types import MethodType
from typing import Any

import torch
import torch.fx as fx
from torch import nn
from torch.utils import _pytree as pytree

from fxgraft import _torch
from fxgraft.capture._boundary import TRANSFORMED
from fxgraft.capture._instruments import Instruments
from fxgraft.capture._proxy import ConcreteProxy, UntraceableError
from fxgraft.capture._tracer import RegionTracer
from fxgraft.capture.call_form import CallForm, is_constant
from fxgraft.capture.data_flow import DataFlow
from fxgraft.capture.earlier_trace import KnownGraph, ReusableGraphs, StaleGraphError
from fxgraft.util.bits import same_bits
from fxgraft_passes.observe import Observer, WatchedRun
from fxgraft_passes.snapshot import Snapshot


class RecordedCalls:
    """Records the form and the result of each call of a module, in a run of the model's own code.

    Attributes:
        values: module -> its results, call by call.
        forms: module -> the forms of its calls.
        data_flow: knows whose results each module read.
    """

    def __init__(self) -> None:
        self.values: dict[nn.Module, list[Any]] = {}
        self.forms: dict[nn.Module, list[CallForm]] = {}
        self.data_flow = DataFlow()

    def watch(self, module: nn.Module) -> Callable[..., Any]:
        forward = type(module).forward

        def recorded(*args: Any, **kwargs: Any) -> Any:
            form = CallForm(MethodType(forward, module), args, kwargs)
            self.forms.setdefault(module, []).append(form)
            self.data_flow.called(module, form.signature.bind(*args, **kwargs))
            result = forward(module, *args, **kwargs)
            self.data_flow.returned(module, result)
            # A copy: the caller may write into it.
            self.values.setdefault(module, []).append(
                pytree.tree_map_only(torch.Tensor, _copy, opened(result))
            )
            return result

        return recorded


class Traces:
    """Traces each module in its first call and follows the graph in the later ones.

    Args:
        instruments: see what the code reads and writes.
        kept: the memory that no forward may write into.
        returned: what each call has to return; None where it may be anything.
        skip: traces of another run: what failed there is not tried.
        known: graphs that are followed where calls meet their conditions, and what is not tried either.
        seeing: a context in which what code reads and writes is seen; a module is traced inside of it.

    Attributes:
        followed: the modules of which such a graph was followed, with that.
    """

    def __init__(
        self,
        instruments: Instruments,
        kept: frozenset[int],
        returned: RecordedCalls | None = None,
        skip: Traces | None = None,
        known: ReusableGraphs | None = None,
        seeing: Callable[[], AbstractContextManager[object]] = nullcontext,
    ):
        self.observer = Observer()
        self._instruments = instruments
        self._kept = kept
        self._returned = returned
        self._found: dict[nn.Module, tuple[CallForm, fx.Graph]] = {}
        self._failed: dict[nn.Module, str] = dict(skip._failed) if skip else {}
        known = known or ReusableGraphs(None, {})
        self._known, self._seeing = dict(known.graphs), seeing
        self._failed |= known.failed
        self.followed: dict[nn.Module, KnownGraph] = {}
        self._proxies: dict[nn.Module, list[weakref.ref[ConcreteProxy]]] = {}
        self._finished: list[nn.Module] = []
        self._calls: Counter[nn.Module] = Counter()
        self._inside = 0

    def finish(self) -> None:
        """Sum up what was observed, and refuse each module that keeps a value of its forward.

        To be called where the run has ended, and before anything is put back.
        """
        self.observer.finish()
        if any(proxy() is not None for proxies in self._proxies.values() for proxy in proxies):
            gc.collect()  # it may be in a circle that nothing else holds
        for module, proxies in self._proxies.items():
            kept = next((found for proxy in proxies if (found := proxy()) is not None), None)
            if kept is not None:
                self._failed[module] = (
                    f"keeps {kept.node} beyond its forward: a value goes out beside the result"
                )
        self._proxies.clear()

    def of(self, module: nn.Module, unseen: str) -> tuple[CallForm, fx.Graph]:
        """The trace of a module. Raises `UntraceableError` with the reason, ``unseen`` if there is none."""
        if module in self._failed or module not in self._found:
            raise UntraceableError(self._failed.get(module, unseen))
        return self._found[module]

    def require_followed(self, modules: Iterable[nn.Module] = ()) -> None:
        """Raise `StaleGraphError` where one of these was not followed, or what was followed has failed."""
        if self.followed.keys() & self._failed.keys() or any(m not in self.followed for m in modules):
            raise StaleGraphError

    def watch(self, module: nn.Module) -> Callable[..., Any]:
        forward = MethodType(type(module).forward, module)

        def traced(*args: Any, **kwargs: Any) -> Any:
            seen = self._instruments.see_calls(False)
            try:
                return in_place_of(*args, **kwargs)
            finally:
                self._instruments.see_calls(seen)

        def in_place_of(*args: Any, **kwargs: Any) -> Any:
            if self._inside and not self._expected(module, args, kwargs):
                raise UntraceableError(f"calls {type(module).__name__} in another way while it is traced")
            before = len(self._finished)
            state = torch.get_rng_state()
            given = Snapshot(_objects(args, kwargs))  # a cache that is passed in is written into
            if _torch.is_inside_transform():
                self._failed.setdefault(module, TRANSFORMED)
            if module not in self._failed and not _has_proxies(args, kwargs):
                try:
                    result = self._follow(module, forward, args, kwargs)
                    if self._agrees(module, result):
                        self._finish(module)
                        return result
                    self._failed[module] = "its trace computes another value than the module does"
                except Exception as error:
                    self._failed[module] = _reason(error)
                # Once more from the start, as if the attempt had not been.
                torch.set_rng_state(state)
                given.restore()
                self._calls.subtract(self._finished[before:])
                del self._finished[before:]
            seen = self._instruments.see_calls(True)
            try:
                result = forward(*args, **kwargs)
            finally:
                self._instruments.see_calls(seen)
            self._finish(module)
            return result

        return traced

    def _finish(self, module: nn.Module) -> None:
        self._finished.append(module)
        self._calls[module] += 1

    def _follow(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if module not in self._found:
            self._take_known(module, args, kwargs)
        if module in self._found:
            return self._rerun(module, args, kwargs)
        form = CallForm(forward, args, kwargs)
        inputs = form.values(args, kwargs)
        assert inputs is not None, "a form matches the call that it was made from"
        tracer = RegionTracer(form, inputs, self.observer, self._instruments, self._kept)
        self._inside += 1
        try:
            with self._seeing():
                graph, result = tracer.trace_call(module, type(module).forward)
        finally:
            self._inside -= 1
        form.switches_gradients = tracer.switches_gradients
        form.switches_autocast = tracer.switches_autocast
        self._proxies[module] = tracer.proxies
        self._found[module] = (form, graph)
        return result

    def _take_known(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Use the graph of an earlier trace for ``module``, if there is one and it is valid."""
        known = self._known.pop(module, None)
        if known is not None and (found := known.take(args, kwargs)) is not None:
            self._found[module], self.followed[module] = found, known

    def _rerun(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a module that has a graph already, being used more than once, say: it is observed."""
        form, graph = self._found[module]
        inputs = form.values(args, kwargs)
        if inputs is None:
            raise UntraceableError("is called in different forms in one forward pass")
        run = WatchedRun(module, graph, self.observer)
        opened = _torch.open_autocasts()
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # where the graph raises in its part without
            try:
                return run.run(*(inputs[known.name] for known in form.inputs))
            except BaseException:
                _torch.leave_autocasts(opened)
                raise

    def _expected(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call is of the form that it had in run 1: else the caller's trace is wrong."""
        if self._returned is None:
            return True
        call, forms = self._calls[module], self._returned.forms.get(module, [])
        return call < len(forms) and forms[call].values(args, kwargs) is not None

    def _agrees(self, module: nn.Module, result: Any) -> bool:
        if self._returned is None:
            return True
        call = self._calls[module]
        expected = self._returned.values.get(module, [])
        return call < len(expected) and same_bits(opened(result), expected[call])


def _has_proxies(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a caller that is being traced passed its proxies on by a way that was not followed."""
    return any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs)))


def _objects(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[object]:
    """What is passed in and is neither a tensor nor a number."""
    leaves = pytree.tree_leaves((args, kwargs))
    return [
        leaf for leaf in leaves if not isinstance(leaf, (torch.Tensor, fx.Proxy)) and not is_constant(leaf)
    ]


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _reason(error: Exception) -> str:
    if isinstance(error, UntraceableError):
        return str(error)
    text = str(error).strip().splitlines()
    return f"cannot be traced: {type(error).__name__}: {text[0] if text else ''}"


def opened(value: Any) -> Any:
    """``value`` with its dataclasses as dictionaries, which can be compared part by part."""

    def opened(leaf: Any) -> Any:
        if not is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        parts = {field.name: opened(getattr(leaf, field.name, None)) for field in fields(leaf)}
        return type(leaf).__qualname__, parts

    return pytree.tree_map(opened, value)
