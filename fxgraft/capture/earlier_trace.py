"""What an earlier trace of a model has found, for one that is made after its layers have got other sizes.

A graph is right for every call that meets its conditions: what the code read as a Python value is
a condition, and sizes of weights are computed in the graph. So where all conditions hold, the code is not
traced again. Its graph runs in the place of the code, is observed there anew (other sizes), and has to return
what the code returns, as a new graph has to. Where a condition does not hold (``self.heads == 4``) the region
is traced.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch.fx as fx
from torch import nn

from fxgraft.capture._external_state import ExternalState
from fxgraft.capture.call_form import CallForm
from fxgraft.capture.region import Region
from fxgraft_passes.base import copy_graph
from fxgraft_passes.metadata import metadata
from fxgraft_passes.observe import Observation, observation_of


class StaleGraphError(Exception):
    """A graph of an earlier trace does not do what the code does now."""


@dataclass(frozen=True)
class EarlierTrace:
    """An earlier trace.

    Attributes:
        regions: qualified name -> region.
        opaque: modules that have no graph -> why.
        uncompared: why graphs were not compared with the code; empty where they were.
        external_state: what the code names outside of its modules.
    """

    regions: Mapping[str, Region]
    opaque: Mapping[str, str]
    uncompared: str
    external_state: ExternalState


class ReusableGraphs:
    """The graphs of an earlier trace that can be followed.

    Args:
        earlier: the trace; None: there are no graphs.
        modules: those of the model, by name.

    Attributes:
        graphs: module -> its graph.
        failed: modules that are not to be traced -> why.
    """

    def __init__(self, earlier: EarlierTrace | None, modules: Mapping[str, nn.Module]):
        regions, opaque = ({}, {}) if earlier is None else (earlier.regions, earlier.opaque)
        self.graphs = {
            module: KnownGraph(region)
            for name, module in modules.items()
            if (region := regions.get(name)) is not None and region.module is module and _is_for_all(region)
        }
        self.failed = {module: opaque[name] for name, module in modules.items() if name in opaque}

    def only(self, followed: Mapping[nn.Module, KnownGraph]) -> ReusableGraphs:
        """The same for another mode, in which what was traced anew is traced, too."""
        found = copy.copy(self)
        found.graphs = dict(followed)
        return found


def _is_for_all(region: Region) -> bool:
    """Whether the graph is one of the code, and has no size of a weight as a constant in it."""
    is_code = not isinstance(region.module, fx.GraphModule)  # of which numbers in the graph may be others
    return is_code and not region.is_boundary and not region.form.reads_sizes


class KnownGraph:
    """The graph of an earlier trace, in two runs: in the mode of the model, then in the other one.

    Args:
        region: that has it.
    """

    def __init__(self, region: Region):
        self._region = region
        self._form = region.form.own()
        self._meets = _test_of(self._form)
        self._graph: fx.Graph | None = None
        self._seen: list[Observation | None] = []

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[CallForm, fx.Graph] | None:
        """Form and graph for a run, not observed yet; None where this call does not meet the conditions."""
        if not self._meets(self._region.module, args, kwargs):
            return None
        if self._graph is None:
            self._graph = copy_graph(self._region.base)
        else:
            self._seen = [observation_of(node) for node in self._graph.nodes]
        for node in self._graph.nodes:
            metadata(node).pop("observation", None)
        return self._form, self._graph

    def settle(self) -> None:
        """Give the graph the observations that the earlier one had, with the values of the present runs."""
        assert self._graph is not None
        for before, node, seen in zip(self._region.base.nodes, self._graph.nodes, self._seen, strict=True):
            elsewhere = observation_of(node)
            metadata(node).pop("observation", None)
            if seen is None or observation_of(before) is None:
                continue  # nodes for both modes are in no trace
            if elsewhere is not None and elsewhere.read_elsewhere and not seen.read_elsewhere:
                seen = replace(seen, read_elsewhere=elsewhere.read_elsewhere)
            metadata(node)["observation"] = seen


def _test_of(form: CallForm) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], bool]:
    """What tells whether a call of a module is of a form."""
    condition = compile(" and ".join(f"({guard})" for guard in form.guards) or "True", "<form>", "eval")
    names = form.names

    def meets(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        try:
            bound = form.signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return bool(eval(condition, names, {**bound.arguments, "self": module}))  # see guarded_entry
        except Exception:  # of an argument that is something else altogether
            return False

    return meets
