"""What a forward does beside its result: its region is refused by name, and runs as the model has it."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.capture._proxy import ConcreteProxy
from fxgraft.host import engine
from fxgraft.util.bits import same_bits

AUXILIARY: list[Any] = []
TOTALS = {"calls": 0}
CALLS = 0


class Context:
    total = 0

    def __init__(self) -> None:
        self.aux: list[Any] = []
        self.by_name: dict[str, Any] = {}
        self.nested = {"a": [deque()]}
        self.count = 0
        self.last: Any = None

    def add(self, value: Any) -> None:
        self.aux.append(value)


class Slotted:
    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: Any = None


class Gate(nn.Module):
    """A layer whose forward does ``effect`` with its gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.out, self.other = nn.Linear(6, 4), nn.Linear(6, 6), nn.Linear(6, 4)
        self.ctx, self.slotted, self.log = Context(), Slotted(), []
        self.counter, self.table, self.seen, self.members = (
            Counter(),
            defaultdict(list),
            set(),
            deque(maxlen=3),
        )
        self.memory, self.generator = torch.zeros(4), torch.Generator().manual_seed(3)

    def effect(self, p: Tensor) -> Any:
        return None

    def forward(self, x: Tensor) -> Tensor:
        p = self.gate(x).softmax(-1)
        extra = self.effect(p)
        scale = p.max(-1, keepdim=True).values
        return self.out(x) * (scale if extra is None else scale * extra)


def _global_list(m: Gate, p: Tensor) -> None:
    AUXILIARY.append(p.mean(0).square().sum())


def _global_number(m: Gate, p: Tensor) -> None:
    global CALLS
    CALLS += 1


def _global_dictionary(m: Gate, p: Tensor) -> None:
    TOTALS["calls"] += 1


def _of_class(m: Gate, p: Tensor) -> None:
    type(m.ctx).total += 1


def _by_data(m: Gate, p: Tensor) -> None:
    with torch.no_grad():
        for q, k in zip(m.gate.parameters(), m.other.parameters(), strict=True):
            k.data = k.data * 0.9 + q.data * 0.1


def _in_place(m: Gate, p: Tensor) -> None:
    with torch.no_grad():
        for q, k in zip(m.gate.parameters(), m.other.parameters(), strict=True):
            k.mul_(0.9).add_(q, alpha=0.1)


def _by_data_in_place(m: Gate, p: Tensor) -> None:
    m.other.weight.data.mul_(0.9)


def _plain_tensor(m: Gate, p: Tensor) -> None:
    m.memory.mul_(0.9).add_(p.detach().mean(0), alpha=0.1)


def _plain_tensor_copied(m: Gate, p: Tensor) -> None:
    m.memory[:] = p.detach().mean(0)


EFFECTS: dict[str, Callable[[Any, Tensor], Any]] = {
    "list in an object": lambda m, p: m.ctx.aux.append(p.mean(0).square().sum()),
    "list by a method": lambda m, p: m.ctx.add(p.mean()),
    "list of its own": lambda m, p: m.log.append(p.mean()),
    "dictionary in an object": lambda m, p: m.ctx.by_name.update(loss=p.mean()),
    "nested containers": lambda m, p: m.ctx.nested["a"][0].append(p.mean()),
    "attribute of an object": lambda m, p: setattr(m.ctx, "last", p.mean()),
    "counter in an object": lambda m, p: setattr(m.ctx, "count", m.ctx.count + 1),
    "slot of an object": lambda m, p: setattr(m.slotted, "last", p.mean()),
    "attribute of a submodule": lambda m, p: setattr(m.gate, "last", 3),
    "Counter": lambda m, p: m.counter.update(["call"]),
    "defaultdict": lambda m, p: m.table["loss"].append(1),
    "set": lambda m, p: m.seen.add("seen"),
    "deque": lambda m, p: m.members.append(p.detach()),
    "text of a value": lambda m, p: m.log.append(f"{p.mean():.3f}"),
    "global list": _global_list,
    "global number": _global_number,
    "global dictionary": _global_dictionary,
    "variable of a class": _of_class,
    "parameters by data": _by_data,
    "parameters in place": _in_place,
    "parameters by data in place": _by_data_in_place,
    "plain tensor": _plain_tensor,
    "plain tensor copied into": _plain_tensor_copied,
    "generator": lambda m, p: torch.rand(4, 1, generator=m.generator),
    "print": lambda m, p: print("called"),
    "mode": lambda m, p: m.other.train(not m.other.training) and None,
}


def gate_of(name: str) -> Gate:
    effect = EFFECTS[name]

    class Affected(Gate):
        def effect(self, p: Tensor) -> Any:
            return effect(self, p)

    return Affected()


class Model(nn.Module):
    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.first, self.gate, self.head = nn.Linear(6, 6), gate, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gate(self.first(x)))


def state_of(model: Model) -> list[Any]:
    """Everything that the effects write into."""
    gate: Any = model.gate
    ctx = gate.ctx
    held = [
        len(ctx.aux), dict(ctx.by_name), len(ctx.nested["a"][0]), ctx.last, ctx.count,
        gate.slotted.last, len(gate.log),
        dict(gate.counter), {k: len(v) for k, v in gate.table.items()}, set(gate.seen), len(gate.members),
        gate.memory.clone(), gate.generator.get_state(), getattr(gate.gate, "last", None),
        len(AUXILIARY), CALLS, dict(TOTALS), Context.total, [m.training for m in model.modules()],
    ]  # fmt: skip
    return held + [p.detach().clone() for p in model.parameters()]


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        same_bits(x, y) if isinstance(x, Tensor) or isinstance(y, Tensor) else str(x) == str(y)
        for x, y in zip(a, b, strict=True)
    )


@pytest.fixture(autouse=True)
def _nothing_kept():
    yield
    global CALLS
    CALLS, Context.total = 0, 0
    AUXILIARY.clear()
    TOTALS["calls"] = 0


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def _runs(model: nn.Module, times: int = 3) -> list[Any]:
    torch.manual_seed(5)
    return [model(X).detach() for _ in range(times)]


@pytest.mark.parametrize("name", EFFECTS)
def test_a_region_with_an_effect_is_refused_and_runs_as_it_is(name: str, capsys: pytest.CaptureFixture[str]):
    model = Model(gate_of(name))
    before = state_of(model)
    host = fxgraft.trace(model, (X,))
    assert same(state_of(model), before), "tracing has left something behind"
    # What is set once, to a constant, is a condition: only the call that sets it falls back.
    assert name == "attribute of a submodule" or "gate" in host.opaque, host.explain()
    assert "" not in host.opaque  # what is around it is traced
    reference = Model(gate_of(name))
    reference.load_state_dict(model.state_dict())
    expected = _runs(reference)
    wanted = state_of(reference)
    _nothing_kept_now(wanted)
    optimizer = torch.optim.SGD(host.parameters(), 0.0)
    manager = fxgraft.SeedManager(host, optimizer, check_every=1, strict=True)
    for slot in ("first", "gate"):
        manager.germinate(slot, "mlp")
    torch.manual_seed(5)
    seen = []
    for _ in range(3):
        out = host(X)
        seen.append(out.detach())
        out.sum().backward()
        optimizer.step()
        manager.step()  # with the isolation check in it
    assert all(map(same_bits, seen, expected))
    assert manager.monitor.checks > 0
    assert same(state_of(engine.trees(host)[0]), wanted)
    assert not any(
        isinstance(item, ConcreteProxy) for item in (*AUXILIARY, *model.gate.ctx.aux, *model.gate.log)
    )
    capsys.readouterr()


def _nothing_kept_now(wanted: list[Any]) -> None:
    """What is global was written by the reference: the host begins anew."""
    global CALLS
    CALLS, Context.total = 0, 0
    AUXILIARY.clear()
    TOTALS["calls"] = 0


@pytest.mark.parametrize("kind", ["embedding", "hook"])
def test_what_children_and_hooks_write_is_put_back(kind: str):
    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(8, 6, max_norm=0.5)
            self.head, self.seen = nn.Linear(6, 2), []

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embedding(ids))

    model = M()
    if kind == "hook":
        model.head.register_forward_hook(lambda m, args, out: model.seen.append(out.detach().sum()))
    ids = torch.tensor([[1, 2], [3, 4]])
    weight = model.embedding.weight.detach().clone()
    host = fxgraft.trace(model, (ids,))
    assert same_bits(model.embedding.weight.detach(), weight)
    assert not model.seen
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.0), check_every=1, strict=True)
    manager.germinate("embedding", "mlp")
    host(ids).sum().backward()
    after, count = model.embedding.weight.detach().clone(), len(model.seen)
    manager.step()
    assert manager.monitor.checks == 1
    assert same_bits(model.embedding.weight.detach(), after)
    assert len(model.seen) == count


def test_the_auxiliary_loss_is_part_of_the_loss():
    """A list that the model's owner hands in, as mixtures of experts do."""
    model = Model(gate_of("list in an object"))
    host = fxgraft.trace(model, (X,))
    manager = fxgraft.SeedManager(host, check_every=0)
    manager.germinate("gate", "mlp")
    losses = []
    for one in (model, host):
        model.gate.ctx.aux.clear()
        engine.trees(host)[0].gate.ctx.aux.clear()
        loss = one(X).square().mean() + sum(model.gate.ctx.aux)
        losses.append(loss.detach())
        loss.backward()
    assert same_bits(*losses)
