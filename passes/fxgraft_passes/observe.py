"""What is known of a node's value from one real run, and how it is gathered.

A run sees what no reading of a graph can: which values share memory, which are written into later,
which are computed without gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft_passes import _torch, devices
from fxgraft_passes._aliases import read_elsewhere
from fxgraft_passes._strides import is_dense
from fxgraft_passes._writes import Writes, memory_of, tensors_in
from fxgraft_passes.metadata import metadata
from fxgraft_passes.untouched import untouched

_Sight = tuple[int, Any, int, bool, bool]
"""When, the value, its version then, whether gradients were on, whether autocast was."""


@dataclass(frozen=True)
class Observation:
    """A node's value in the example run. Of a value not a tensor little is known: a shape, say, is not.

    Attributes:
        kind: the type of the value, ``"Tensor"`` for tensors.
        order: the place in the execution order of the whole run.
        calls: how often the node ran.
        uniform: whether shape and dtype were the same each time.
        shape, dtype, device: of the (first) tensor.
        memory: values of equal ``memory`` share storage.
        offset: where in its storage a strided tensor begins, in elements.
        strides: of a strided tensor.
        contiguous: whether it is laid out row by row.
        dense: strided, without gaps or overlaps, so that a copy preserves the strides.
        channels_last: whether a 4-D value was laid out so.
        written_later: whether something changed the value in place after it was computed.
        differentiable: whether it was computed with gradients enabled.
        read_elsewhere: a reader of its very tensor that does not read this node, where that matters (see
            ``_aliases``).
        autocast: whether it was computed under autocast, which chooses dtypes of its own.
        memories: of all tensors in the value; just ``memory`` of a tensor.
        fills_memory: whether a tensor is all of its memory.
        writes: the memory that the node wrote into.
        changes_state: whether it changed buffers or parameters of the module that it called.
    """

    kind: str
    order: int
    calls: int = 1
    uniform: bool = True
    shape: torch.Size = field(default_factory=torch.Size)
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    memory: int = -1
    offset: int = 0
    strides: tuple[int, ...] = ()
    contiguous: bool = False
    dense: bool = False
    channels_last: bool = False
    written_later: bool = False
    differentiable: bool = True
    read_elsewhere: str = ""
    autocast: bool = False
    memories: tuple[int, ...] = ()
    fills_memory: bool = False
    writes: tuple[int, ...] = ()
    changes_state: bool = False


@dataclass
class Observer:
    """Collects the values of a run and sums them up. Holds every value until `finish`."""

    _seen: dict[fx.Node, list[_Sight]] = field(default_factory=dict)
    _count: int = 0
    _writes: Writes = field(default_factory=Writes)

    def watch(self, graph: fx.Graph, root: nn.Module) -> None:
        """The nodes of ``graph`` run on ``root``: what they change of its state will be seen."""
        self._writes.watch(graph, root)

    def saw(self, node: fx.Node, value: Any) -> None:
        """Record that ``node`` computed ``value`` just now."""
        version = _torch.version(value) if isinstance(value, Tensor) else 0
        entry = (self._count, value, version, torch.is_grad_enabled(), _is_autocast())
        self._seen.setdefault(node, []).append(entry)
        self._writes.saw(node, value)
        self._count += 1

    def forget(self, node: fx.Node) -> None:
        """Drop what was recorded of a node that turned out not to be part of a graph."""
        self._seen.pop(node, None)

    def finish(self) -> None:
        """Write an `Observation` into the ``meta`` of every node seen, and let the values go."""
        when = {node: [(order, v) for order, v, *_ in entries] for node, entries in self._seen.items()}
        readers = read_elsewhere(when)
        for node, entries in self._seen.items():
            metadata(node)["observation"] = replace(
                _sum_up(entries),
                read_elsewhere=readers.get(node, ""),
                writes=tuple(self._writes.written.get(node, ())),
                changes_state=node in self._writes.changes_state,
            )
        self._seen.clear()
        self._writes = Writes()


def observation_of(node: fx.Node) -> Observation | None:
    """What was observed of a node, or None."""
    return metadata(node).get("observation")


def carries_no_gradient(node: fx.Node) -> bool:
    """Whether the value was one that no gradient goes through: integers, flags, numbers; not if unknown."""
    seen = observation_of(node)
    if seen is None:
        return False
    if seen.kind == "Tensor":
        return not (seen.dtype.is_floating_point or seen.dtype.is_complex)
    return not seen.memories


class WatchedRun(fx.Interpreter):
    """Runs a graph on a module and shows each value to an `Observer`."""

    def __init__(self, module: nn.Module, graph: fx.Graph, observer: Observer):
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self._observer = observer
        observer.watch(graph, module)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self._observer.saw(n, value)
        return value


def observe(graph_module: fx.GraphModule, *args: Any) -> None:
    """Run ``graph_module`` once and write an `Observation` into the ``meta`` of each node.

    Inputs, buffers and random streams are afterwards what they were.
    """
    observer = Observer()
    args = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), args)  # the code may write into them
    with untouched(graph_module), torch.enable_grad():
        WatchedRun(graph_module, graph_module.graph, observer).run(*args)
    observer.finish()


def _sum_up(entries: list[_Sight]) -> Observation:
    order, value, _, differentiable, autocast = entries[0]
    memories = tuple(dict.fromkeys(map(memory_of, tensors_in(value))))
    if not isinstance(value, Tensor):
        return Observation(type(value).__name__, order, len(entries), memories=memories)
    forms = {(v.shape, v.dtype) if isinstance(v, Tensor) else None for _, v, *_ in entries}
    strided = value.layout is torch.strided
    return Observation(
        kind="Tensor" if strided else f"{value.layout} tensor",
        order=order,
        calls=len(entries),
        uniform=len(forms) == 1,
        shape=value.shape,
        dtype=value.dtype,
        device=value.device,
        memory=memory_of(value),
        offset=int(value.storage_offset()) if strided else 0,
        strides=value.stride() if strided else (),
        contiguous=strided and value.is_contiguous(),
        dense=strided and is_dense(value),
        channels_last=value.dim() == 4
        and value.is_contiguous(memory_format=torch.channels_last)
        and not value.is_contiguous(),
        written_later=any(isinstance(v, Tensor) and _torch.version(v) > then for _, v, then, *_ in entries),
        differentiable=differentiable,
        autocast=autocast,
        memories=memories,
        fills_memory=strided and _fills_memory(value),
    )


def _is_autocast() -> bool:
    return devices.is_autocast()


def _fills_memory(value: Tensor) -> bool:
    if _torch.is_wrapped_by_transform(value):
        return False  # another tensor has the memory, and more in it
    return value.nbytes == value.untyped_storage().nbytes() and is_dense(value)
