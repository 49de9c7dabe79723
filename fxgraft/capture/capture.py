"""Capture a model region by region, from runs of its example call.

Runs of the example call, each from the same random state and on copies of the buffers:

1. as the model is, keeping what each module returned;
2. traced: every module that is not torch's own is traced in its first call, by carrying the call
   out, and must return what it returned in run 1, bit for bit;
3. traced in the opposite train/eval mode, to find what depends on it;
4. in each mode, by its own code and by its graphs, which must agree in values and gradients (`_comparison`).

A module that any of this fails for stays as it is; its boundary is still a node of its parent.

A model on the ``meta`` device is captured there, in no time and no memory: shapes and dtypes are compared
in the place of bits, and there is no run 4.

Graphs of an earlier trace of the model are used again where they are still valid (`earlier_trace`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxgraft.capture._boundary import TRANSFORMED, Boundaries, uncovered
from fxgraft.capture._comparison import Comparison, NotComparableError
from fxgraft.capture._effects import memory_of
from fxgraft.capture._example_runs import ExampleRuns, as_it_is, fresh, is_without_data, other_mode
from fxgraft.capture._facts import Fact, steps_to
from fxgraft.capture._fast_path import disable_fast_path, why_left_out
from fxgraft.capture._modes import merge_modes
from fxgraft.capture._proxy import UntraceableError
from fxgraft.capture.clone import clone_tree
from fxgraft.capture.earlier_trace import EarlierTrace, ReusableGraphs, StaleGraphError
from fxgraft.capture.first_call import FirstCallState
from fxgraft.capture.region import Region
from fxgraft.capture.traces import RecordedCalls, Traces
from fxgraft.errors import TraceError


class Capture:
    """What was found out about a model.

    Args:
        model: the model, or with ``clone=False`` the root of a host without seeds, for another trace of it.
        args, kwargs: of the example call.
        clone: whether to leave the model's own modules alone.
        earlier: another trace of the root, with its layers in other sizes.

    Attributes:
        root: the clone of the model that the host runs.
        regions: qualified name -> region, parents before children.
        opaque: qualified name -> why the module has no graph.
        left_out: qualified name -> why the boundary of the module is no slot.
        uncompared: why graphs were not compared with the code behind them; empty where they were.
        external_state: what the model's code names outside of its modules, and may write into.
        runs: qualified name -> how the module ran in the example call, of those that are not torch's own, and
            of torch's blocks.
        example: args and kwargs of the example call, with copies of the tensors.
        first_call: what the first call of the model sets once and for all.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        clone: bool = True,
        earlier: EarlierTrace | None = None,
    ):
        self.root = clone_tree(model) if clone else model
        if is_without_data(model):
            args, kwargs = pytree.tree_map_only(torch.Tensor, _without_data, (args, kwargs))
        self.example = pytree.tree_map_only(torch.Tensor, fresh, (args, kwargs))
        self.opaque: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.uncompared = ""
        self.regions: dict[str, Region] = {}
        self._runs = ExampleRuns(self.root, args, kwargs)
        self.external_state = self._runs.external_state
        modules = {name: m for name, m in self.root.named_modules() if not is_leaf(m)}
        if earlier is None or not self._follow(modules, earlier):
            self._find(modules)
        self._runs.look_again()
        self.first_call = FirstCallState(self.root, self._runs.completion)

    def _follow(self, modules: dict[str, nn.Module], earlier: EarlierTrace) -> bool:
        """Use the graphs of an earlier trace, in the present sizes; False where one is not valid any more."""
        try:
            with self._runs.quietly(earlier.external_state):
                self._find(modules, earlier)
        except (StaleGraphError, TraceError):
            self.regions, self.opaque, self.left_out, self.uncompared = {}, {}, {}, ""
            return False
        self.external_state = earlier.external_state
        return True

    def _find(self, modules: dict[str, nn.Module], earlier: EarlierTrace | None = None) -> None:
        """Trace each module, but for those of which the graph is known.

        A known graph is compared with the code in the runs that observe it; its gradients were compared when
        it was new.
        """
        returned, flipped = RecordedCalls(), None
        self._runs.run(modules, returned.watch, finish=self._runs.settle)
        self.runs = returned.data_flow.runs(modules)
        if earlier is not None:
            flipped = RecordedCalls()
            self._runs.run(modules, flipped.watch, other_mode)
        followed = self._make_regions(modules, ReusableGraphs(earlier, modules), returned, flipped)
        traced = [region for region in self.regions.values() if region.module not in followed]
        if traced or earlier is None:
            self._compare(traced)
        else:
            self.uncompared = earlier.uncompared
        for name, region in self.regions.items():
            region.form.inherit(self._facts_of_parts(name, region))
        self._add_boundaries()

    def _make_regions(
        self,
        modules: dict[str, nn.Module],
        known: ReusableGraphs,
        returned: RecordedCalls,
        flipped: RecordedCalls | None,
    ) -> Collection[nn.Module]:
        """Two runs: a region of each module of which both can make one; returns those that were known."""
        kept = frozenset(memory for p in self.root.parameters() if (memory := memory_of(p)) is not None)
        instruments, seeing = self._runs.instruments, self._runs.seeing
        traces = Traces(instruments, kept, returned, known=known, seeing=seeing)
        self._runs.run(modules, traces.watch, finish=lambda before: traces.finish())
        again = known.only(traces.followed)
        others = Traces(instruments, kept, flipped, skip=traces, known=again, seeing=seeing)
        try:
            self._runs.run(modules, others.watch, other_mode, finish=lambda before: others.finish())
            unseen = "was not reached in the other train/eval mode"
        except TraceError as error:
            unseen = f"is known in one train/eval mode only: {error}"
        traces.require_followed()
        others.require_followed(traces.followed)
        for name, module in modules.items():
            try:
                form, graph = traces.of(module, "was not called in the example run")
                other_form, other = others.of(module, unseen)
                if module in traces.followed:
                    traces.followed[module].settle()
                else:
                    form.add_mode(other_form)
                    merge_modes(graph, other, module.training)
                self.regions[name] = Region(name, module, form, graph)
            except UntraceableError as reason:
                self.opaque[name] = str(reason)
        return traces.followed.keys()

    def _compare(self, traced: Sequence[Region]) -> None:
        """Refuse each of these regions whose graph does not compute, in both modes, what its code does."""
        if is_without_data(self.root):
            self.uncompared = "on the meta device there are no values to compare"
            return
        for prepare in (as_it_is, other_mode):
            traced = [region for region in traced if region.name in self.regions]
            if not traced:
                return

            @contextmanager
            def repeated(prepare: Callable[[nn.Module], object] = prepare) -> Iterator[None]:
                with self._runs.repeated(prepare, with_external_state=True):
                    yield

            try:
                comparison = Comparison(self.root, self._runs.args, self._runs.kwargs, repeated)
                refused = comparison.differing(traced)
            except NotComparableError as reason:
                self.uncompared = str(reason)
                return
            self.opaque |= refused
            self.regions = {n: region for n, region in self.regions.items() if n not in refused}

    def _facts_of_parts(self, name: str, region: Region) -> list[Fact]:
        """What the forms of the results that a region relies on depend on: what their modules read."""
        found: list[Fact] = []
        for path in region.form.relied_on:
            below = f"{name}.{path}" if name else path
            for other, part in self.regions.items():
                if other == below or other.startswith(f"{below}."):
                    steps = steps_to(other[len(name) :].lstrip("."))
                    found += [fact.below(steps) for fact in part.form.facts]
        return found

    def _add_boundaries(self) -> None:
        """Two more runs, where code without a graph calls modules: their boundaries are slots.

        The second is an evaluation: a seed has no place in a module that it leaves out.
        """
        modules = uncovered(self.root, self.regions, self.opaque)
        if not modules:
            return
        if disable_fast_path(self.root):
            self._runs.look_again()
        boundaries = Boundaries()
        self._runs.run(modules, boundaries.watch)
        found = boundaries.regions(modules)
        try:
            self._runs.run(modules, boundaries.watch_evaluation, nn.Module.eval, gradients=False)
        except TraceError:  # the model is not made for that
            boundaries.evaluated.update(modules.values())
        around = [name for name in found if modules[name] not in boundaries.evaluated]
        self.left_out = {name: why_left_out(self.root, name) for name in around}
        self.left_out |= {name: TRANSFORMED for name in modules if modules[name] in boundaries.transformed}
        self.regions |= {name: region for name, region in found.items() if name not in self.left_out}
        self.runs |= boundaries.data_flow.runs(modules)


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("meta").requires_grad_(tensor.requires_grad)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is a node rather than a region: torch's own, or not Python that can be traced."""
    if isinstance(module, torch.jit.ScriptModule) or "forward" in module.__dict__:
        return True
    own = type(module).__module__.startswith(("torch.nn.", "torch.ao."))
    return own and type(module) is not nn.Sequential
