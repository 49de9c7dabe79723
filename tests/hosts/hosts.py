"""Hand-written models with what people's models have in them, and the checks that all hosts must pass."""

from __future__ import annotations

import dataclasses
import enum
import math
import random
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import fxgraft
from fxgraft.util.bits import same_bits
from fxgraft_passes import Phase

Pair = namedtuple("Pair", ["first", "second"])


class Given(NamedTuple):
    """A model with one call of it."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}


@dataclasses.dataclass
class Out:
    value: Tensor
    extra: Tensor | None = None


class Kind(enum.Enum):
    RELU = 1


def _open(value: Any) -> Any:
    """Dataclasses as dictionaries: their parts are compared too."""
    if dataclasses.is_dataclass(value) and not isinstance(value, (dict, type)):
        return {f.name: _open(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if type(value) in (tuple, list):
        return type(value)(map(_open, value))
    return value


def ran(
    module: nn.Module, given: Given, buffers: dict[str, Tensor], training: bool, parameters: nn.Module
) -> dict[str, Any]:
    """Outputs, gradients, buffers and random streams of one step from a fixed state."""
    module.train(training)
    for name, buffer in parameters.named_buffers():
        buffer.data.copy_(buffers[name])
    for parameter in parameters.parameters():
        parameter.grad = None
    torch.manual_seed(7)
    random.seed(7)
    out = _open(module(*given.args, **given.kwargs))
    leaves = [x for x in pytree.tree_leaves(out) if isinstance(x, Tensor) and x.requires_grad]
    if leaves:
        torch.stack([(leaf * leaf).sum().double() for leaf in leaves]).sum().backward()
    return {
        "out": out,
        "gradients": {n: p.grad for n, p in parameters.named_parameters()},
        "buffers": {n: b.clone() for n, b in parameters.named_buffers()},
        "random": torch.get_rng_state(),
        "python": torch.tensor(random.getstate()[1]),
    }


def look(model: nn.Module) -> list[Any]:
    """What tracing must leave alone: classes, attributes, hooks, flags."""
    found: list[Any] = []
    for name, module in model.named_modules():
        state = {
            key: (id(value), [*map(id, value.values())] if isinstance(value, dict) else None)
            for key, value in module.__dict__.items()
        }
        found.append((name, type(module), module.training, state))
    return found


def traced_untouched(given: Given) -> fxgraft.Host:
    """Trace, and check that the model, its state and the random streams are as before."""
    model = given.model
    before, state = look(model), {k: v.clone() for k, v in model.state_dict().items()}
    stream, python = torch.get_rng_state(), random.getstate()
    host = fxgraft.trace(model, given.args, given.kwargs)
    assert look(model) == before
    assert same_bits(dict(model.state_dict()), state)
    assert torch.equal(torch.get_rng_state(), stream)
    assert random.getstate() == python
    assert list(host.state_dict()) == list(state)
    return host


def check(given: Given, each_region: bool = True) -> fxgraft.Host:
    """The host is the model to the bit, also with each region's generated forward in the place of its own."""
    host = traced_untouched(given)
    model = given.model
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for training in (True, False):
        expected = ran(model, given, buffers, training, model)
        assert_same(ran(host, given, buffers, training, model), expected, "host")
        for name, region in host.regions.items() if each_region else ():
            region.install(region.forward_for((), Phase.ISOLATED))
            got = ran(host, given, buffers, training, model)
            region.install(None)
            assert_same(got, expected, f"region {name!r}, training={training}")
    return host


def assert_same(got: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    for part in expected:
        assert same_bits(got[part], expected[part]), f"{what}: other {part}"


# Hosts. Each function makes one; those in REFUSED have a module that has no graph, for that reason.

HOSTS: dict[str, Callable[[], Given]] = {}
REFUSED: dict[str, tuple[str, str]] = {}


def host(name: str, refused: tuple[str, str] | None = None, shape: tuple[int, ...] = (4, 8)) -> Any:
    """Register a model class, built without arguments and called with one tensor, or a function."""

    def register(made: Any) -> Any:
        is_class = isinstance(made, type)
        HOSTS[name] = (lambda: Given(made(), (torch.randn(shape),))) if is_class else made
        if refused:
            REFUSED[name] = refused
        return made

    return register


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 8)
        self.fc2 = nn.Linear(8, 8)


class SkipBlock(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(torch.relu(self.fc1(x)))


@host("branch on values", ("1", "branches on"))
def _() -> Given:
    class Gate(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc1(x) if x.sum() > 0 else self.fc2(x)

    return Given(nn.Sequential(SkipBlock(), Gate(), SkipBlock()), (torch.randn(4, 8),))


@host("branch on sizes")
class Sizes(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc1(x) if x.shape[0] > 1 else self.fc2(x)


@host("keyword-only and **kwargs")
def _() -> Given:
    class M(Base):
        def forward(
            self, x: Tensor, *rest: Any, scale: float = 2.0, act: Kind = Kind.RELU, **kw: Any
        ) -> Tensor:
            y = self.fc1(x) * scale + kw["bias"]
            return torch.relu(y) + rest[0] if act is Kind.RELU else y

    x = torch.randn(4, 8)
    return Given(M(), (x, x + 1), {"bias": torch.randn(8), "scale": 0.5, "flag": True})


@host("default arguments")
class Defaults(Base):
    def forward(
        self, x: Tensor, mask: Tensor | None = None, n: int = 2, sizes: tuple[int, ...] = (2, 4)
    ) -> Tensor:
        for _ in range(n):
            x = self.fc1(x).reshape(-1, *sizes).flatten(1)
        return x if mask is None else x * mask


@host("containers in and out")
def _() -> Given:
    class M(Base):
        def forward(self, batch: dict[str, Any], pair: Pair, out: Out) -> Any:
            a, b = self.fc1(batch["x"]), self.fc2(batch["more"][0])
            return {"a": [a, b], "pair": Pair(a + pair.first, b), "od": OrderedDict(a=a, b=(b, 3))}, Out(
                a + out.value, extra=b
            )

    x, y = torch.randn(4, 8), torch.randn(4, 8)
    return Given(M(), ({"x": x, "more": [y, y], "n": 3}, Pair(x, y), Out(x)))


@host("dataclass between modules")
class Dataclasses(nn.Module):
    class Inner(Base):
        def forward(self, x: Tensor) -> Out:
            return Out(self.fc1(x), extra=self.fc2(x))

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.Inner()

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        n, width = out.value.shape
        return out.value.reshape(n, width) + out.extra


@host("called twice, equal shapes")
class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = SkipBlock()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(torch.relu(self.block(x)))


@host("called twice, different shapes")
class TwiceOther(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).sum() + self.block(x[:2])


@host("tied weights")
class Tied(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc2.weight = self.fc1.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.fc2(self.fc1(x)), self.fc1.weight)


@host("tensor attributes")
class Attributes(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.linspace(0, 1, 8)
        self.table = torch.randn(16, 8)
        self.frozen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.fc1(x) * self.scale + self.table[: x.shape[0]] + (self.scale * 2).abs()


@host("factories from sizes")
class Factories(Base):
    def forward(self, x: Tensor) -> Tensor:
        n, width = x.shape
        mask = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
        mask[0, 0] = True
        scores = torch.zeros(n, n).masked_fill(~mask, -1e9) + torch.full((n, n), 0.5)
        places = torch.arange(n, dtype=x.dtype).unsqueeze(1) + torch.tensor([1.0, 2.0]).sum()
        return scores.softmax(-1) @ self.fc1(x) + places + torch.eye(n, width) + torch.linspace(0, 1, width)


@host("random factories", ("", "takes another path in train mode than in eval mode"))
class Noise(Base):
    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(x.shape[0], 8) if self.training else torch.zeros(x.shape[0], 8)
        return self.fc1(x + torch.rand_like(x)) + noise


@host("unused random draw")
class Drawn(Base):
    def forward(self, x: Tensor) -> Tensor:
        torch.rand([])
        return self.fc1(x) + torch.randn(8)


@host("layer drop", ("", "branches on"))
class LayerDrop(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x if torch.rand([]) < 0.1 else self.fc1(x)


@host("python random", ("", "Python's random"))
class PythonRandom(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc1(x) * random.random()


@host("counter", ("", "changes its attribute 'count'"))
class Counter(Base):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.fc1(x)


@host("history", ("", "changes self.history"))
class History(Base):
    def __init__(self) -> None:
        super().__init__()
        self.history: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.history.append(x)
        return self.fc1(x)


@host("buffer counter", ("", "changes its attribute 'steps'"))
class BufferCounter(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.bn = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.bn.num_batches_tracked
        return self.bn(self.fc1(x)) / self.steps


@host("hooks")
def _() -> Given:
    model = nn.Sequential(SkipBlock(), nn.Linear(8, 8), SkipBlock())
    model[0].register_forward_hook(lambda m, args, out: out * 2)
    model[1].register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    model[2].register_forward_pre_hook(lambda m, args, kw: (args, kw), with_kwargs=True)
    model[2].fc1.register_full_backward_hook(lambda m, gi, go: (gi[0] * 3,))
    model.register_forward_hook(lambda m, args, kw, out: out - 1, with_kwargs=True)
    return Given(model, (torch.randn(4, 8),))


@host("pre-hook gives a keyword")
def _() -> Given:
    class M(Base):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.fc1(x) * scale

    model = nn.Sequential(M())
    model[0].register_forward_pre_hook(lambda m, args, kw: (args, {"scale": 3.0}), with_kwargs=True)
    return Given(model, (torch.randn(4, 8),))


@host("weight norms")
def _() -> Given:
    model = nn.Sequential(SkipBlock(), SkipBlock(), SkipBlock())
    parametrizations.weight_norm(model[0].fc1)
    parametrizations.spectral_norm(model[1].fc1)
    parametrizations.orthogonal(model[2].fc1)
    return Given(model, (torch.randn(4, 8),))


@host("parametrized region")
def _() -> Given:
    class Scaled(Base):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc1(x) * self.gain

    class Double(nn.Module):
        def forward(self, p: Tensor) -> Tensor:
            return p * 2

    model = Scaled()
    nn.utils.parametrize.register_parametrization(model, "gain", Double())
    return Given(nn.Sequential(model, SkipBlock()), (torch.randn(4, 8),))


@host("lstm", shape=(4, 5, 8))
class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, num_layers=2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, (h, c) = self.lstm(x)
        return self.head(out[:, -1] + h[-1] + c[0])


@host("multi-head attention", shape=(4, 5, 8))
class Attention(Base):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out, weights = self.attn(x, x, x, need_weights=True)
        return self.fc1(out) + weights.mean()


@host("transformer encoder", shape=(4, 5, 8))
class Encoder(Base):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc1(self.encoder(x)).mean(1)


@host("checkpointed blocks")
class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SkipBlock(), SkipBlock()

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.first, x, use_reentrant=False)
        return F.dropout(checkpoint(self.second, x, use_reentrant=False), 0.2, self.training)


@host("reentrant checkpoint")
class Reentrant(Checkpointed):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(checkpoint(self.first, self.second(x), use_reentrant=True))


@host("frozen part under no_grad")
class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = SkipBlock(), SkipBlock()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.backbone(x).tanh()
        return self.head(x)


@host("custom autograd function")
class StraightThrough(Base):
    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
            return (x * scale).round() / scale

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            return g * 2, None

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.Round.apply(self.fc1(x), 4.0))


@host("isinstance")
class Instances(Base):
    def forward(self, x: Any) -> Tensor:
        if isinstance(x, Tensor):
            x = {"x": x}
        y = self.fc1(x["x"])
        return y if isinstance(y, (list, tuple)) else y + 1


@host("loss made in forward")
class Loss(Base):
    def forward(self, x: Tensor) -> Tensor:
        return nn.MSELoss()(self.fc1(x), nn.Identity()(self.fc2(x)))


@host("foreign module", ("", "not one of its submodules"))
class Foreign(Base):
    def __init__(self) -> None:
        super().__init__()
        self.__dict__["hidden"] = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(self.fc1(x))


@host("autocast in forward")
class Autocast(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.fc1(x)
        return self.fc2(y.float())


@host("double")
def _() -> Given:
    return Given(nn.Sequential(SkipBlock(), SkipBlock()).double(), (torch.randn(4, 8, dtype=torch.float64),))


@host("bfloat16")
def _() -> Given:
    return Given(nn.Sequential(SkipBlock(), SkipBlock()).bfloat16(), (torch.randn(4, 8).bfloat16(),))


@host("channels last")
def _() -> Given:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    model = model.to(memory_format=torch.channels_last)
    return Given(model, (torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last),))


@host("names of ours")
class OurNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slots, self.regions, self.graft = SkipBlock(), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.graft(self.regions(self.slots(x)))


@torch.fx.wrap
def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """As libraries mark a helper for ``torch.fx``: to be one operation of a graph."""
    return x if mask is None or not mask.any() else x * mask


@host("a function given to fx.wrap")
class WrappedHelper(Base):
    def forward(self, x: Tensor) -> Tensor:
        mask = (x > 0).float()
        return torch.tanh(masked(self.fc1(x), mask) / math.sqrt(2)) + masked(x, None)


@host("names of Python's own")
class KeywordNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"class": SkipBlock(), "None": nn.Linear(8, 8), 'a"b': SkipBlock()})
        self.register_buffer("lambda", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = torch.tanh(layer(x)) * getattr(self, "lambda")
        return x


@host("graph module")
def _() -> Given:
    return Given(torch.fx.symbolic_trace(nn.Sequential(SkipBlock(), SkipBlock())), (torch.randn(4, 8),))


@host("deep nesting")
def _() -> Given:
    class Nest(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + 1

    model: nn.Module = SkipBlock()
    for _ in range(30):
        model = Nest(model)
    return Given(model, (torch.randn(4, 8),))


@host("deep nesting of what cannot be traced", ("", "branches on"))
def _() -> Given:
    class Nest(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return y if y.sum() > 1e9 else y + 1

    model: nn.Module = SkipBlock()
    for _ in range(30):
        model = Nest(model)
    return Given(model, (torch.randn(4, 8),))


@host("shape changing attributes")
class Properties(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        return y.T.mT.data + y.new_zeros(y.size(0), y.size(-1)) + y.mean(dtype=x.dtype).to(x.device)


@host("submodule named self")
def _() -> Given:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("self", SkipBlock())
            self.output = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.output(getattr(self, "self")(x)) + torch.arange(len(x)).unsqueeze(1)  # noqa: B009

    return Given(Attends(), (torch.randn(4, 8),))
