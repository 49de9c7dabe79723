"""Capture a model region by region, from runs of its example call.

Three runs, each from the same random state and on copies of the buffers:

1. as the model is, keeping what each module returned;
2. traced: every module that is not torch's own is traced in its first call, by carrying the call
   out, and must return what it returned in run 1, bit for bit;
3. traced in the opposite train/eval mode, to find what depends on it.

A module that any of this fails for stays as it is; its boundary is still a node of its parent.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.fx as fx
from torch import nn
from torch.utils import _pytree as pytree

from fxgraft.bits import same_bits
from fxgraft.capture.call_form import CallForm
from fxgraft.capture.clone import clone_tree
from fxgraft.capture.modes import merge_modes
from fxgraft.capture.region import Region
from fxgraft.capture.tracer import RegionTracer, Untraceable
from fxgraft_passes.errors import TraceError
from fxgraft_passes.observe import Observer, WatchedRun


class Capture:
    """What was found out about a model.

    Attributes:
        root: the clone of the model that the host runs.
        regions: qualified name -> region, parents before children.
        opaque: qualified name -> why the module has no graph.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.root = clone_tree(model)
        self.opaque: dict[str, str] = {}
        modules = {name: m for name, m in self.root.named_modules() if not is_leaf(m)}
        returned = Returned()
        self._run(modules, returned.watch, args, kwargs, flip=False)
        traces = Traces(returned)
        self._run(modules, traces.watch, args, kwargs, flip=False)
        flipped = Traces(None, skip=traces)
        try:
            self._run(modules, flipped.watch, args, kwargs, flip=True)
            other_mode = "was not reached in the other train/eval mode"
        except TraceError as error:
            other_mode = f"is known in one train/eval mode only: {error}"
        traces.observer.finish()
        flipped.observer.finish()
        self.regions: dict[str, Region] = {}
        for name, module in modules.items():
            try:
                self.regions[name] = self._region(name, module, traces, flipped, other_mode)
            except Untraceable as reason:
                self.opaque[name] = str(reason)

    def _region(
        self, name: str, module: nn.Module, traces: Traces, flipped: Traces, other_mode: str
    ) -> Region:
        form, graph = traces.of(module, "was not called in the example run")
        _, other = flipped.of(module, other_mode)
        merge_modes(graph, other, module.training)
        return Region(name, module, form, graph)

    def _run(
        self,
        modules: dict[str, nn.Module],
        watch: Callable[[nn.Module], Callable[..., Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        flip: bool,
    ) -> None:
        with untouched(self.root), torch.enable_grad():
            if flip:
                for module in self.root.modules():
                    module.training = not module.training
            for module in modules.values():
                module.__dict__["forward"] = watch(module)
            try:
                self.root(*args, **kwargs)
            except Exception as error:
                mode = "train" if self.root.training else "eval"
                raise TraceError(
                    f"the example call of {type(self.root).__name__} failed in {mode} mode: "
                    f"{type(error).__name__}: {error}"
                ) from error


class Returned:
    """Keeps what each module returned, call by call."""

    def __init__(self) -> None:
        self.values: dict[nn.Module, list[Any]] = {}

    def watch(self, module: nn.Module) -> Callable[..., Any]:
        forward = type(module).forward

        def recorded(*args: Any, **kwargs: Any) -> Any:
            result = forward(module, *args, **kwargs)
            # A copy: the caller may write into it.
            self.values.setdefault(module, []).append(pytree.tree_map_only(torch.Tensor, _copy, result))
            return result

        return recorded


class Traces:
    """Traces each module in its first call and follows the graph in the later ones."""

    def __init__(self, returned: Returned | None, skip: Traces | None = None):
        self.observer = Observer()
        self._returned = returned
        self._found: dict[nn.Module, tuple[CallForm, fx.Graph]] = {}
        self._failed: dict[nn.Module, str] = dict(skip._failed) if skip else {}
        self._finished: list[nn.Module] = []
        self._calls: Counter[nn.Module] = Counter()

    def of(self, module: nn.Module, unseen: str) -> tuple[CallForm, fx.Graph]:
        """The trace of a module. Raises `Untraceable` with the reason, ``unseen`` if there is none."""
        if module in self._failed or module not in self._found:
            raise Untraceable(self._failed.get(module, unseen))
        return self._found[module]

    def watch(self, module: nn.Module) -> Callable[..., Any]:
        forward = MethodType(type(module).forward, module)

        def traced(*args: Any, **kwargs: Any) -> Any:
            before = len(self._finished)
            state = torch.get_rng_state()
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
                self._calls.subtract(self._finished[before:])
                del self._finished[before:]
            result = forward(*args, **kwargs)
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
        if module in self._found:
            return self._rerun(module, args, kwargs)
        form = CallForm(forward, args, kwargs)
        inputs = form.values(args, kwargs)
        assert inputs is not None, "a form matches the call that it was made from"
        tracer = RegionTracer(form, inputs, self.observer)
        graph = tracer.trace_call(module, type(module).forward)
        self._found[module] = (form, graph)
        return tracer.result

    def _rerun(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Another call of a module that is used more than once: the same slots, observed again."""
        form, graph = self._found[module]
        inputs = form.values(args, kwargs)
        if inputs is None:
            raise Untraceable("is called in different forms in one forward pass")
        run = WatchedRun(module, graph, self.observer)
        return run.run(*(inputs[known.name] for known in form.inputs))

    def _agrees(self, module: nn.Module, result: Any) -> bool:
        if self._returned is None:
            return True
        call = self._calls[module]
        expected = self._returned.values.get(module, [])
        return call < len(expected) and same_bits(result, expected[call])


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is a node rather than a region: torch's own, or not Python that can be traced."""
    if isinstance(module, torch.jit.ScriptModule) or "forward" in module.__dict__:
        return True
    own = type(module).__module__.startswith(("torch.nn.", "torch.ao."))
    return own and type(module) is not nn.Sequential


@contextmanager
def untouched(*roots: nn.Module) -> Iterator[None]:
    """Run modules inside without a trace: attributes, buffers and random streams come back as they were."""
    modules = [module for root in roots for module in root.modules()]
    before = [dict(module.__dict__) for module in modules]
    copies: dict[torch.Tensor, torch.Tensor] = {}
    for module in modules:
        module.__dict__["_buffers"] = {
            name: buffer if buffer is None else copies.setdefault(buffer, buffer.detach().clone())
            for name, buffer in module._buffers.items()
        }
    python_state = random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        for module, state in zip(modules, before, strict=True):
            module.__dict__.clear()
            module.__dict__.update(state)


def _has_proxies(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a caller that is being traced passed its proxies on by a way that was not followed."""
    return any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs)))


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _reason(error: Exception) -> str:
    if isinstance(error, Untraceable):
        return str(error)
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
