"""Which nodes of a run wrote into memory that others hold: what no edge of a graph tells.

::

    out = torch.zeros(4, 8)
    layer = self.layer(x)
    setitem = operator.setitem(out, (slice(None), slice(None, 4)), layer)    # writes the memory of out
    return out                                                               # reads what was written

Seen by the versions that torch counts of each tensor. A view has the version of its base.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft_passes import _torch


class Writes:
    """Follows the versions of all tensors that the nodes of some graphs hold. Keeps those tensors.

    Attributes:
        written: node -> the memory that it wrote, in its first call.
        changes_state: the nodes that changed parameters or buffers of the module that they called.
    """

    def __init__(self) -> None:
        self.written: dict[fx.Node, set[int]] = {}
        self.changes_state: set[fx.Node] = set()
        self._known: dict[fx.Graph, dict[int, tuple[Tensor, int]]] = {}
        self._values: dict[fx.Node, Any] = {}
        self._roots: dict[fx.Graph, nn.Module] = {}
        self._state: dict[fx.Graph, dict[str, tuple[Tensor, int]]] = {}

    def watch(self, graph: fx.Graph, root: nn.Module) -> None:
        """The nodes of ``graph`` call submodules of ``root``, from now on."""
        self._roots[graph] = root
        self._state[graph] = dict(_state(root))

    def saw(self, node: fx.Node, value: Any) -> None:
        """``node`` computed ``value`` just now."""
        known = self._known.setdefault(node.graph, {})
        written: set[int] = set()
        for read in node.all_input_nodes:
            for tensor in tensors_in(self._values.get(read)):
                _, before = known.get(id(tensor), (tensor, version_of(tensor)))
                if version_of(tensor) != before:
                    written.add(memory_of(tensor))
        if written:
            for held, _ in list(known.values()):
                if memory_of(held) in written:
                    known[id(held)] = held, version_of(held)
        for tensor in tensors_in(value):
            known[id(tensor)] = tensor, version_of(tensor)
        if node not in self._values:
            self.written[node] = written
        self._values[node] = value
        if node.op == "call_module":
            self._look_at_state(node)

    def _look_at_state(self, node: fx.Node) -> None:
        state, root = self._state.get(node.graph), self._roots.get(node.graph)
        if state is None or root is None:
            return
        path = str(node.target)
        for name, now in _state(root.get_submodule(path), f"{path}."):
            before, state[name] = state.get(name), now
            if before is None or before[0] is not now[0] or before[1] != now[1]:
                self.changes_state.add(node)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, in containers and in the fields of dataclasses too."""
    if isinstance(value, Tensor):
        yield value
        return
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            for field in fields(leaf):
                yield from tensors_in(getattr(leaf, field.name, None))


def memory_of(tensor: Tensor) -> int:
    """A number for its storage, of its own while that lives; -1 of a tensor that has none."""
    tensor = _torch.unwrapped(tensor)
    return _torch.memory(tensor) if tensor.layout is torch.strided else -1


def version_of(tensor: Tensor) -> int:
    """How often it was written to; 0 for a tensor of which torch does not count that."""
    return 0 if tensor.is_inference() else _torch.version(tensor)


def _state(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, tuple[Tensor, int]]]:
    for name, tensor in (*module.named_buffers(), *module.named_parameters()):
        yield f"{prefix}{name}", (tensor, version_of(tensor))
