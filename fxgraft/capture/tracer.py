"""Trace one module by running it: a symbolic trace whose proxies know their example values.

``torch.fx`` follows a module's code with proxies in the place of tensors; here each operation is
also carried out at once, on the real values behind the proxies. That is what lets shapes be
unpacked, children that return tuples be followed, and memory and in-place writes be observed.
Children are never looked into: each is a node, and a region of its own.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.fx as fx
from torch import nn

from fxgraft.capture.call_form import CallForm
from fxgraft_passes import operators
from fxgraft_passes.observe import Observer

# Facts of a value that a graph may rely on: the ranks and kinds of a host's values do not change.
_STATIC = {"dim", "ndim", "is_floating_point", "is_complex", "ndimension"}


class Untraceable(Exception):
    """The module's code cannot be written as one graph; the message says why."""


class ConcreteProxy(fx.Proxy):
    """A proxy that unpacks as its example value would, as far as the structure of that is fixed."""

    def __iter__(self) -> Iterator[Any]:
        value = self.tracer.values[self.node]
        if isinstance(value, (tuple, list)):
            return iter([self[i] for i in range(len(value))])
        return super().__iter__()  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        tracer: RegionTracer = self.tracer
        value = tracer.values[self.node]
        if isinstance(value, torch.Tensor) and name == "shape":
            return self.size()
        if isinstance(value, torch.Tensor) and name in ("ndim", "dtype", "layout"):
            return getattr(value, name)
        return super().__getattr__(name)

    def __len__(self) -> int:
        value = self.tracer.values[self.node]
        if isinstance(value, (tuple, list, dict)):
            return len(value)
        raise Untraceable(f"takes the length of {self.node}, which depends on the input")


class RegionTracer(fx.Tracer):
    """Traces one call of one module.

    Attributes:
        values: node -> its value in this call.
    """

    proxy_buffer_attributes = True

    def __init__(self, form: CallForm, inputs: dict[str, Any], observer: Observer):
        super().__init__(param_shapes_constant=False)
        self.values: dict[fx.Node, Any] = {}
        self.result: Any = None
        self._form = form
        self._inputs = inputs
        self._observer = observer
        self._running = 0
        self._thread = threading.get_ident()

    def trace_call(self, module: nn.Module, forward: Callable[..., Any]) -> fx.Graph:
        """The graph of ``forward(module, ...)``. Raises `Untraceable` or what the code raises."""

        def called(root: nn.Module) -> Any:
            proxies = {}
            for known in self._form.inputs:
                node = self.create_node("placeholder", known.name, (), {})
                self._saw(node, self._inputs[known.name])
                proxies[known.name] = self.proxy(node)
            args, kwargs = self._form.bind(proxies)
            return forward(root, *args, **kwargs)

        self._called = called
        graph = self.trace(module)
        output = next(node for node in graph.nodes if node.op == "output")
        self.result = fx.node.map_arg(output.args[0], lambda n: self.values[n])
        _prune_unused_items(graph, self._observer)
        return graph

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        return self._called, [self.root]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> ConcreteProxy:
        return ConcreteProxy(node, self)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        # torch.fx intercepts all module calls of the process: let those pass that are not this trace's.
        if self._running or threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._running or threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any
    ) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        if kind == "output":
            return proxy
        node = proxy.node
        value = self._run(node)
        if target in _STATIC or getattr(target, "__name__", "") in _STATIC:
            self.graph.erase_node(node)
            return value
        self._saw(node, value)
        if isinstance(value, torch.Size):
            return tuple(proxy[i] for i in range(len(value)))
        return proxy

    def create_arg(self, a: Any) -> Any:
        known = isinstance(a, (fx.Proxy, nn.Parameter)) or not isinstance(a, torch.Tensor)
        if not known and a not in self.tensor_attrs and not self._is_buffer(a):
            raise Untraceable("uses a tensor that it makes itself, from no input")
        return super().create_arg(a)

    def _is_buffer(self, tensor: torch.Tensor) -> bool:
        return any(tensor is buffer for buffer in self.root.buffers())

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Follow a branch on sizes, with a check in the graph; no other branch can be followed."""
        value = self.values[obj.node]
        if type(value) is not bool or not _is_of_sizes(obj.node):
            raise Untraceable(f"branches on {obj.node}, which depends on the input's values")
        self.create_proxy("call_function", operators.assume, (obj, value), {})
        for node in obj.node.all_input_nodes:
            self._form.guard_size(self.values[node], self._inputs)
        return value

    def _saw(self, node: fx.Node, value: Any) -> None:
        self.values[node] = value
        self._observer.saw(node, value)

    def _run(self, node: fx.Node) -> Any:
        """Carry ``node`` out on the example values."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.values[n])
        self._running += 1
        try:
            match node.op:
                case "call_function":
                    return node.target(*args, **kwargs)  # type: ignore[operator]
                case "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                case "call_module":
                    return self.root.get_submodule(str(node.target))(*args, **kwargs)
            return operator.attrgetter(str(node.target))(self.root)
        finally:
            self._running -= 1


def _is_of_sizes(node: fx.Node) -> bool:
    """Whether a value is computed from the sizes of tensors and nothing else."""
    if node.op == "call_method":
        return node.target == "size"
    arithmetic = getattr(node.target, "__module__", "") == "_operator"
    return node.op == "call_function" and arithmetic and all(map(_is_of_sizes, node.all_input_nodes))


def _prune_unused_items(graph: fx.Graph, observer: Observer) -> None:
    """Drop the elements of sizes that were made for unpacking and not used."""
    for node in reversed(graph.nodes):
        is_size = node.op == "call_method" and node.target == "size" and len(node.args) == 1
        is_item = node.target is operator.getitem and getattr(node.args[0], "target", "") == "size"
        if (is_size or is_item) and not node.users:
            observer.forget(node)
            graph.erase_node(node)
