"""Trace one module by running it: a symbolic trace whose proxies know their example values.

``torch.fx`` follows a module's code with proxies in the place of tensors; here each operation is
also carried out at once, on the real values behind the proxies. That is what lets shapes be
unpacked, children that return tuples be followed, and memory and in-place writes be observed.
Children are never looked into: each is a node, and a region of its own.
"""

from __future__ import annotations

import operator
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.fx as fx
from torch import nn
from torch.utils import _pytree as pytree

from fxgraft import _torch
from fxgraft.capture._assuming import AssumingTracer
from fxgraft.capture._code import is_caught, is_own, is_own_module
from fxgraft.capture._effects import Effects
from fxgraft.capture._exact import has_literal
from fxgraft.capture._instruments import Instruments
from fxgraft.capture._proxy import ConcreteProxy, ProxySize, UntraceableError, collect_untraceable
from fxgraft.capture._recorder import ReadRecorder
from fxgraft.capture._sizes import prune_unused_items
from fxgraft.capture.call_form import CallForm
from fxgraft.capture.intercept import EveryOperation, limits_of_proxies
from fxgraft_passes.observe import Observer

# Facts of a value that a graph may rely on: the ranks and kinds of a host's values do not change.
_STATIC = {"dim", "ndim", "is_floating_point", "is_complex", "ndimension"}

# What does not change with the sizes of a tensor.
_OF_ANY_SIZE = _STATIC | {
    "dtype", "device", "layout", "requires_grad", "grad", "grad_fn", "is_leaf", "is_cuda", "is_meta",
    "is_sparse", "is_nested", "is_quantized", "element_size", "get_device",
}  # fmt: skip


class RegionTracer(AssumingTracer):
    """Traces one call of one module.

    Attributes:
        values: node -> its value in this call.
        proxies: all that the code was given.
    """

    proxy_buffer_attributes = True

    def __init__(
        self,
        form: CallForm,
        inputs: dict[str, Any],
        observer: Observer,
        instruments: Instruments,
        kept: frozenset[int],
    ):
        super().__init__(param_shapes_constant=False)
        self.values = {}
        self._form = form
        self._inputs = inputs
        self._observer = observer
        self._instruments = instruments
        self._kept = kept
        self._running = 0
        self._thread = threading.get_ident()
        self._gradients = [torch.is_grad_enabled()]
        self._outside: fx.Node | None = None
        self.proxies: list[weakref.ref[ConcreteProxy]] = []
        self._caught: Exception | None = None
        self._of_parameters: dict[str, Any] = {}
        self._inside_autocast: list[fx.Node] = []

    @property
    def is_following(self) -> bool:
        """Whether it is the module's own code that runs: not an operation, nor another thread."""
        return not self._running and threading.get_ident() == self._thread

    @property
    def switches_gradients(self) -> bool:
        """Whether the code has parts under ``no_grad``."""
        return any(node.target is _torch.set_grad_enabled for node in self.graph.nodes)

    @property
    def switches_autocast(self) -> bool:
        """Whether the code has parts under ``torch.autocast``."""
        return any(node.target is _torch.enter_autocast for node in self.graph.nodes)

    def trace_call(self, module: nn.Module, forward: Callable[..., Any]) -> tuple[fx.Graph, Any]:
        """The graph of ``forward(module, ...)``, and its result.

        Raises:
            UntraceableError: it cannot be one graph. Also whatever the code raises.
        """

        def called(root: nn.Module) -> Any:
            # A submodule may be named so (BERT's attention has one): the generated code reads self.
            self.graph._graph_namespace.create_name("self", None)
            self._observer.watch(self.graph, root)
            proxies = {}
            for known in self._form.inputs:
                node = self.create_node("placeholder", known.name, (), {})
                self._saw(node, self._inputs[known.name])
                proxies[known.name] = self.proxy(node)
            args, kwargs = self._form.bind(proxies)
            given = form_of((args, kwargs))
            with EveryOperation(self):
                seen = self._instruments.see_calls(True)
                try:
                    result = forward(root, *args, **kwargs)
                finally:
                    self._instruments.see_calls(seen)
            if form_of((args, kwargs)) != given:
                raise UntraceableError("writes into a list or dictionary that it is given")
            self._follow_gradients()
            return result

        self._called = called
        recorder = ReadRecorder(module, self._instruments.instrument)
        self._effects = Effects(recorder, self._kept)
        try:
            with limits_of_proxies(True), collect_untraceable() as raised:
                with self._instruments.recording(recorder, lambda: self.is_following):
                    graph = self.trace(module)
                if raised:  # and caught by the module's own code
                    raise raised[0]
                if self._caught is not None:
                    name = type(self._caught).__name__
                    raise UntraceableError(f"catches an exception in its forward ({name})")
                recorder.release()
                if self._inside_autocast:
                    raise UntraceableError("switches autocast in its forward")
                self._effects.check()
                recorder.check_registers()
        except Exception:
            self._effects.undo()
            raise
        self._of_parameters.clear()  # which torch.fx keeps in a circle of its own
        self._form.require(recorder.facts)
        output = next(node for node in graph.nodes if node.op == "output")
        result = self._evaluated(output.args[0])
        # Autograd's graph of these values may hold proxies (checkpointing does), which no collector sees.
        self.values, self._inputs = {}, {}
        prune_unused_items(graph, self._observer)
        return graph, result

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        return self._called, [self.root]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> ConcreteProxy:
        made = ConcreteProxy(node, self)
        self.proxies.append(weakref.ref(made))
        return made

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        # torch.fx intercepts all module calls of the process: let those pass that are not this trace's.
        # A module made in the forward (a loss, say) is followed as any function is.
        if not self.is_following:
            return forward(*args, **kwargs)
        if m not in (self.submodule_paths or {}):
            if next(m.parameters(), None) is None:
                return forward(*args, **kwargs)
            raise UntraceableError(f"calls a {type(m).__name__} that is not one of its submodules")
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if not self.is_following:
            return attr_val
        self._of_parameters = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        if kind == "output":
            return super().create_proxy(kind, target, args, kwargs, *rest, **options)
        return self.create_known(kind, target, args, kwargs, (), *rest, **options)

    def create_known(
        self, kind: str, target: Any, args: Any, kwargs: Any, known: tuple[Any, ...], *rest: Any, **more: Any
    ) -> Any:
        """`create_proxy` of an operation that, if ``known`` is not empty, was carried out already."""
        seen = self._instruments.see_calls(False)
        try:
            return self._create_known(kind, target, args, kwargs, known, *rest, **more)
        finally:
            self._instruments.see_calls(seen)

    def _create_known(
        self, kind: str, target: Any, args: Any, kwargs: Any, known: tuple[Any, ...], *rest: Any, **more: Any
    ) -> Any:
        target = _torch.unpatched(target)
        self._follow_gradients()
        self._refuse_caught()
        name = getattr(target, "__name__", str(target))
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        node = proxy.node
        value = known[0] if known else self.values[node] if kind == "get_attr" else self._run(node)
        if target in _STATIC or name in _STATIC:
            of = node.args[0] if node.args else node.kwargs["input"]
            self.graph.erase_node(node)
            self.fix_fact(of, name)  # type: ignore[arg-type]
            return value
        if kind != "get_attr":
            self._saw(node, value)
        if isinstance(value, torch.Size):
            return ProxySize(proxy)
        return self._value_for_code(proxy, value)

    def refuse_write(self, function: Any, args: Any, kwargs: Any) -> None:
        """Refuse an operation on no proxy that would change a tensor of the model's."""
        name = getattr(function, "__name__", "")
        if name == "__set__":
            raise UntraceableError("sets an attribute of a tensor in its forward")
        self._effects.refuse_write(name, args, kwargs)

    def took_for_constant(self, function: Any) -> None:
        """The code read a property of one of the model's tensors, which is a constant of the graph."""
        name = getattr(function, "__name__", "")
        if name == "__get__":
            name = function.__self__.__name__
        self._form.reads_sizes |= name not in _OF_ANY_SIZE

    def _refuse_caught(self) -> None:
        """Refuse an operation in code that would catch what it raises: a graph cannot."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code is not RegionTracer.trace_call.__code__:
            if is_own(frame) and is_caught(frame):
                raise UntraceableError("catches exceptions of what it computes in its forward")
            frame = frame.f_back

    def _follow_gradients(self) -> None:
        """Write into the graph where the code enters or leaves ``no_grad``."""
        now = torch.is_grad_enabled()
        if now == self._gradients[-1]:
            return
        if len(self._gradients) > 1:
            # Back to what the caller had: it may run the graph under no_grad itself.
            self._gradients = self._gradients[:1]
            target: Any = self._outside
        else:
            self._gradients = [*self._gradients, now]
            self._outside = self.create_node("call_function", torch.is_grad_enabled, (), {})
            self._saw(self._outside, not now)
            target = now
        node = self.create_node("call_function", _torch.set_grad_enabled, (target,), {})
        self._saw(node, None)

    def enter_autocast(self, asked: tuple[Any, ...]) -> fx.Node:
        """The code has entered ``torch.autocast``, which it gave these arguments: so does the graph."""
        self._follow_gradients()
        args = self.create_arg(asked)
        node = self.create_node("call_function", _torch.enter_autocast, args, {})
        self._saw(node, None)
        self._inside_autocast.append(node)
        self._effects.follow_contexts()
        return node

    def exit_autocast(self, entered: fx.Node) -> None:
        """The code has left it."""
        if not self._inside_autocast or self._inside_autocast.pop() is not entered:
            raise UntraceableError("switches autocast in its forward")
        self._follow_gradients()
        self._saw(self.create_node("call_function", _torch.exit_autocast, (entered,), {}), None)
        self._effects.follow_contexts()

    def create_node(self, kind: str, target: Any, *rest: Any, **options: Any) -> fx.Node:
        node = super().create_node(kind, target, *rest, **options)
        if kind == "get_attr":  # torch.fx makes some of them by itself
            self._saw(node, self._run(node))
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, ProxySize):
            a = tuple(a)
        if isinstance(a, torch.Generator):
            raise UntraceableError("draws from a torch.Generator of its own")
        if isinstance(a, torch.Tensor) and not self._is_known(a):
            raise UntraceableError("uses a tensor that it makes itself, from no input")
        is_record = is_dataclass(a) or (isinstance(a, tuple) and hasattr(a, "_fields"))
        if isinstance(a, OrderedDict) or (is_record and not isinstance(a, type)):
            return self._rebuilt(a)
        if isinstance(a, dict) and type(a) not in (dict, fx.immutable_collections.immutable_dict):
            raise UntraceableError(f"makes a {type(a).__name__} object")
        for key in a if isinstance(a, dict) else ():
            if not (has_literal(key) or isinstance(key, (str, bytes, float, torch.dtype, torch.device))):
                raise UntraceableError(f"makes a dictionary with the key {key!r}, which has no literal")
        if isinstance(a, np.generic) and isinstance(a, (float, complex, str, bytes)):
            a = a.item()  # a number or a text of Python's, too: torch takes it for that
        try:
            return super().create_arg(a)
        except NotImplementedError:
            raise UntraceableError(f"makes a {type(a).__name__} object and passes it on") from None
        except NameError as error:
            raise UntraceableError("uses a parameter of a module that is not its own") from error

    def _rebuilt(self, a: Any) -> fx.Node:
        """The node that makes a dataclass, a named tuple or an ordered dictionary from its parts."""
        known = {field.name for field in fields(a)} if is_dataclass(a) else set()
        others = set(getattr(a, "__dict__", {})) - known
        if others:
            names = ", ".join(map(repr, others))
            raise UntraceableError(f"sets {names} of a {type(a).__name__} beside its fields")
        if is_dataclass(a):
            parts = {field.name: getattr(a, field.name) for field in fields(a) if field.init}
            proxy = self.create_proxy("call_function", type(a), (), parts)
        elif isinstance(a, tuple):
            proxy = self.create_proxy("call_function", type(a), tuple(a), {})
        else:
            proxy = self.create_proxy("call_function", type(a), (list(a.items()),), {})
        return proxy.node  # type: ignore[no-any-return]

    def _is_known(self, tensor: torch.Tensor) -> bool:
        return isinstance(tensor, nn.Parameter) or tensor in self.tensor_attrs or self._is_buffer(tensor)

    def _is_buffer(self, tensor: torch.Tensor) -> bool:
        return any(tensor is buffer for buffer in self.root.buffers())

    def _evaluated(self, a: Any) -> Any:
        """An argument with the values of its nodes, in plain lists and dictionaries as in generated code."""
        if isinstance(a, fx.Node):
            return self.values[a]
        if isinstance(a, (tuple, list)):
            kind = tuple if isinstance(a, tuple) else list
            return kind(map(self._evaluated, a))
        if isinstance(a, dict):
            return {key: self._evaluated(value) for key, value in a.items()}
        if isinstance(a, slice):
            return slice(*map(self._evaluated, (a.start, a.stop, a.step)))
        return a

    def _saw(self, node: fx.Node, value: Any) -> None:
        self.values[node] = value
        with _torch.unseen_by_modes():
            self._observer.saw(node, value)

    def _run(self, node: fx.Node) -> Any:
        """Carry ``node`` out on the example values."""
        args, kwargs = self._evaluated(node.args), self._evaluated(node.kwargs)
        is_module = node.op == "call_module"
        given = form_of((args, kwargs)) if is_module else None
        self._effects.check(others_run=is_module)
        if node.op in ("call_function", "call_method"):
            self._effects.refuse_write(getattr(node.target, "__name__", str(node.target)), args, kwargs)
        self._running += 1
        # A module, or a function of the model's, may run code that is seen.
        of_model = is_module or is_own_module(str(getattr(node.target, "__module__", "torch")))
        seen = self._instruments.see_calls(of_model)
        try:
            with limits_of_proxies(False):
                match node.op:
                    case "call_function":
                        return node.target(*args, **kwargs)  # type: ignore[operator]
                    case "call_method":
                        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                    case "call_module":
                        result = self.root.get_submodule(str(node.target))(*args, **kwargs)
                        if form_of((args, kwargs)) != given:
                            raise UntraceableError(
                                f"gives {node.target} a list or dictionary that it writes into"
                            )
                        return result
                return operator.attrgetter(str(node.target))(self.root)
        except Exception as error:
            self._caught = error
            raise
        finally:
            self._instruments.see_calls(seen)
            self._running -= 1
            if is_module:
                self._effects.resume()


def form_of(arguments: Any) -> tuple[Any, list[int]]:
    """What lists and dictionaries hold, to any depth: equal to itself while nothing is written into them."""
    leaves, form = pytree.tree_flatten(arguments)
    return form, [id(leaf) for leaf in leaves]
