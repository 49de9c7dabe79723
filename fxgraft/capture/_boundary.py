"""The boundary of a module as a region of its own, where the code that calls it has no graph.

    def forward(self, input):
        _own_forward = self._own_forward          # the module's own code, whatever it does
        run = run(_own_forward, input)
        return run                                # the slot, named as the module

So a model whose root branches on its input can still be grown behind each of its modules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MethodType
from typing import Any

import torch.fx as fx
from torch import nn

from fxgraft import _torch
from fxgraft.capture import trace_operators
from fxgraft.capture._tracer import form_of
from fxgraft.capture.call_form import CallForm
from fxgraft.capture.data_flow import BLOCKS, DataFlow
from fxgraft.capture.region import Region
from fxgraft_passes.naming import OWN_FORWARD
from fxgraft_passes.observe import Observer

TRANSFORMED = "is called inside a transform of torch.func (vmap, grad), in which a seed cannot learn"


class Boundaries:
    """Watches modules in one run and makes a region of each call's inputs and result.

    Attributes:
        evaluated: those that an evaluation calls in the same form.
        transformed: those that a ``torch.func`` transform calls.
        data_flow: knows which `BLOCKS` read each other's results.
    """

    def __init__(self) -> None:
        self.observer = Observer()
        self.data_flow = DataFlow()
        self.evaluated: set[nn.Module] = set()
        self.transformed: set[nn.Module] = set()
        self._found: dict[nn.Module, tuple[CallForm, fx.Graph]] = {}
        self._mixed: set[nn.Module] = set()

    def watch(self, module: nn.Module) -> Callable[..., Any]:
        """What to run in the place of the module's ``forward``."""
        forward = MethodType(type(module).forward, module)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if _torch.is_inside_transform():
                self.transformed.add(module)
                return forward(*args, **kwargs)
            if module not in self._found:
                form = CallForm(forward, args, kwargs)
                if isinstance(module, nn.TransformerEncoderLayer):
                    form.guard_layout()  # in eval mode an encoder packs masked sequences into nested tensors
                self._found[module] = (form, _graph(form))
            form, graph = self._found[module]
            inputs = form.values(args, kwargs)
            if inputs is None:
                self._mixed.add(module)
            given = form_of((args, kwargs))
            if isinstance(module, BLOCKS):
                self.data_flow.called(module, form.signature.bind(*args, **kwargs))
            result = forward(*args, **kwargs)
            if isinstance(module, BLOCKS):
                self.data_flow.returned(module, result)
            if form_of((args, kwargs)) != given:
                self._mixed.add(module)  # its graph would give it a list of its own to write into
            self._see(graph, inputs or {}, result)
            return result

        return watched

    def watch_evaluation(self, module: nn.Module) -> Callable[..., Any]:
        """The same in an evaluation, which shows what code goes around there."""
        forward = MethodType(type(module).forward, module)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if module in self._found and self._found[module][0].values(args, kwargs) is not None:
                self.evaluated.add(module)
            return forward(*args, **kwargs)

        return watched

    def _see(self, graph: fx.Graph, inputs: Mapping[str, Any], result: Any) -> None:
        for node in graph.nodes:
            if node.op == "placeholder" and node.name in inputs:
                self.observer.saw(node, inputs[node.name])
            elif node.target is trace_operators.run:
                self.observer.saw(node, result)

    def regions(self, modules: Mapping[str, nn.Module]) -> dict[str, Region]:
        """The regions of those modules that were called in one form."""
        self.observer.finish()
        return {
            name: Region(name, module, *self._found[module])
            for name, module in modules.items()
            if module in self._found and module not in self._mixed | self.transformed
        }


def uncovered(
    root: nn.Module, regions: Mapping[str, Region], opaque: Collection[str]
) -> dict[str, nn.Module]:
    """The modules that are neither a region nor a node of one: called from code that has no graph.

    And blocks without a graph, wherever they are called: others are inserted at their boundary.

    Args:
        root: the model.
        regions: those that are known.
        opaque: the names of modules of the model's own that have none.
    """
    nodes = {
        region.module.get_submodule(str(node.target))
        for region in regions.values()
        for node in region.base.nodes
        if node.op == "call_module"
    }
    own = {region.module for region in regions.values()}
    return {
        name: module
        for name, module in root.named_modules()
        if name
        and (module not in nodes or isinstance(module, BLOCKS) or (name in opaque and _is_listed(root, name)))
        and module not in own
        and "forward" not in module.__dict__
        and _is_called(module)
    }


def _is_listed(root: nn.Module, name: str) -> bool:
    """Whether a module is in a container of blocks, among others of its class."""
    parent, _, own = name.rpartition(".")
    container = root.get_submodule(parent)
    if not isinstance(container, (nn.ModuleList, nn.Sequential)):
        return False
    cls = type(container.get_submodule(own))
    return sum(type(child) is cls for child in container.children()) > 1


def _is_called(module: nn.Module) -> bool:
    """Whether a module may be called at all; lists and dictionaries of modules have no forward."""
    return getattr(type(module), "forward", None) is not nn.Module.forward


def _graph(form: CallForm) -> fx.Graph:
    graph = fx.Graph()
    inputs = {known.name: graph.placeholder(known.name) for known in form.inputs}
    own = graph.get_attr(OWN_FORWARD)
    args, kwargs = form.bind(inputs)
    call = graph.call_function(trace_operators.run, (own, *args), kwargs)
    graph.output(call)
    return graph
