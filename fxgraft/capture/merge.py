"""Several regions as one graph, so that a value of one can be read in another.

before: the graph of the root, and that of its child ``block``::

    def forward(self, x):                       def forward(self, input):     # block
        block = self.block(x)                       fc = self.fc(input)
        fc = self.fc(block)                         relu = fc.relu()
        return fc                                   return relu

after ``merge(root, [block])``::

    def forward(self, x):
        fc = self.block.fc(x)
        relu = fc.relu()
        block = returned(relu)                  # the slot behind the whole block is still one
        fc_1 = self.fc(block)
        return fc_1

The modules that are merged are no longer called, so what watches their calls would see none: a module
with hooks is refused, and where hooks come later the graph is not run (`not_watched`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch.fx as fx
from torch import nn

from fxgraft.capture._facts import Fact, steps_to
from fxgraft.capture.call_form import CallForm
from fxgraft.errors import SlotError
from fxgraft.util.hooks import has_hooks
from fxgraft_passes import _torch as _torch_of_passes
from fxgraft_passes import operators
from fxgraft_passes.naming import OWN_FORWARD

if TYPE_CHECKING:
    from fxgraft.capture.region import Region


def merge(root: Region, parts: Sequence[Region]) -> tuple[fx.Graph, dict[str, str]]:
    """The graph of ``root`` with those of ``parts`` in the place of their calls.

    Args:
        root: the region around the others.
        parts: each is called once, by the root or by another part.

    Returns:
        The graph; and `local_name` -> the name of the node in it, for all nodes of all regions.

    Raises:
        SlotError: a part is called in a form that its graph is not valid for.
    """
    graph = _torch_of_passes.empty_like_graph(root.base)
    merging = _Merging(graph, root, {part.module: part for part in parts})
    graph.output(merging.write(root, "", None))
    return graph, merging.names


def local_name(region: str, node: str, root: str) -> str:
    """A node of ``region`` as seen from ``root``: ``block:relu``; just ``relu`` in the root itself."""
    path = _path(region, root)
    return f"{path}:{node}" if path else node


def merged_form(root: Region, parts: Sequence[Region]) -> CallForm:
    """The calls that the merged graph is right for: those of ``root``, while no part is watched.

    What the parts read as Python values is a condition too. What they assume of their inputs is in their
    graphs.
    """
    form = copy.copy(root.form)
    paths = [_path(part.name, root.name) for part in parts]
    listed = ", ".join(map(repr, paths))
    form.require([Fact(not_watched, (), f"$(self, {listed})")])
    form.switches_gradients = any(region.form.switches_gradients for region in (root, *parts))
    form.switches_autocast = any(region.form.switches_autocast for region in (root, *parts))
    for part, path in zip(parts, paths, strict=True):
        form.require(fact.below(steps_to(path)) for fact in part.form.facts)
    return form


def not_watched(root: nn.Module, *paths: str) -> bool:
    """Whether calls of these submodules are just runs of their ``forward``: nothing is hooked in."""
    for path in paths:
        module = root.get_submodule(path)
        if has_hooks(module):
            return False
        if "forward" in module.__dict__ and OWN_FORWARD not in module.__dict__:
            return False
    return True


def _path(region: str, root: str) -> str:
    return region[len(root) :].lstrip(".")


class _Merging:
    """One run of `merge`."""

    def __init__(self, graph: fx.Graph, root: Region, parts: Mapping[nn.Module, Region]):
        self.names: dict[str, str] = {}
        self._graph = graph
        self._root = root
        self._parts = parts

    def write(self, region: Region, path: str, inputs: Mapping[str, Any] | None) -> Any:
        """Copy the graph of ``region``, at ``path`` below the root; return what it returns."""
        env: dict[fx.Node, Any] = {}
        for node in region.base.nodes:
            if node.op == "output":
                return fx.node.map_arg(node.args[0], env.__getitem__)
            if node.op == "placeholder" and inputs is not None:
                env[node] = inputs[str(node.target)]
            else:
                env[node] = self._copied(region, path, node, env)
                self.names[local_name(region.name, node.name, self._root.name)] = env[node].name
        raise SlotError(f"the graph of {region.name!r} has no output")

    def _copied(self, region: Region, path: str, node: fx.Node, env: Mapping[fx.Node, Any]) -> fx.Node:
        target = f"{path}.{node.target}" if path else str(node.target)
        if node.op == "call_module":
            part = self._parts.get(region.module.get_submodule(str(node.target)))
            if part is not None:
                return self._call(part, target, node, env)
        copied = self._graph.node_copy(node, env.__getitem__)
        if node.op in ("call_module", "get_attr"):
            copied.target = target
        return copied

    def _call(self, part: Region, path: str, node: fx.Node, env: Mapping[fx.Node, Any]) -> fx.Node:
        args, kwargs = plain((node.args, node.kwargs))
        inputs = part.form.values(args, kwargs)
        if inputs is None:
            raise SlotError(f"{part.name!r} is given values that are constants in its graph")
        if not not_watched(part.module, ""):
            raise SlotError(f"{part.name!r} has hooks, or a forward that is not its class's")
        inputs = {name: fx.node.map_arg(value, env.__getitem__) for name, value in inputs.items()}
        value = self.write(part, path, inputs)
        returned = self._graph.create_node("call_function", operators.returned, (value,), name=node.name)
        returned.meta = dict(node.meta)
        return returned


def plain(argument: Any) -> Any:
    """An argument of a node in plain containers, as the code would pass it."""
    if isinstance(argument, (tuple, list)):
        return (tuple if isinstance(argument, tuple) else list)(map(plain, argument))
    if isinstance(argument, dict):
        return {key: plain(value) for key, value in argument.items()}
    return argument
