"""Hypothesis strategies: random hosts as nested modules, and random lives of seeds on them.

A host is drawn as plain data (tuples of the names of operations, nested for children), so that it
shrinks to the shortest model that still fails, and prints as the code that builds it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.fx as fx
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

WIDTH = 4
BATCH = 3
TOKENS = 5

Part = Callable[[str], Any]
"""Finds what an operation owns in its block: ``part("linear")``."""


class Pair(nn.Module):
    """A child that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x), x * 0.5


@dataclass(frozen=True)
class RandomOperation:
    """What one operation owns, by name, and how it runs on ``(N, WIDTH)``."""

    run: Callable[[nn.Module, Part, Tensor], Any]
    owns: Callable[[], dict[str, Any]] = dict


def _linear() -> dict[str, Any]:
    return {"linear": nn.Linear(WIDTH, WIDTH)}


def _in_place_method(_: nn.Module, part: Part, x: Tensor) -> Any:
    y = part("linear")(x)
    y.relu_()
    return y


def _in_place_add(_: nn.Module, part: Part, x: Tensor) -> Any:
    return part("linear")(x).add_(x)


def _in_place_view(_: nn.Module, part: Part, x: Tensor) -> Any:
    y = part("linear")(x)
    y.view(-1).mul_(2.0)
    return y


def _multi_output(_: nn.Module, part: Part, x: Tensor) -> Any:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([b.relu(), a], dim=-1)


def _split(_: nn.Module, part: Part, x: Tensor) -> Any:
    first, rest = torch.split(x, [1, WIDTH - 1], dim=-1)
    return torch.cat([rest.sin(), first], dim=-1)


def _pair(_: nn.Module, part: Part, x: Tensor) -> Any:
    left, right = part("pair")(x)
    return left + right


def _shared(_: nn.Module, part: Part, x: Tensor) -> Any:
    return part("linear")(part("linear")(x).tanh())


def _tied(_: nn.Module, part: Part, x: Tensor) -> Any:
    return F.linear(part("linear")(x), part("linear").weight)


def _many_consumers(_: nn.Module, part: Part, x: Tensor) -> Any:
    y = part("linear")(x)
    return y + y.sigmoid() * y.tanh() - x


def _counter(_: nn.Module, part: Part, x: Tensor) -> Any:
    part("count").add_(1.0)
    return x + part("count") * 0.125


def _integers(_: nn.Module, part: Part, x: Tensor) -> Any:
    best = x.argmax(dim=-1)
    return x + part("embedding")(best) * F.one_hot(best, WIDTH)


def _dead(_: nn.Module, part: Part, x: Tensor) -> Any:
    part("linear")(x).relu()
    return x.cos()


def _dropout(block: nn.Module, part: Part, x: Tensor) -> Any:
    return F.dropout(x, 0.25, training=block.training)


OPERATIONS: dict[str, RandomOperation] = {
    "linear": RandomOperation(lambda _, part, x: part("linear")(x), _linear),
    "relu": RandomOperation(lambda _, part, x: F.relu(x)),
    "method": RandomOperation(lambda _, part, x: x.mul(0.5).clamp(min=-1.0)),
    "parameter": RandomOperation(
        lambda _, part, x: x * part("scale"), lambda: {"scale": nn.Parameter(torch.rand(WIDTH) + 0.5)}
    ),
    "many_consumers": RandomOperation(_many_consumers, _linear),
    "chunk": RandomOperation(_multi_output),
    "split": RandomOperation(_split),
    "pair": RandomOperation(_pair, lambda: {"pair": Pair()}),
    "shared": RandomOperation(_shared, _linear),
    "tied": RandomOperation(_tied, _linear),
    "in_place_method": RandomOperation(_in_place_method, _linear),
    "in_place_add": RandomOperation(_in_place_add, _linear),
    "in_place_view": RandomOperation(_in_place_view, _linear),
    "in_place_module": RandomOperation(
        lambda _, part, x: part("act")(part("linear")(x)),
        lambda: {**_linear(), "act": nn.ReLU(inplace=True)},
    ),
    "batch_norm": RandomOperation(
        lambda _, part, x: part("norm")(x), lambda: {"norm": nn.BatchNorm1d(WIDTH)}
    ),
    "layer_norm": RandomOperation(lambda _, part, x: part("norm")(x), lambda: {"norm": nn.LayerNorm(WIDTH)}),
    "counter": RandomOperation(_counter, lambda: {"count": torch.zeros(())}),
    "integers": RandomOperation(_integers, lambda: {"embedding": nn.Embedding(WIDTH, WIDTH)}),
    "dead": RandomOperation(_dead, _linear),
    "dropout": RandomOperation(_dropout),
    "dropout_module": RandomOperation(lambda _, part, x: part("drop")(x), lambda: {"drop": nn.Dropout(0.25)}),
}


@dataclass(frozen=True)
class Child:
    """A nested block: its operations, and how often its parent calls it (one shared module).

    Attributes:
        steps: names in `OPERATIONS`, and children.
        calls: how often its parent calls it. Default 1.
    """

    steps: tuple[Any, ...]
    calls: int = 1


class RandomBlock(nn.Module):
    """Runs a list of operations and children in order."""

    def __init__(self, steps: tuple[Any, ...]):
        super().__init__()
        self.steps = steps
        self.unused = nn.Parameter(torch.ones(2))
        for i, step in enumerate(steps):
            owned: dict[str, Any] = (
                {"child": RandomBlock(step.steps)} if isinstance(step, Child) else OPERATIONS[step].owns()
            )
            for name, value in owned.items():
                plain = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
                if plain:
                    self.register_buffer(f"{name}{i}", value)
                else:
                    setattr(self, f"{name}{i}", value)

    def forward(self, x: Tensor) -> Tensor:
        for i, step in enumerate(self.steps):
            if isinstance(step, Child):
                for _ in range(step.calls):
                    x = getattr(self, f"child{i}")(x)
            else:
                x = OPERATIONS[step].run(self, partial(self._owned, i), x)
        return x

    def _owned(self, place: int, name: str) -> Any:
        return getattr(self, f"{name}{place}")


class Net(nn.Module):
    """A whole model: floats or token ids in, one tensor or a tuple out."""

    def __init__(self, body: RandomBlock, tokens: bool, tuple_out: bool):
        super().__init__()
        self.tuple_out = tuple_out
        self.stem = nn.Embedding(TOKENS, WIDTH) if tokens else nn.Linear(WIDTH, WIDTH)
        self.body = body
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, x: Tensor) -> Any:
        y = self.head(self.body(self.stem(x)))
        return (y, y.mean(dim=-1)) if self.tuple_out else y


@dataclass(frozen=True)
class Plan:
    """A random model as data. `build` returns the same weights each time.

    Attributes:
        steps: names in `OPERATIONS`, and `Child` blocks.
        tokens: whether its input is token ids, ``(BATCH,)`` of int64, instead of floats ``(BATCH, WIDTH)``.
        tuple_out: whether it returns a tuple of two tensors.
    """

    steps: tuple[Any, ...]
    tokens: bool = False
    tuple_out: bool = False

    def build(self) -> Net:
        """A new model. The global random stream is not changed."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Net(RandomBlock(self.steps), self.tokens, self.tuple_out)

    def batch(self, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The input for the random seed ``seed``.

        Args:
            seed: a random seed; equal seeds give equal inputs.
            dtype: of floats. Default ``torch.float32``.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.tokens:
            return torch.randint(0, TOKENS, (BATCH,), generator=generator)
        return torch.randn(BATCH, WIDTH, generator=generator, dtype=dtype)


def _steps(depth: int, names: list[str]) -> st.SearchStrategy[tuple[Any, ...]]:
    step: st.SearchStrategy[Any] = st.sampled_from(names)
    if depth:
        step = step | st.builds(Child, _steps(depth - 1, names), st.integers(1, 2))
    return st.lists(step, min_size=1, max_size=4).map(tuple)


def plans(without: Collection[str] = ()) -> st.SearchStrategy[Plan]:
    """A hypothesis strategy of random models, with one to three levels of modules below the root.

    Args:
        without: names in `OPERATIONS` that do not occur.
    """
    names = [name for name in OPERATIONS if name not in without]
    return st.builds(Plan, _steps(2, names), st.booleans(), st.booleans())


def graph_modules(without: Collection[str] = ()) -> st.SearchStrategy[tuple[fx.GraphModule, Tensor]]:
    """A hypothesis strategy of random ``GraphModule``s, each with an input: for properties of passes.

    Args:
        without: names in `OPERATIONS` that do not occur.
    """
    return plans(without).map(lambda plan: (fx.symbolic_trace(plan.build()), plan.batch(0)))


CALLS = ("germinate", "blend", "cull", "fossilize", "step", "step", "train", "eval")


def lifecycle_calls(max_size: int = 12) -> st.SearchStrategy[list[tuple[str, int]]]:
    """A hypothesis strategy of sequences of calls. The number selects the slot, seed or target (modulo).

    Args:
        max_size: the largest number of calls. Default 12.
    """
    return st.lists(st.tuples(st.sampled_from(CALLS), st.integers(0, 50)), min_size=1, max_size=max_size)
