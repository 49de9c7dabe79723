"""What a forward reads is a condition of its graph: a call in which it is other runs as the model does."""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgraft
from fxgraft.host import engine
from fxgraft.util.bits import same_bits

SWITCH = True
CONFIG = types.SimpleNamespace(scale=1.0)
LAYERS = ["double"]


class Settings:
    """A plain object, as configurations are."""

    factor = 1.0

    def __init__(self) -> None:
        self.flag, self.names, self.inner = True, ["a"], types.SimpleNamespace(depth=1)


class Slotted:
    __slots__ = ("flag",)

    def __init__(self) -> None:
        self.flag = True


@dataclasses.dataclass
class Batch:
    x: Tensor
    mask: Tensor | None = None
    kind: str = "plain"
    inner: Any = None


class ReadsBetween(nn.Module):
    """Two layers; ``between`` says what a model does between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
        self.scale, self.flag, self.names, self.act = 1.0, True, ["default"], torch.tanh
        self.settings, self.slotted, self.kinds = Settings(), Slotted(), {"on": True}
        self.drop: nn.Module | None = None

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


def grown(model: nn.Module, *args: Any, slot: str = "a", blueprint: Any = "mlp") -> fxgraft.Host:
    """A host of ``model`` with a seed that adds nothing, so that its value is the model's."""
    host = fxgraft.trace(model, args)
    fxgraft.SeedManager(host, check_every=0).germinate(slot, blueprint)
    return host


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def as_the_model(host: fxgraft.Host, model: nn.Module, *args: Any) -> None:
    assert same_bits(host(*args), model(*args))


# Fields of objects that are passed in


def test_an_optional_field_of_an_input():
    class M(ReadsBetween):
        def forward(self, q: Batch) -> Tensor:
            h = self.a(q.x).tanh()
            return self.b(h if q.mask is None else h.flip(1))

    for example, other in ((Batch(X, X), Batch(X)), (Batch(X), Batch(X, X))):
        model = M()
        host = grown(model, example, slot="tanh")
        as_the_model(host, model, example)
        assert host.explain().fallbacks == 0
        as_the_model(host, model, other)
        assert host.explain().fallbacks == 1


@pytest.mark.parametrize(
    ("example", "other"),
    [
        (Batch(X), Batch(X, kind="flipped")),
        (Batch(X, inner=Batch(X)), Batch(X, inner=Batch(X, X))),
        (Batch(X, inner={"mask": None}), Batch(X, inner={"mask": X})),
        (Batch(X, inner={"mask": None}), Batch(X, inner={})),
        (Batch(X, inner=[X]), Batch(X, inner=[X, X])),
        (Batch(X, inner=[X]), Batch(X, inner=None)),
        (Batch(X, inner=(True, 2)), Batch(X, inner=(False, 2))),
    ],
    ids=["text", "nested object", "None in a dictionary", "key", "length", "nested None", "tuple"],
)
def test_fields_of_any_depth(example: Batch, other: Batch):
    class M(ReadsBetween):
        def forward(self, q: Batch) -> Tensor:
            h = self.a(q.x).tanh()
            if q.kind == "flipped":
                h = h.flip(1)
            if isinstance(q.inner, Batch) and q.inner.mask is not None:
                h = h.flip(0)
            if isinstance(q.inner, dict) and q.inner.get("mask", 3) is None:
                h = h * 3
            if isinstance(q.inner, list):
                h = h * len(q.inner)
            if isinstance(q.inner, tuple) and q.inner[0]:
                h = h + 1
            return self.b(h)

    model = M()
    host = grown(model, example, slot="tanh")
    as_the_model(host, model, example)
    assert host.explain().fallbacks == 0
    as_the_model(host, model, other)
    as_the_model(host, model, example)


# The state of the process


@pytest.mark.parametrize(
    ("ask", "inside"),
    [
        (torch.is_grad_enabled, torch.no_grad),
        (torch.is_inference_mode_enabled, torch.inference_mode),
        (lambda: torch.is_autocast_enabled("cpu"), lambda: torch.autocast("cpu", torch.bfloat16)),
        (
            lambda: torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16,
            lambda: torch.autocast("cpu", torch.float16),
        ),
    ],
    ids=["grad", "inference", "autocast", "autocast dtype"],
)
def test_the_state_of_torch(ask: Callable[[], bool], inside: Callable[[], Any]):
    class M(ReadsBetween):
        def between(self, h: Tensor) -> Tensor:
            return h * 0.5 if ask() else h

    model = M()
    host = grown(model, X)
    as_the_model(host, model, X)
    assert host.explain().fallbacks == 0
    with inside():
        as_the_model(host, model, X)
    as_the_model(host, model, X)
    assert host.explain().fallbacks == 1


def test_the_default_dtype():
    class M(ReadsBetween):
        def between(self, h: Tensor) -> Tensor:
            return h * 0.5 if torch.get_default_dtype() == torch.float64 else h

    model = M()
    host = grown(model, X)
    torch.set_default_dtype(torch.float64)
    as_the_model(host, model, X)


def test_the_environment(monkeypatch: pytest.MonkeyPatch):
    import os

    class M(ReadsBetween):
        def between(self, h: Tensor) -> Tensor:
            return h * 0.5 if os.environ.get("HALVES_THE_VALUE") else h

    model = M()
    host = grown(model, X)
    as_the_model(host, model, X)
    monkeypatch.setenv("HALVES_THE_VALUE", "1")
    as_the_model(host, model, X)
    assert host.explain().fallbacks == 1


# Sizes, ranks, dtypes


def test_a_branch_on_the_size_of_the_batch():
    class M(ReadsBetween):
        def between(self, h: Tensor) -> Tensor:
            return h - h.mean(0) if h.shape[0] > 5 else h

    model = M()
    host = grown(model, torch.randn(8, 6))
    for rows in (8, 3, 6, 5, 1):
        as_the_model(host, model, torch.randn(rows, 6))
    assert host.explain().fallbacks == 3


def test_a_branch_on_a_size_that_is_computed():
    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(2, 4, 3, stride=2), nn.Conv1d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h - h.mean(2, keepdim=True) if h.shape[-1] > 5 else h)

    model = M()
    host = grown(model, torch.randn(2, 2, 16), blueprint=lambda slot: nn.Conv1d(4, 4, 1))
    for length in (16, 13, 12, 11, 8, 30):  # 7, 6, 5, 5, 3 and 14 places behind the first layer
        as_the_model(host, model, torch.randn(3, 2, length))
    assert host.explain().fallbacks == 3


def test_experts_that_are_skipped():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.e = nn.Linear(6, 4), nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            top = self.gate(x).argmax(-1)
            o = torch.zeros_like(x)
            for k, e in enumerate(self.e):
                r = torch.where(top == k)[0]
                if r.shape[0] == 0:
                    continue
                o = o.index_add(0, r, e(x[r]))
            return o

    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = Experts(), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x))

    model = M()
    host = fxgraft.trace(model, (torch.randn(3, 6),))
    assert "depends on the data" in host.opaque["inner"]
    fxgraft.SeedManager(host, check_every=0).germinate("inner", "mlp")
    for _ in range(20):
        as_the_model(host, model, torch.randn(3, 6))
    assert host.explain().fallbacks == 0


@pytest.mark.parametrize("how", ["nonzero", "mask", "unique", "rows"])
def test_a_size_that_comes_from_data(how: str):
    class M(ReadsBetween):
        def between(self, h: Tensor) -> Tensor:
            match how:
                case "nonzero":
                    n = (h > 0).nonzero().size(0)
                case "mask":
                    n = h[h > 0].shape[0]
                case "unique":
                    n = torch.unique(h.round()).numel()
                case _:
                    n = 9 * h[h[:, 0] > 0].size(0)
            return h if n > 16 else h.flip(0)

    model = M()
    host = fxgraft.trace(model, (X,))
    assert "data" in host.opaque[""]
    for _ in range(5):
        as_the_model(host, model, torch.randn(4, 6))


def test_a_branch_on_a_rank():
    class M(ReadsBetween):
        def between(self, h: Tensor) -> Tensor:
            return h.flip(0) if h.dim() == 3 else h

    model = M()
    host = grown(model, X)
    as_the_model(host, model, torch.randn(3, 4, 6))
    assert host.explain().fallbacks == 1


def test_dtypes_are_data():
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.weight = nn.Linear(6, 6), nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            dtype = x.dtype
            h = self.a(x).float()
            h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + torch.finfo(dtype).eps)
            return self.weight * h.to(dtype)

    model = Norm()
    host = grown(model, X)
    as_the_model(host, model, X)
    host.to(torch.bfloat16), model.to(torch.bfloat16)
    assert host(X.bfloat16()).dtype == torch.bfloat16
    assert host.explain().fallbacks == 0


def test_a_branch_on_a_dtype():
    class M(ReadsBetween):
        def between(self, h: Tensor) -> Tensor:
            return h * 0.5 if h.dtype == torch.bfloat16 else h

    model = M()
    host = grown(model, X)
    as_the_model(host, model, X)
    host.to(torch.bfloat16), model.to(torch.bfloat16)
    as_the_model(host, model, X.bfloat16())


# Attributes of modules, and what they hold


def _set(name: str, value: Any) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        *path, last = name.split(".")
        setattr(functools.reduce(getattr, path, model), last, value)

    return change


CHANGES: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[Any], None]]] = {
    "number": (lambda m, h: h * m.scale, _set("scale", 2.0)),
    "flag": (lambda m, h: h.flip(1) if m.flag else h, _set("flag", False)),
    "function": (lambda m, h: m.act(h), _set("act", F.relu)),
    "list": (lambda m, h: h * len(m.names), lambda m: m.names.append("more")),
    "dictionary": (lambda m, h: h.flip(1) if m.kinds["on"] else h, lambda m: m.kinds.update(on=False)),
    "object": (lambda m, h: h.flip(1) if m.settings.flag else h, _set("settings.flag", False)),
    "list in an object": (lambda m, h: h * len(m.settings.names), lambda m: m.settings.names.append("b")),
    "object in an object": (lambda m, h: h * m.settings.inner.depth, _set("settings.inner.depth", 3)),
    "another object": (
        lambda m, h: h * len(m.settings.names),
        _set("settings", types.SimpleNamespace(names=[])),
    ),
    "class": (lambda m, h: h * m.settings.factor, lambda m: setattr(m.settings, "factor", 3.0)),
    "slot of an object": (lambda m, h: h.flip(1) if m.slotted.flag else h, _set("slotted.flag", False)),
    "missing": (lambda m, h: h.flip(1) if hasattr(m, "extra") else h, _set("extra", 1)),
    "default": (lambda m, h: h.flip(1) if getattr(m, "extra", None) else h, _set("extra", 1)),
    "submodule": (lambda m, h: h * m.a.in_features, _set("a.in_features", 7)),
    "mode of a submodule": (lambda m, h: h.flip(1) if m.a.training else h, lambda m: m.a.eval()),
    "no submodule": (lambda m, h: h if m.drop is None else m.drop(h), _set("drop", nn.Sigmoid())),
}


@pytest.mark.parametrize("name", CHANGES)
def test_attributes_that_are_set_later(name: str):
    between, change = CHANGES[name]

    class M(ReadsBetween):
        def between(self, h: Tensor) -> Tensor:
            return between(self, h)

    model = M()
    host = grown(model, X)
    as_the_model(host, model, X)
    assert host.explain().fallbacks == 0
    for changed in {id(held): held for held in (model, engine.trees(host)[0])}.values():
        change(changed)
    as_the_model(host, model, X)
    assert host.explain().fallbacks == (0 if host.opaque else 1)


@pytest.mark.parametrize("name", ["number", "function", "object", "list"])
def test_in_compiled_code_too(name: str, fresh_compiler: None):
    between, change = CHANGES[name]

    class M(ReadsBetween):
        def between(self, h: Tensor) -> Tensor:
            return between(self, h)

    model = M()
    host = grown(model, X)
    host.compile(backend="eager")
    as_the_model(host, model, X)
    for changed in {id(held): held for held in (model, engine.trees(host)[0])}.values():
        change(changed)
    as_the_model(host, model, X)


def test_globals(monkeypatch: pytest.MonkeyPatch):
    class M(ReadsBetween):
        def between(self, h: Tensor) -> Tensor:
            return h.flip(1) * CONFIG.scale * len(LAYERS) if SWITCH else h

    model = M()
    host = grown(model, X)
    module = sys.modules[__name__]
    as_the_model(host, model, X)
    assert host.explain().fallbacks == 0
    with monkeypatch.context() as patch:
        patch.setattr(module, "SWITCH", False)
        as_the_model(host, model, X)
    with monkeypatch.context() as patch:
        patch.setattr(CONFIG, "scale", 2.0)
        as_the_model(host, model, X)
    LAYERS.append("more")
    as_the_model(host, model, X)
    LAYERS.pop()
    as_the_model(host, model, X)
    assert host.explain().fallbacks == 3


REGISTRY: dict[str, Any] = {"double": nn.Identity}


def test_a_registry_that_others_add_to(monkeypatch: pytest.MonkeyPatch):
    class M(ReadsBetween):
        def between(self, h: Tensor) -> Tensor:
            return h * 2 if "double" in REGISTRY else h

    model = M()
    host = grown(model, X)
    monkeypatch.setitem(REGISTRY, "another", nn.Linear)
    as_the_model(host, model, X)
    assert host.explain().fallbacks == 0


def test_a_closure():
    factor = 1.0

    def change() -> None:
        nonlocal factor
        factor = 3.0

    class M(ReadsBetween):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * factor)

    model = M()
    host = grown(model, X)
    as_the_model(host, model, X)
    change()
    as_the_model(host, model, X)
    assert host.explain().fallbacks == 1


def test_a_branch_keeps_what_its_parts_were_told():
    class Inner(ReadsBetween):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * self.scale)

    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = Inner(), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x))

    model = M()
    host = fxgraft.trace(model, (X,))
    manager = fxgraft.SeedManager(host, check_every=0)
    manager.germinate("head", lambda slot: nn.Linear(8, 2), source="inner.a")
    as_the_model(host, model, X)
    assert host.explain().fallbacks == 0
    model.inner.scale = engine.trees(host)[0].inner.scale = 2.0
    as_the_model(host, model, X)


def test_copies_and_files_keep_the_conditions(tmp_path: Any):
    model = Net2()
    host = grown(model, X)
    again = copy.deepcopy(host)
    torch.save(host, tmp_path / "host.pt")
    loaded = torch.load(tmp_path / "host.pt", weights_only=False)
    for one in (again, loaded):
        as_the_model(one, model, X)
        engine.trees(one)[0].settings.flag = False
    model.settings.flag = False
    for one in (again, loaded):
        as_the_model(one, model, X)
        assert one.explain().fallbacks == 1


class Net2(ReadsBetween):
    def between(self, h: Tensor) -> Tensor:
        return h.flip(1) if self.settings.flag and SWITCH else h


# What the model catches itself


def test_exceptions_that_the_model_catches():
    class M(ReadsBetween):
        def between(self, h: Tensor) -> Tensor:
            try:
                return h.view(4, 2, 4).flip(1).view(4, 8)
            except RuntimeError:
                return h

    model = M()
    host = fxgraft.trace(model, (X,))
    assert "catches exceptions" in host.opaque[""]
    fxgraft.SeedManager(host, check_every=0).germinate("a", "mlp")
    as_the_model(host, model, X)
    as_the_model(host, model, torch.randn(3, 6))


def test_a_model_that_catches_what_tracing_raises():
    class M(ReadsBetween):
        def between(self, h: Tensor) -> Tensor:
            try:
                n = int(h.sum() > 0)
            except Exception:
                n = 0
            return h * (1 + n)

    model = M()
    host = fxgraft.trace(model, (X,))
    assert "" in host.opaque
    for _ in range(5):
        as_the_model(host, model, torch.randn(4, 6))


# What a first call sets, and what a submodule returns


def test_a_configuration_that_the_first_call_completes():
    class M(ReadsBetween):
        def between(self, h: Tensor) -> Tensor:
            if self.settings.kind is None:
                self.settings.kind = "wide"
            return h.flip(1) if self.settings.kind == "wide" else h

    model = M()
    model.settings.kind = None
    host = fxgraft.trace(model, (X,))
    assert model.settings.kind is None
    assert "" not in host.opaque
    fxgraft.SeedManager(host, check_every=0).germinate("a", "mlp")
    expected = M.forward(copy.deepcopy(model), X)
    assert same_bits(host(X), expected)
    assert model.settings.kind == "wide"
    assert host.explain().fallbacks == 1
    assert same_bits(host(X), expected)
    assert host.explain().fallbacks == 1


def test_what_a_submodule_returns():
    class Inner(ReadsBetween):
        def forward(self, x: Tensor) -> Any:
            h = self.a(x)
            return h, (h.mean() if self.flag else None)

    class M(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = Inner(), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h, mean = self.inner(x)
            return self.head(h if mean is None else h - mean)

    for flag in (True, False):
        model = M()
        model.inner.flag = flag
        host = fxgraft.trace(model, (X,))
        fxgraft.SeedManager(host, check_every=0).germinate("head", "mlp")
        as_the_model(host, model, X)
        assert host.explain().fallbacks == 0
        model.inner.flag = engine.trees(host)[0].inner.flag = not flag
        as_the_model(host, model, X)


class AskingTensors(nn.Module):
    """Asks for attributes of tensors that are None, or not there, in the example."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        h = torch.tanh(self.lin(x)) * (2 if self.lin.weight.grad is None else 1)
        h = h * (3 if given.grad is None else 1) * (5 if hasattr(self.lin.weight, "tag") else 1)
        return h * (7 if getattr(given, "tag", None) is None else 1)


def test_attributes_of_tensors_that_are_none_or_missing() -> None:
    model, x = AskingTensors(), torch.randn(4, 6)
    host = fxgraft.trace(model, (x, torch.ones(1)))
    fxgraft.SeedManager(host, check_every=0).germinate("tanh", "mlp")
    assert same_bits(host(x, x), model(x, x))
    assert host.explain().fallbacks == 0
    given = torch.ones(1)
    given.grad = torch.ones(1)
    tagged = torch.ones(1)
    tagged.tag = 1  # type: ignore[attr-defined]
    for other in (given, tagged):
        assert same_bits(host(x, other), model(x, other))
    model.lin.weight.grad = torch.zeros(6, 6)
    assert same_bits(host(x, x), model(x, x))
    model.lin.weight.tag = 1  # type: ignore[assignment]
    assert same_bits(host(x, x), model(x, x))


class AskingForText(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x) * (2 if "float64" in str(x.dtype) else 1)
        return h * {"4": 3}.get("%s" % x.shape[0], 5)  # noqa: UP031


def test_texts_of_sizes_and_dtypes() -> None:
    model, x = AskingForText(), torch.randn(4, 6)
    host = fxgraft.trace(model, (x,))
    fxgraft.SeedManager(host, check_every=0).germinate("tanh", "mlp")
    assert same_bits(host(x), model(x))
    assert host.explain().fallbacks == 0
    for other in (x[:3], x.double()):
        assert same_bits(host(other), model(other))


class AskingTheProcess(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x) * (2 if torch.distributed.is_initialized() else 1)
        h = h * (3 if torch.is_anomaly_enabled() else 1) * (torch.initial_seed() % 7)
        return h * torch.get_num_threads()


def test_the_state_of_the_process() -> None:
    model, x = AskingTheProcess(), torch.randn(4, 6)
    torch.manual_seed(1)
    host = fxgraft.trace(model, (x,))
    fxgraft.SeedManager(host, check_every=0).germinate("tanh", "mlp")
    assert same_bits(host(x), model(x))
    assert host.explain().fallbacks == 0
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        assert same_bits(host(x), model(x))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert same_bits(host(x), model(x))
    finally:
        torch.distributed.destroy_process_group()
    torch.manual_seed(2)
    assert same_bits(host(x), model(x))
    assert host.explain().fallbacks == 3


class Replaceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


def test_a_forward_that_is_replaced_in_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    host, x = fxgraft.trace(Replaceable(), (torch.randn(4, 6),)), torch.randn(4, 6)
    fxgraft.SeedManager(host, check_every=0).germinate("tanh", "mlp")
    assert same_bits(host(x), torch.tanh(x))
    monkeypatch.setattr(Replaceable, "forward", lambda self, x: torch.sin(x))
    assert same_bits(host(x), torch.sin(x))
