"""The sizes of values that a graph computes, as formulas over the sizes of its inputs.

The graph is run once on fake tensors whose sizes are symbols (``torch.fx.experimental.symbolic_shapes``)::

    h = linear(x).unfold(1, 3, 2)        h.size(1)  ->  "(x.size(1) - 3) // 2 + 1"

What torch had to assume for that (two sizes that are equal, one that is not 1) is part of the answer, and so
is what it assumes without a word: that no size is 0, and that ``squeeze`` takes nothing away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from types import FunctionType
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxgraft import _torch
from fxgraft.capture._code import is_own_module
from fxgraft.capture._sizes import facts_of
from fxgraft.errors import SlotError
from fxgraft_passes.observe import observation_of
from fxgraft_passes.untouched import untouched


@dataclass(frozen=True)
class Formulas:
    """Sizes as Python over the inputs.

    Attributes:
        sizes: node -> the expression of each of its sizes.
        assumed: Python that must be true for these to be right.
        ones: sizes of inputs that must be 1 for these to be right.
        filled: inputs that must have elements: to torch a symbol is 1 at least, and ``h[:-1]`` one shorter.
        squeezes: whether a ``squeeze`` was met.
    """

    sizes: Mapping[fx.Node, tuple[str, ...]]
    assumed: tuple[str, ...]
    ones: tuple[str, ...]
    filled: tuple[str, ...]
    squeezes: bool

    @property
    def conditions(self) -> tuple[str, ...]:
        """All that must be true, as Python."""
        filled = (f"({tensor}.numel() != 0)" for tensor in self.filled)
        return *filled, *(f"({size} == 1)" for size in self.ones), *self.assumed


def formulas(
    module: nn.Module, graph: fx.Graph, inputs: Mapping[str, str], wanted: Iterable[fx.Node]
) -> Formulas | None:
    """The sizes of ``wanted``; None where they cannot be found so.

    Args:
        module: what the graph runs on.
        graph: with what was observed of its inputs, and with the conditions that the sizes are for.
        inputs: placeholder -> the expression of its value.
        wanted: nodes whose values are tensors.

    Raises:
        SlotError: a size depends on data.
    """
    wanted = list(wanted)
    try:
        found = _formulas(module, graph, inputs, wanted, frozenset())
        # The example is often a batch of one. A size of 1 is a condition only if another one says otherwise.
        facts, _ = facts_of(graph, inputs, found.sizes)
        free: frozenset[str] = frozenset()
        for one in found.ones:
            with suppress(Exception):  # as below, or the graph does not run with another size there
                other = _formulas(module, graph, inputs, wanted, free | {one})
                if other.assumed == found.assumed and facts_of(graph, inputs, other.sizes)[0] == facts:
                    free |= {one}
        return replace(found, ones=tuple(one for one in found.ones if one not in free))
    except _torch.data_dependent_errors() as error:
        raise SlotError(_by_data(wanted)) from error
    except SlotError as error:
        raise SlotError(_by_data(wanted)) from error
    except Exception:  # what torch cannot follow with symbols: the caller relies on the sizes of the example
        return None


def _formulas(
    module: nn.Module,
    graph: fx.Graph,
    inputs: Mapping[str, str],
    wanted: list[fx.Node],
    free: Collection[str],
) -> Formulas:
    """As `formulas`, with the sizes of 1 in ``free`` as symbols, too. Raises what torch raises."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # takes a second to import

    environment = ShapeEnv(duck_shape=False, specialize_zero_one=False)
    mode = _torch.fake_tensor_mode(environment)
    needed = _behind(wanted)
    inputs_needed = [node for node in graph.nodes if node in needed and node.op == "placeholder"]
    values, names, ones = _symbols(mode, inputs_needed, inputs, free)
    squeezes = _Squeezes()
    with untouched(module), _torch.sizes_may_be_one(), mode, torch.no_grad(), squeezes:
        runner = fx.Interpreter(module, garbage_collect_values=False, graph=graph)
        runner.env.update(values)
        for node in graph.nodes:
            if node in needed and node not in values:
                runner.env[node] = runner.run_node(node)
    written = {node: tuple(_written(size, names) for size in runner.env[node].shape) for node in wanted}
    assumed = [_written(guard.expr, names) for guard in environment.guards]
    assumed += [f"({_written(size, names)} != 1)" for size in squeezes.kept]
    filled = [inputs[str(node.target)] for node in inputs_needed]
    conditions = tuple(dict.fromkeys(assumed)), tuple(dict.fromkeys(ones)), tuple(filled)
    return Formulas(written, *conditions, squeezes.met)


class _Squeezes(TorchFunctionMode):
    """Takes down the sizes that a ``squeeze`` met: torch takes a symbol for another size than 1.

    Attributes:
        kept: the sizes that must not be 1.
        met: whether there was one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.SymInt] = []
        self.met = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in SQUEEZES:
            self._see(*args, **kwargs)
        return func(*args, **kwargs)

    def _see(self, input: Tensor, dim: int | tuple[int, ...] | None = None) -> None:
        self.met = True
        axes = range(input.dim()) if dim is None else (dim,) if isinstance(dim, int) else dim
        sizes: list[Any] = [input.shape[axis] for axis in axes]
        for size in sizes:
            if isinstance(size, torch.SymInt):
                if size.node.hint == 1:
                    raise ValueError("a size of 1 in the example that is another one in other calls")
                self.kept.append(size)


SQUEEZES = ("squeeze", "squeeze_")
"""Operations that return another number of dimensions where a size is 1."""


def calls_code(module: nn.Module, nodes: Iterable[fx.Node]) -> bool:
    """Whether a ``squeeze``, or code in which there may be one, is behind a value.

    Args:
        module: what the graph runs on.
        nodes: of the graph.
    """
    return _squeezes(module, nodes, _is_own)


def may_squeeze(module: nn.Module, nodes: Iterable[fx.Node]) -> bool:
    """Whether the number of dimensions of a value may depend on sizes, as far as code shows it.

    Args:
        module: what the graph runs on.
        nodes: of the graph.
    """
    return _squeezes(module, nodes, _says_squeeze)


def _squeezes(module: nn.Module, nodes: Iterable[fx.Node], inside: Callable[[nn.Module], bool]) -> bool:
    """Whether a ``squeeze`` is behind a value, or the call of a module of which ``inside`` is true."""
    return any(
        inside(module.get_submodule(str(node.target)))
        if node.op == "call_module"
        else getattr(node.target, "__name__", node.target) in SQUEEZES
        for node in _behind(nodes)
    )


def _is_own(called: nn.Module) -> bool:
    return any(is_own_module(type(part).__module__) for part in called.modules())


def _says_squeeze(called: nn.Module) -> bool:
    """Whether a method of a module that is not torch's, or of one in it, calls ``squeeze``."""
    return any(
        not set(SQUEEZES).isdisjoint(function.__code__.co_names)
        for kind in {type(part) for part in called.modules()}
        for owner in kind.__mro__
        if is_own_module(owner.__module__)
        for function in vars(owner).values()
        if isinstance(function, FunctionType)
    )


def _by_data(wanted: list[fx.Node]) -> str:
    return (
        f"its code branches on the size of {', '.join(map(str, wanted))}, which depends on data: expected "
        f"a slot of another region (host.explain() has them)"
    )


def _symbols(
    mode: Any, placeholders: Iterable[fx.Node], inputs: Mapping[str, str], free: Collection[str]
) -> tuple[dict[fx.Node, Any], dict[str, str], list[str]]:
    """A fake tensor for each input, with a symbol for each size; the expressions of these; which sizes are 1.

    A size of 1 is no symbol, as it may be one that others are broadcast over; unless it is in ``free``: then
    it is one that no other input has, so that nothing is found because of equal sizes.
    """
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    values: dict[fx.Node, Any] = {}
    names: dict[str, str] = {}
    ones: list[str] = []
    used: set[int] = set()
    shapes: dict[fx.Node, list[tuple[str, int]]] = {}
    for node in placeholders:
        seen = observation_of(node)
        if seen is None or seen.kind != "Tensor":
            raise ValueError(f"{node} is no tensor")
        if 0 in seen.shape:
            raise ValueError(f"{node} has no elements")
        source = inputs[str(node.target)]
        shapes[node] = [(f"{source}.size({axis})", size) for axis, size in enumerate(seen.shape)]
        used |= set(seen.shape)
    others = (size for size in count(2) if size not in used)
    for node, sizes in shapes.items():
        seen = observation_of(node)
        assert seen is not None
        now = [next(others) if source in free else size for source, size in sizes]
        kinds = [DimDynamic.STATIC if size == 1 else DimDynamic.DYNAMIC for size in now]
        context: Any = StatelessSymbolicContext(kinds)
        real = torch.empty(now, dtype=seen.dtype, device=seen.device)
        values[node] = mode.from_tensor(real, symbolic_context=context)
        for size, (source, _) in zip(values[node].shape, sizes, strict=True):
            if isinstance(size, torch.SymInt):
                names.setdefault(str(size.node.expr), source)
            else:
                ones.append(source)
    return values, names, ones


def _behind(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _written(size: Any, names: Mapping[str, str]) -> str:
    if isinstance(size, int):
        return str(size)
    expression = size.node.expr if isinstance(size, torch.SymInt) else size
    unknown = {str(symbol) for symbol in expression.free_symbols} - names.keys()
    if any(symbol.startswith("u") for symbol in unknown):
        raise SlotError(f"a size depends on data ({expression})")
    assert not unknown, f"symbols of unknown origin: {unknown}"
    source = _torch.python_of(expression)
    return "(" + re.sub(r"\b[suz]\d+\b", lambda name: names.get(name[0], name[0]), source) + ")"
