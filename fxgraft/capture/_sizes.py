"""What a trace relies on of its inputs: sizes, dtypes and ranks by which its code chose a path.

A condition that a path was chosen by is kept in the region's graph, as ``assume(gt(size, 5), True)``. It is
checked in front of the call, and no longer where it stands::

    def forward(self, x):                              def forward(self, x):
        size = x.size(0)                                   if not (x.size(0) > 5): ...  # its own code
        gt = size > 5                     ->               sub = x - x.mean(0)
        assume(gt, True)                                   return sub
        sub = x - x.mean(0)
        return sub

Where a condition is about a value that is computed on the way, its size is found as a formula over the sizes
of the inputs (`fxgraft.capture._preconditions`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.fx as fx
from torch import nn

from fxgraft.capture import trace_operators
from fxgraft.capture._condition_writer import (
    BUILT_IN,
    FACTS,
    KINDS,
    NUMBER_FUNCTIONS,
    SIZES,
    UnwritableError,
    Writer,
)
from fxgraft.capture._facts import Fact, Self, Written, equals, is_constant, steps_to
from fxgraft_passes import devices
from fxgraft_passes.observe import Observer, observation_of

_OF_INPUTS = (torch.Tensor, torch.Size, tuple, list, dict, int, float, str)
_DATA_SIZED = (
    "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "item", "tolist",
    "repeat_interleave", "nonzero_numpy", "histogram",
)  # fmt: skip


def is_condition(node: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    """Whether a value is computed from sizes, dtypes and devices of tensors, and from nothing else."""
    if node.op == "call_method":
        return node.target in (*SIZES, "is_contiguous")
    if node.op != "call_function":
        return False
    if node.target is getattr:
        of, name = node.args[:2]
        if isinstance(values.get(of), torch.Tensor):  # type: ignore[arg-type]
            return name in FACTS
        return is_found(of) or is_condition(of, values)  # type: ignore[arg-type]
    arithmetic = getattr(node.target, "__module__", "") == "_operator" or node.target in NUMBER_FUNCTIONS
    return arithmetic and all(is_condition(part, values) for part in node.all_input_nodes)


def is_found(node: Any) -> bool:
    """Whether a value is an input, or found from one by attributes and items alone."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "placeholder":
        return True
    by_parts = node.op == "call_function" and node.target in (getattr, operator.getitem)
    if by_parts or (node.op == "call_method" and node.target == "get" and not node.kwargs):
        return is_found(node.args[0]) and not any(isinstance(a, fx.Node) for a in node.args[1:])
    return False


def sized_by_data(node: fx.Node, values: Mapping[fx.Node, Any]) -> fx.Node | None:
    """A node behind this condition whose size is known from its data only; None if there is none."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        name = str(getattr(node.target, "__name__", node.target)).rsplit(".", 1)[-1]
        if name in _DATA_SIZED or (name == "where" and len(node.args) + len(node.kwargs) == 1):
            return node
        if node.target is operator.getitem and _has_mask(node.args[1], values):
            return node
        of = node.args[0] if node.op == "call_method" and node.args else None
        if isinstance(of, fx.Node) and node.target != "get" and not isinstance(values.get(of), _OF_INPUTS):
            return node  # what a method of an object returns that was passed in: a cache, say
        waiting.extend(node.all_input_nodes)
    return None


def said_of(node: fx.Node) -> str:
    """What a value is whose size is not known before the call, in words."""
    if node.op == "call_method" and node.target not in _DATA_SIZED:
        return f"what {node.target}() of {node.args[0]} returns, which is not known before the call"
    return f"{node}, which depends on the data"


def _has_mask(index: Any, values: Mapping[fx.Node, Any]) -> bool:
    found: list[Any] = []
    fx.node.map_arg(index, lambda part: found.append(values.get(part)))
    return any(isinstance(v, torch.Tensor) and v.dtype in (torch.bool, torch.uint8) for v in found)


def conditions(graph: fx.Graph) -> Iterator[tuple[fx.Node, bool]]:
    """What was assumed in the graph: the node, and what it was."""
    for node in graph.find_nodes(op="call_function", target=trace_operators.assume):
        yield node.args[0], node.args[1]


def facts_of(
    graph: fx.Graph, inputs: Mapping[str, str], formulas: Mapping[fx.Node, tuple[str, ...]] | None = None
) -> tuple[list[Fact], list[UnwritableError]]:
    """The conditions of a graph as facts, and what it would take to write the others."""
    found, unknown = [], []
    for node, expected in conditions(graph):
        write = Writer(inputs, formulas)
        # The code was given a text, or a container of constants, itself: it must be exactly that.
        is_given = expected and node.target is operator.eq and isinstance(node.args[1], (str, tuple, list))
        try:
            source = write(node.args[0] if is_given else node)
        except UnwritableError as error:
            unknown.append(error)
            continue
        if is_given and not write.objects and is_constant(given := _plain(node.args[1])):
            found.append(equals(Written(source), (), given))
            continue
        found.append(Fact(Written(source), (), "$" if expected else "not $", tuple(write.objects)))
    return found, unknown


def _plain(value: Any) -> Any:
    """A constant in plain containers, in the place of those of torch.fx that cannot be changed."""
    if isinstance(value, (tuple, list)):
        return (tuple if isinstance(value, tuple) else list)(map(_plain, value))
    return value


def drop_conditions(graph: fx.Graph) -> None:
    """Take the conditions out of a graph, with what is computed for them only."""
    for node in graph.find_nodes(op="call_function", target=trace_operators.assume):
        condition = node.args[0]
        graph.erase_node(node)
        _drop_unused(graph, condition)


def _drop_unused(graph: fx.Graph, node: Any) -> None:
    if not isinstance(node, fx.Node) or node.users:
        return
    is_size = node.op == "call_method" and node.target in SIZES
    is_field = node.target is getattr
    is_asked = (
        node.op == "call_method" and node.target in (*KINDS, "get", "is_contiguous")
    ) or node.target in (*BUILT_IN, *NUMBER_FUNCTIONS)
    if is_size or is_field or is_asked or getattr(node.target, "__module__", "") == "_operator":
        inputs = node.all_input_nodes
        graph.erase_node(node)
        for part in inputs:
            _drop_unused(graph, part)


def prune_unused_items(graph: fx.Graph, observer: Observer) -> None:
    """Drop the elements of sizes that were made for unpacking and not used."""
    for node in reversed(graph.nodes):
        is_size = node.op == "call_method" and node.target == "size" and len(node.args) == 1
        is_item = node.target is operator.getitem and getattr(node.args[0], "target", "") == "size"
        if (is_size or is_item) and not node.users:
            observer.forget(node)
            graph.erase_node(node)


def kinds_of_example(module: nn.Module, graph: fx.Graph, inputs: Mapping[str, str]) -> list[Fact]:
    """The facts that every input, and the module, has the dtype that it had in the example."""
    found = []
    for node in graph.find_nodes(op="placeholder"):
        seen = observation_of(node)
        if seen is not None and seen.kind == "Tensor" and str(node.target) in inputs:
            base = Written(inputs[str(node.target)])
            found += [equals(base, (("attr", "dtype"),), seen.dtype)]
    for name, parameter in module.named_parameters():
        found.append(equals(Self(), (*steps_to(name), ("attr", "dtype")), parameter.dtype))
        break
    kinds = dict.fromkeys((*devices.CASTS, *devices.types()))
    asked = " or ".join(f"$({kind!r})" for kind in kinds)
    autocast = Fact(torch.is_autocast_enabled, (), f"not ({asked})")
    return [*found, autocast]


def devices_of_example(graph: fx.Graph, inputs: Mapping[str, str]) -> list[Fact]:
    """The facts that every input is on a device of the kind that it was on in the example."""
    return [
        Fact(Written(inputs[str(node.target)]), (), f"$.device.type == {seen.device.type!r}")
        for node in graph.find_nodes(op="placeholder")
        if (seen := observation_of(node)) is not None and seen.kind == "Tensor" and str(node.target) in inputs
    ]


def ranks_of_example(graph: fx.Graph, inputs: Mapping[str, str]) -> list[Fact]:
    """The facts that every input has the rank that it had in the example."""
    return [
        Fact(Written(inputs[str(node.target)]), (), f"$.dim() == {len(seen.shape)}")
        for node in graph.find_nodes(op="placeholder")
        if (seen := observation_of(node)) is not None and seen.kind == "Tensor" and str(node.target) in inputs
    ]


def layouts_of_example(module: nn.Module, graph: fx.Graph, inputs: Mapping[str, str]) -> list[Fact]:
    """The facts that every input is dense, and weights are laid out, as in the example; with its sizes."""
    found = sizes_of_example(graph, inputs)
    for node in graph.find_nodes(op="placeholder"):
        seen = observation_of(node)
        if seen is not None and seen.kind == "Tensor" and str(node.target) in inputs:
            source = inputs[str(node.target)]
            test = "$.is_contiguous()" if seen.contiguous else f"$.stride() == {seen.strides!r}"
            found.append(Fact(Written(source), (), test))
    for name, parameter in module.named_parameters():
        if parameter.dim() > 3:
            test = f"$.is_contiguous() is {parameter.is_contiguous()}"
            found.append(Fact(Self(), steps_to(name), test))
    return found


def sizes_of_example(graph: fx.Graph, inputs: Mapping[str, str]) -> list[Fact]:
    """The facts that every input has the sizes, and the rank, that it had in the example."""
    found = []
    for node in graph.find_nodes(op="placeholder"):
        seen = observation_of(node)
        if seen is not None and seen.kind == "Tensor" and str(node.target) in inputs:
            shape = tuple(seen.shape)
            found.append(Fact(Written(inputs[str(node.target)]), (), f"tuple($.shape) == {shape!r}"))
    return found
