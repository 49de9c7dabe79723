"""Capture a model region by region, from runs of its example call.

Runs of the example call, each from the same random state and on copies of the buffers:

1. as the model is, keeping what each module returned;
2. traced: every module that is not torch's own is traced in its first call, by carrying the call
   out, and must return what it returned in run 1, bit for bit;
3. traced in the opposite train/eval mode, to find what depends on it;
4. in each mode, by its own code and by its graphs, which must agree in values and gradients (`comparison`).

A module that any of this fails for stays as it is; its boundary is still a node of its parent.

A model on the ``meta`` device is captured there, in no time and no memory: shapes and dtypes are compared
in the place of bits, and there is no run 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxgraft.capture.boundary import TRANSFORMED, Boundaries, uncovered
from fxgraft.capture.clone import clone_tree
from fxgraft.capture.comparison import Comparison, NotComparableError
from fxgraft.capture.effects import memory_of
from fxgraft.capture.facts import Fact, steps_to
from fxgraft.capture.fast_path import keep_slow, why_left_out
from fxgraft.capture.instruments import Instruments
from fxgraft.capture.intercept import whole_calls
from fxgraft.capture.modes import merge_modes
from fxgraft.capture.proxy import UntraceableError
from fxgraft.capture.region import Region
from fxgraft.capture.traces import RecordedCalls, Traces
from fxgraft.capture.world import Watch, World
from fxgraft.errors import TraceError
from fxgraft_passes.snapshot import Snapshot
from fxgraft_passes.untouched import untouched


def _as_it_is(root: nn.Module) -> None:
    """Nothing."""


class Capture:
    """What was found out about a model.

    Args:
        model: the model, or with ``clone=False`` the root of a host without seeds, for another trace of it.
        args, kwargs: of the example call.
        clone: whether to leave the model's own modules alone.

    Attributes:
        root: the clone of the model that the host runs.
        regions: qualified name -> region, parents before children.
        opaque: qualified name -> why the module has no graph.
        left_out: qualified name -> why the boundary of the module is no slot.
        uncompared: why graphs were not compared with the code that they stand for; empty where they were.
        world: what the model's code names outside of its modules, and may write into.
        runs: qualified name -> how the module ran in the example call, of those that are not torch's own.
        example: args and kwargs of the example call, with copies of the tensors.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], clone: bool = True):
        self.root = clone_tree(model) if clone else model
        if _is_without_data(model):
            args, kwargs = pytree.tree_map_only(torch.Tensor, _without_data, (args, kwargs))
        self.example = pytree.tree_map_only(torch.Tensor, _fresh, (args, kwargs))
        self.opaque: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.uncompared = ""
        modules = {name: m for name, m in self.root.named_modules() if not is_leaf(m)}
        self.world = World()
        self._instruments = Instruments()
        self._settled: list[tuple[object, str, Any]] = []
        kept = frozenset(memory for p in self.root.parameters() if (memory := memory_of(p)) is not None)
        returned = RecordedCalls()
        self._run(modules, returned.watch, args, kwargs, finish=self._settle)
        self.runs = returned.following.runs(modules)
        traces = Traces(self._instruments, kept, returned)
        self._run(modules, traces.watch, args, kwargs, finish=lambda before: traces.finish())
        flipped = Traces(self._instruments, kept, skip=traces)
        try:
            self._run(
                modules, flipped.watch, args, kwargs, _other_mode, finish=lambda before: flipped.finish()
            )
            other_mode = "was not reached in the other train/eval mode"
        except TraceError as error:
            other_mode = f"is known in one train/eval mode only: {error}"
        self.regions: dict[str, Region] = {}
        for name, module in modules.items():
            try:
                self.regions[name] = self._region(name, module, traces, flipped, other_mode)
            except UntraceableError as reason:
                self.opaque[name] = str(reason)
        self._compare(args, kwargs)
        for name, region in self.regions.items():
            region.form.require(self._facts_of_parts(name, region))
        self._add_boundaries(args, kwargs)

    def _compare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse each region whose graph does not compute, in both modes, what its code does."""
        if _is_without_data(self.root):
            self.uncompared = "on the meta device there are no values to compare"
            return
        for prepare in (_as_it_is, _other_mode):
            if not self.regions:
                return

            @contextmanager
            def repeated(prepare: Callable[[nn.Module], object] = prepare) -> Iterator[None]:
                with self._repeated(args, kwargs, prepare, also=self.world.roots(self.root)):
                    yield

            try:
                comparison = Comparison(self.root, args, kwargs, repeated)
                refused = comparison.differing(list(self.regions.values()))
            except NotComparableError as reason:
                self.uncompared = str(reason)
                return
            self.opaque |= refused
            self.regions = {n: region for n, region in self.regions.items() if n not in refused}

    def _facts_of_parts(self, name: str, region: Region) -> list[Fact]:
        """What the forms of the results that a region relies on depend on: what their modules were told."""
        found: list[Fact] = []
        for path in region.form.relied_on:
            below = f"{name}.{path}" if name else path
            for other, part in self.regions.items():
                if other == below or other.startswith(f"{below}."):
                    steps = steps_to(other[len(name) :].lstrip("."))
                    found += [fact.below(steps) for fact in part.form.facts]
        return found

    def _add_boundaries(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Two more runs, where code without a graph calls modules: their boundaries are slots.

        The second is an evaluation: a seed has no place in a module that it leaves out.
        """
        modules = uncovered(self.root, self.regions)
        if not modules:
            return
        keep_slow(self.root)
        boundaries = Boundaries()
        self._run(modules, boundaries.watch, args, kwargs)
        found = boundaries.regions(modules)
        try:
            self._run(modules, boundaries.watch_evaluation, args, kwargs, nn.Module.eval, gradients=False)
        except TraceError:  # the model is not made for that
            boundaries.evaluated.update(modules.values())
        around = [name for name in found if modules[name] not in boundaries.evaluated]
        self.left_out = {name: why_left_out(self.root, name) for name in around}
        self.left_out |= {name: TRANSFORMED for name in modules if modules[name] in boundaries.transformed}
        self.regions |= {name: region for name, region in found.items() if name not in self.left_out}

    def _region(
        self, name: str, module: nn.Module, traces: Traces, flipped: Traces, other_mode: str
    ) -> Region:
        form, graph = traces.of(module, "was not called in the example run")
        other_form, other = flipped.of(module, other_mode)
        form.require(other_form.facts)
        merge_modes(graph, other, module.training)
        return Region(name, module, form, graph)

    def _run(
        self,
        modules: dict[str, nn.Module],
        watch: Callable[[nn.Module], Callable[..., Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        prepare: Callable[[nn.Module], object] = _as_it_is,
        gradients: bool = True,
        finish: Callable[[Snapshot], object] = lambda before: None,
    ) -> None:
        with (
            self._repeated(args, kwargs, prepare, gradients) as before,
            self._watched_world() as world,
        ):
            for module in modules.values():
                module.__dict__["forward"] = watch(module)
            try:
                with whole_calls(), self._instruments.used(world):
                    args, kwargs = pytree.tree_map_only(torch.Tensor, _fresh, (args, kwargs))
                    self.root(*args, **kwargs)
                finish(before)
            except Exception as error:
                mode = "train" if self.root.training else "eval"
                hint = (
                    ". Correct the example, so that model(*example_args, **example_kwargs) runs in both modes"
                )
                if _is_without_data(self.root):
                    hint = (
                        ". On the meta device there are no values to look at: choose an example call in "
                        "which the model does not (one without a padding mask, say), or trace it with data"
                    )
                raise TraceError(
                    f"the example call of {type(self.root).__name__} failed in {mode} mode: "
                    f"{type(error).__name__}: {error}{hint}"
                ) from error

    @contextmanager
    def _repeated(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        prepare: Callable[[nn.Module], object],
        gradients: bool = True,
        also: Iterable[object] = (),
    ) -> Iterator[Snapshot]:
        """Run the example call inside as if it had not run, as it is after the first call."""
        with (
            untouched(self.root, also=[args, kwargs, *also]) as before,
            torch.set_grad_enabled(gradients),
        ):
            for holder, name, value in self._settled:
                vars(holder)[name] = value
            prepare(self.root)
            yield before

    def _settle(self, before: Snapshot) -> None:
        """What the first call set once and for all is set in the later runs.

        A configuration that a model completes in its first call is so in all calls but that one, which
        is then of another form.
        """
        self._settled = list(before.set_since())

    @contextmanager
    def _watched_world(self) -> Iterator[Watch]:
        """What the code reaches outside of the model is found inside, and put back afterwards."""
        watch = Watch(self.world, self.root)
        try:
            yield watch
        finally:
            watch.restore()


def _other_mode(root: nn.Module) -> None:
    """Each module into train mode that is in eval mode, and the other way round."""
    for module in root.modules():
        module.training = not module.training


def _is_without_data(model: nn.Module) -> bool:
    """Whether the model is on the meta device."""
    tensors = [*model.parameters(), *model.buffers()]
    return bool(tensors) and all(tensor.is_meta for tensor in tensors)


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("meta").requires_grad_(tensor.requires_grad)


def _fresh(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor for one run: the model may write into its inputs."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is a node rather than a region: torch's own, or not Python that can be traced."""
    if isinstance(module, torch.jit.ScriptModule) or "forward" in module.__dict__:
        return True
    own = type(module).__module__.startswith(("torch.nn.", "torch.ao."))
    return own and type(module) is not nn.Sequential
