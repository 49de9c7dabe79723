"""What a trace assumes of its inputs, written into the graph where the code asks; see ``sizes``.

if q.mask is None: ...      getattr = getattr(q, 'mask'); is_ = getattr is None; assume(is_, True)
if x.shape[0] > 5: ...      size = x.size(0); gt = size > 5; assume(gt, True)
"""

from __future__ import annotations

import operator
from abc import abstractmethod
from typing import Any

import torch
import torch.fx as fx

from fxgraft.capture import _lengths, trace_operators
from fxgraft.capture._code import is_own_module
from fxgraft.capture._facts import is_constant
from fxgraft.capture._proxy import UntraceableError
from fxgraft.capture._sizes import is_condition, is_found, said_of, sized_by_data
from fxgraft.capture.call_form import CallForm


class AssumingTracer(fx.Tracer):
    """A tracer that gives the code Python values of its inputs, and assumes them from then on.

    Attributes:
        values: node -> its value in the call that is traced.
    """

    values: dict[fx.Node, Any]
    _form: CallForm
    _running: int

    @abstractmethod
    def _saw(self, node: fx.Node, value: Any) -> None:
        """``node`` has that value."""

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Follow a branch on sizes, ranks or dtypes; no other branch can be followed."""
        value = self.values[obj.node]
        if type(value) not in (bool, int) or not is_condition(obj.node, self.values):
            raise UntraceableError(f"branches on {obj.node}, which depends on the input")
        if (data := sized_by_data(obj.node, self.values)) is not None:
            raise UntraceableError(f"branches on the size of {said_of(data)}")
        if type(value) is int:
            self.assume(operator.ne, (obj.node, 0), value != 0)
        else:
            self.create_proxy("call_function", trace_operators.assume, (obj, value), {})
        return bool(value)

    def _value_for_code(self, proxy: Any, value: Any) -> Any:
        """What the code gets for a value: the proxy; or a constant itself, which is assumed from then on."""
        node = proxy.node
        base = self.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if node.target is getattr and isinstance(base, torch.Tensor):
            self._fix_optional(node, value)
        if not is_found(node) or isinstance(base, torch.Tensor):
            if value is None and node.op == "call_method" and is_own_module(type(base).__module__):
                raise UntraceableError(
                    f"calls {node.target!r} of {node.args[0]}, which returned None in the example"
                )
            if value is None:
                self._rely_on(node)
            return None if value is None else proxy
        if value is None or value is True or value is False:
            self.assume(operator.is_, (node, value))
            return value
        if isinstance(value, str) or (isinstance(value, tuple) and is_constant(value)):
            self.assume(operator.eq, (node, value))
            return value
        if isinstance(value, torch.Tensor):
            self.assume(operator.is_not, (node, None))
        elif not isinstance(value, (int, float)):
            self._assume_of(type, node, type(value), operator.is_)
        return proxy

    def _fix_optional(self, node: fx.Node, value: Any) -> None:
        """The code was given an attribute of a tensor: it is None or not, as in the example."""
        of, name = node.args[0], str(node.args[1])
        if value is not None and name != "grad" and hasattr(torch.Tensor, name):
            return
        if name != "grad_fn" and (is_found(of) or of.op == "get_attr"):  # type: ignore[union-attr]
            self.assume(operator.is_ if value is None else operator.is_not, (node, None))
        elif value is None:
            raise UntraceableError(f"asks for {name!r} of {of}, which was None in the example")

    def assume(self, target: Any, args: tuple[Any, ...], expected: bool = True) -> None:
        """Write into the graph that ``target(*args)`` is as it is now; see ``sizes``."""
        node = self.create_node("call_function", target, args, {})
        self._saw(node, expected)
        self._saw(self.create_node("call_function", trace_operators.assume, (node, expected), {}), None)

    def _assume_of(self, what: Any, node: fx.Node, value: Any, compared: Any = operator.eq) -> None:
        """Assume that ``what(node)`` compares so with ``value``."""
        part = self.create_node("call_function", what, (node,), {})
        self._saw(part, value)
        self.assume(compared, (part, value))

    def _rely_on(self, node: fx.Node) -> None:
        """The form of what a submodule returns was looked at: how many values, which are None."""
        while node.op == "call_function" and node.target in (getattr, operator.getitem):
            if not isinstance(node.args[0], fx.Node):
                return
            node = node.args[0]
        if node.op == "call_module":
            self._form.relied_on.add(str(node.target))

    def fix_form(self, node: fx.Node, of: str, is_unpacked: bool = False) -> None:
        """The code has looked at the length or the keys of a value.

        Args:
            node: the value.
            of: ``"length"`` or ``"keys"``.
            is_unpacked: whether the code gives each part a name: then it raises where there are more.
        """
        value = self.values[node]
        if not (is_found(node) or is_condition(node, self.values)):
            self._fix_count(node, is_unpacked)
        elif of == "keys":
            self._assume_of(list, node, list(value))
        else:
            self._assume_of(len, node, len(value))

    def _fix_count(self, node: fx.Node, is_unpacked: bool = False) -> None:
        """The code asked how many values an operation returns."""
        value, of = self.values[node], _lengths.subject_of(node)
        if node.op == "call_module":
            self._rely_on(node)
        elif is_found(node):
            self.fix_form(node, "keys" if isinstance(value, dict) else "length")
        elif _lengths.is_of_parts(node) or isinstance(value, _lengths.VIEWS):
            for part in node.all_input_nodes:
                if isinstance(self.values[part], _lengths.SEVERAL) or node.target is getattr:
                    self._fix_count(part, is_unpacked)
        elif is_unpacked:
            return
        elif (cut := _lengths.pieces_of(node)) is not None and isinstance(of, fx.Node):
            if not isinstance(cut[1], (tuple, list)):
                self._fix_pieces(of, *cut, count=len(value))
        elif _lengths.has_rank_many(node) and isinstance(of, fx.Node):
            self.fix_fact(of, "dim")
        elif not _lengths.is_fixed(node, value, self.values.get(of) if isinstance(of, fx.Node) else of):
            name = _lengths.name_of(node)
            raise UntraceableError(f"asks how many values {name!r} of {of} returns, which may change")

    def _fix_pieces(self, of: fx.Node, kind: str, number: Any, dim: Any, count: int) -> None:
        """Assume that a tensor is cut into as many pieces as it is now."""
        size: Any = self.proxy(of).size(dim)
        if kind == "unbind":
            bool(size == count)
            return
        number = self.proxy(number) if isinstance(number, fx.Node) else number
        if kind == "split":
            bool(number * (count - 1) < size)
            bool(size <= number * count)
        else:
            piece = (size + (number - 1)) // number
            bool(piece * (count - 1) < size)
            bool(size <= piece * count)

    def fix_kind(self, node: fx.Node, kinds: Any, found: bool) -> None:
        """The code asked whether a value is an instance of some classes."""
        if is_found(node):
            self.assume(isinstance, (node, kinds), found)
        elif not isinstance(self.values[node], torch.Tensor):
            self._rely_on(node)

    def fix_type(self, node: fx.Node) -> type:
        """The code asked for the class of a value; returns it."""
        found = type(self.values[node])
        if is_found(node):
            self._assume_of(type, node, found, operator.is_)
        elif not isinstance(self.values[node], torch.Tensor):
            self._rely_on(node)
        return found

    def fix_missing(self, node: fx.Node, name: str) -> None:
        """The code asked for an attribute that is not there."""
        if is_found(node) or node.op == "get_attr":
            self.assume(hasattr, (node, name), False)
        else:
            self._rely_on(node)

    def fix_contains(self, node: fx.Node, item: Any) -> None:
        """The code asked whether something is in a value."""
        if not is_found(node) or not is_constant(item):
            raise UntraceableError(f"asks whether something is in {node}, which depends on the input")
        self.assume(operator.contains, (node, item), item in self.values[node])

    def fix_fact(self, node: fx.Node, name: str) -> None:
        """The code got a rank or a kind as a constant."""
        value = self.values[node]
        if name in ("dim", "ndim", "ndimension"):
            part = self.create_node("call_method", "dim", (node,), {})
            self._saw(part, value.dim())
            self.assume(operator.eq, (part, value.dim()))
            return
        if name == "layout":
            part = self.create_node("call_function", getattr, (node, "layout"), {})
            answer: Any = value.layout
        else:
            part = self.create_node("call_method", name, (node,), {})
            answer = getattr(value, name)()
        self._saw(part, answer)
        self.assume(operator.is_, (part, answer))

    def has(self, value: Any, name: str) -> bool:
        """Whether an example value has an attribute, without the recorders seeing the read."""
        self._running += 1
        try:
            return hasattr(value, name)
        finally:
            self._running -= 1
