"""What a forward reads past attributes of its own: classes, functions, containers, delegation, contexts.

Each is read in the example call and changed afterwards: the host, with seeds, gives the plain model's value.
"""

from __future__ import annotations

import contextlib
import contextvars
import enum
import functools
import importlib
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft.host import engine
from fxgraft.util.bits import same_bits
from tests.soundness import other_file

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Key:
    """An object without a value of its own."""

    factor: Any = 2.0


class Mode(enum.Enum):
    ON = 1


class ByDict:
    def __init__(self, items: dict[str, Any]) -> None:
        self.__dict__["_items"] = items

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_items"][name]
        except KeyError:
            raise AttributeError(name) from None


class ByObject:
    def __init__(self, held: Any) -> None:
        self._held = held

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_held"], name)


class AttrDict(dict[str, Any]):
    __getattr__ = dict.__getitem__


KEY = Key()
VARIABLE = contextvars.ContextVar("VARIABLE", default=2.0)
UNSET: contextvars.ContextVar[float] = contextvars.ContextVar("UNSET")
LOCAL = threading.local()
LOCAL.factor = 2.0


def give(m: Any, width: int) -> None:
    """Give a module what the ways read, for values of that width. It has a layer ``a``."""
    m.drop, m.layers, m.steps = nn.Tanh(), nn.ModuleList([nn.Tanh()]), nn.Sequential(nn.Tanh())
    m.named, m.vector = nn.ModuleDict({"x": nn.Tanh()}), nn.Parameter(torch.full((width,), 2.0))
    m.register_buffer("mask", torch.full((width,), 2.0))
    m.plain, m.kind, m.key, m.space = torch.full((width,), 2.0), Key, Key(), Key()
    m.by_object, m.by_kind, m.keys = {KEY: 2.0}, {nn.Linear: 2.0, "f": torch.tanh}, {KEY}
    m.by_enum, m.by_module = {Mode.ON: types.SimpleNamespace(factor=2.0)}, {m.a: 2.0}
    m.by_dict, m.by_held = ByDict({"factor": 2.0}), ByObject(types.SimpleNamespace(factor=2.0))
    m.attributes, m.holder = AttrDict(factor=2.0), ByObject(types.SimpleNamespace(model=m))
    m.weak, m.weak_keys = weakref.ref(m), weakref.WeakKeyDictionary({m.a: 2.0})


class AnyRead(nn.Module):
    """Two layers, and what cases read: each test makes a class of its own of it."""

    factor = 2.0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
        give(self, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))

    def between(self, h: Tensor) -> Tensor:
        raise NotImplementedError


def _of_class(m: Any, h: Tensor) -> Tensor:
    kind = other_file.Config
    return h * kind.factor


def _closed_over() -> tuple[Callable[[Any, Tensor], Tensor], Callable[[Any], None]]:
    factor = 2.0

    def inner(m: Any, h: Tensor) -> Tensor:
        return h * factor

    def change(m: Any) -> None:
        nonlocal factor
        factor = 5.0

    return inner, change


def _iterated(layers: Any) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, h: functools.reduce(lambda value, layer: layer(value), layers(m), h)


def _kept(m: Any, h: Tensor) -> Tensor:
    drop = m.drop
    return h if drop is None else drop(h)


def _imported(m: Any, h: Tensor) -> Tensor:
    from tests.soundness.other_file import REGISTRY

    return h * REGISTRY["factor"]


def _imported_by_name(m: Any, h: Tensor) -> Tensor:
    module = importlib.import_module("tests.soundness.other_file")
    return h * module.Config.factor


Between = Callable[[Any, Tensor], Tensor]
WAYS: dict[str, tuple[Between, Callable[[Any], object]]] = {
    "class by type": (lambda m, h: h * type(m).factor, lambda m: setattr(type(m), "factor", 3.0)),
    "class by attribute": (lambda m, h: h * m.kind.factor, lambda m: setattr(Key, "factor", 3.0)),
    "class by __class__": (lambda m, h: h * m.__class__.factor, lambda m: setattr(type(m), "factor", 3.0)),
    "class by getattr": (
        lambda m, h: h * getattr(type(m), "factor"),  # noqa: B009
        lambda m: setattr(type(m), "factor", 3.0),
    ),
    "class in a variable": (_of_class, lambda m: setattr(other_file.Config, "factor", 3.0)),
    "function replaced": (
        lambda m, h: other_file.double(h),
        lambda m: setattr(other_file, "double", lambda x: x * 5),
    ),
    "function in a registry": (
        lambda m, h: other_file.REGISTRY["double"](h),
        lambda m: other_file.REGISTRY.update(double=lambda x: x * 5),
    ),
    "number in a registry": (
        lambda m, h: h * other_file.REGISTRY["factor"],
        lambda m: other_file.REGISTRY.update(factor=5.0),
    ),
    "attribute of a function": (
        lambda m, h: other_file.counted(h),
        lambda m: setattr(other_file.counted, "factor", 3.0),
    ),
    "mutable default": (
        lambda m, h: other_file.with_defaults(h),
        lambda m: other_file.with_defaults.__defaults__[1].__setitem__(0, 7.0),
    ),
    "defaults replaced": (
        lambda m, h: other_file.with_defaults(h),
        lambda m: setattr(other_file.with_defaults, "__defaults__", (4.0, [1.0])),
    ),
    "closure of a method": _closed_over(),
    "import in the code": (_imported, lambda m: other_file.REGISTRY.update(factor=5.0)),
    "import by name": (_imported_by_name, lambda m: setattr(other_file.Config, "factor", 3.0)),
    "length of a list": (lambda m, h: h * len(m.layers), lambda m: m.layers.append(nn.Tanh())),
    "layers of a list": (_iterated(lambda m: m.layers), lambda m: m.layers.append(nn.Tanh())),
    "layers of a sequence": (_iterated(lambda m: m.steps), lambda m: m.steps.append(nn.Tanh())),
    "name in a dictionary of modules": (
        lambda m, h: h * 2 if "y" in m.named else h,
        lambda m: m.named.update({"y": nn.Tanh()}),
    ),
    "isinstance of a submodule": (
        lambda m, h: m.drop(h) * (2 if isinstance(m.drop, nn.Tanh) else 1),
        lambda m: setattr(m, "drop", nn.ReLU()),
    ),
    "type of a submodule": (
        lambda m, h: m.drop(h) * (2 if type(m.drop) is nn.Tanh else 1),
        lambda m: setattr(m, "drop", nn.ReLU()),
    ),
    "delegated to a dictionary": (
        lambda m, h: h * m.by_dict.factor,
        lambda m: m.by_dict._items.update(factor=5.0),
    ),
    "no longer delegated": (lambda m, h: h * m.by_dict.factor, lambda m: setattr(m.by_dict, "factor", 5.0)),
    "delegated to an object": (
        lambda m, h: h * m.by_held.factor,
        lambda m: setattr(m.by_held._held, "factor", 5.0),
    ),
    "dictionary with attributes": (
        lambda m, h: h * m.attributes.factor,
        lambda m: m.attributes.update(factor=5.0),
    ),
    "dictionary by objects": (lambda m, h: h * m.by_object[KEY], lambda m: m.by_object.update({KEY: 5.0})),
    "dictionary by enums": (
        lambda m, h: h * m.by_enum[Mode.ON].factor,
        lambda m: setattr(m.by_enum[Mode.ON], "factor", 5.0),
    ),
    "dictionary by modules": (lambda m, h: h * m.by_module[m.a], lambda m: m.by_module.update({m.a: 5.0})),
    "dictionary by classes": (
        lambda m, h: h * m.by_kind[nn.Linear],
        lambda m: m.by_kind.update({nn.Linear: 5.0}),
    ),
    "set of objects": (lambda m, h: h * 2 if KEY in m.keys else h, lambda m: m.keys.clear()),
    "context variable": (lambda m, h: h * VARIABLE.get(), lambda m: VARIABLE.set(5.0)),
    "unset context variable": (lambda m, h: h * UNSET.get(1.0), lambda m: UNSET.set(5.0)),
    "local of a thread": (lambda m, h: h * LOCAL.factor, lambda m: setattr(LOCAL, "factor", 5.0)),
    "missing local of a thread": (
        lambda m, h: h * getattr(LOCAL, "other", 1.0),
        lambda m: setattr(LOCAL, "other", 5.0),
    ),
    "variables of an object": (
        lambda m, h: h * vars(m.space).get("n", 1),
        lambda m: setattr(m.space, "n", 5),
    ),
    "dictionary of an object": (
        lambda m, h: h * m.space.__dict__.get("n", 1),
        lambda m: setattr(m.space, "n", 5),
    ),
    "submodule that becomes None": (_kept, lambda m: setattr(m, "drop", None)),
    "submodule that is tested": (
        lambda m, h: m.drop(h) if m.drop is not None else h,
        lambda m: setattr(m, "drop", None),
    ),
    "submodule by getattr": (
        lambda m, h: h if getattr(m, "drop", None) is None else m.drop(h),
        lambda m: setattr(m, "drop", None),
    ),
    "submodule that is deleted": (
        lambda m, h: m.drop(h) if hasattr(m, "drop") else h,
        lambda m: delattr(m, "drop"),
    ),
    "parameter that becomes None": (
        lambda m, h: h if m.vector is None else h * m.vector,
        lambda m: setattr(m, "vector", None),
    ),
    "buffer that becomes None": (
        lambda m, h: h if m.mask is None else h * m.mask,
        lambda m: setattr(m, "mask", None),
    ),
    "tensor that becomes None": (
        lambda m, h: h if m.plain is None else h * m.plain,
        lambda m: setattr(m, "plain", None),
    ),
    "weak dictionary by modules": (
        lambda m, h: h * m.weak_keys[m.a],
        lambda m: m.weak_keys.update({m.a: 5.0}),
    ),
}
SHARED = (Key, other_file.Config, other_file, other_file.counted, LOCAL)


@contextlib.contextmanager
def as_it_was(*kinds: type) -> Iterator[None]:
    """What is shared by all models, and classes, come back as they were."""
    before = [(owner, dict(vars(owner))) for owner in (*SHARED, *kinds)]
    registry, defaults = dict(other_file.REGISTRY), other_file.with_defaults.__defaults__
    context = contextvars.copy_context()
    VARIABLE.set(2.0)
    yield
    for owner, held in before:
        for name in vars(owner).keys() - held.keys():
            delattr(owner, name)
        for name, value in held.items():
            if vars(owner)[name] is not value:
                setattr(owner, name, value)
    other_file.REGISTRY.clear()
    other_file.REGISTRY.update(registry)
    other_file.with_defaults.__defaults__ = (defaults[0], [1.0])
    for variable in (VARIABLE, UNSET):
        variable.set(context.get(variable, 1.0))


@pytest.fixture(autouse=True)
def _as_it_was():
    with as_it_was():
        yield


def grown(model: nn.Module) -> fxgraft.Host:
    host = fxgraft.trace(model, (X,))
    manager = fxgraft.SeedManager(host, check_every=0)
    for slot in ("a", "b"):
        manager.germinate(slot, "low_rank")
    return host


def follows(kind: type[nn.Module], change: Callable[[Any], object]) -> fxgraft.Host:
    """Whether a host of a model of that class is the model, before and after a change."""
    model, plain = kind(), kind()
    host = grown(model)
    assert not host.opaque or host.opaque.keys() <= {"steps"}, host.opaque
    assert same_bits(host(X), plain(X))
    assert host.explain().fallbacks == 0
    change(plain)
    change(engine.trees(host)[0])
    assert same_bits(host(X), plain(X))
    assert host.explain().fallbacks == 1
    return host


@pytest.mark.parametrize("way", WAYS)
def test_what_is_read_by_any_way_is_a_condition(way: str):
    read, change = WAYS[way]
    follows(type("Made", (AnyRead,), {"between": lambda m, h: read(m, h), "__module__": __name__}), change)


@pytest.mark.parametrize("way", ["function replaced", "context variable", "local of a thread"])
def test_in_compiled_code_too(way: str, fresh_compiler: None):
    read, change = WAYS[way]
    kind = type("Made", (AnyRead,), {"between": lambda m, h: read(m, h), "__module__": __name__})
    model, plain = kind(), kind()
    host = grown(model)
    host.compile(backend="eager")
    assert same_bits(host(X), plain(X))
    change(plain)
    assert same_bits(host(X), plain(X))


class _Parent(AnyRead):
    def between(self, h: Tensor) -> Tensor:
        return h * 2


class _Methods(_Parent):
    def between(self, h: Tensor) -> Tensor:
        return self.free(self.by_class(super().between(h))) * self.number

    @staticmethod
    def free(h: Tensor) -> Tensor:
        return h + 1

    @classmethod
    def by_class(cls, h: Tensor) -> Tensor:
        return h * cls.factor

    @property
    def number(self) -> float:
        return 2.0

    def with_keyword(self, h: Tensor, *, by: dict[str, float] = {"by": 2.0}) -> Tensor:  # noqa: B006
        return h * by["by"]


REPLACED = {
    "a method": ("between", lambda m, h: h * 7),
    "a free method": ("free", staticmethod(lambda h: h + 7)),
    "a method of the class": ("by_class", classmethod(lambda cls, h: h * 7)),
    "a property": ("number", property(lambda m: 7.0)),
    "a variable of the class": ("factor", 7.0),
}


@pytest.mark.parametrize("what", REPLACED)
def test_what_is_replaced_in_a_class(what: str):
    name, other = REPLACED[what]
    follows(type("Made", (_Methods,), {}), lambda m: setattr(type(m), name, other))


def test_what_is_replaced_in_a_base_or_in_one_object(monkeypatch: pytest.MonkeyPatch):
    follows(_Methods, lambda m: monkeypatch.setattr(_Parent, "between", lambda m, h: h * 7))
    follows(_Methods, lambda m: setattr(m, "between", types.MethodType(lambda m, h: h * 7, m)))


def test_keyword_defaults():
    class Made(_Methods):
        def between(self, h: Tensor) -> Tensor:
            return self.with_keyword(h)

    held = _Methods.with_keyword.__kwdefaults__["by"]
    follows(Made, lambda m: held.update(by=held["by"] + 1))


@pytest.mark.parametrize("name", [None, "made_up"])
def test_modules_made_by_exec(name: str | None):
    scope: dict[str, Any] = {"AnyRead": AnyRead, "K": 2.0, "L": [1.0]} | ({"__name__": name} if name else {})
    exec("class M(AnyRead):\n    z = 2.0\n    def between(s, h): return h * K * L[0] * s.z", scope)
    follows(scope["M"], lambda m: scope.update(K=scope["K"] + 1))
    follows(scope["M"], lambda m: scope["L"].__setitem__(0, scope["L"][0] + 1))
    follows(scope["M"], lambda m: setattr(scope["M"], "z", scope["M"].z + 1))


@pytest.mark.parametrize("ask", [other_file.flipped, other_file.flipped_by_type])
def test_types_that_another_file_asks_for(ask: Callable[[Any], Any]):
    class Made(AnyRead):
        def between(self, h: Tensor) -> Tensor:
            return ask(h)

    model = Made()
    host = grown(model)
    assert "" not in host.opaque
    assert same_bits(host(X), model(X))


@pytest.mark.parametrize(
    "ask", [lambda m: m.weak().training, lambda m: m.holder.model.training, lambda m: m.holder.training]
)
def test_what_refers_to_the_model_refers_to_the_host(ask: Callable[[Any], bool]):
    class Made(AnyRead):
        def between(self, h: Tensor) -> Tensor:
            return h * 2 if ask(self) else h

    model, plain = Made(), Made()
    model.holder._held, plain.holder._held = model, plain
    model.holder.__dict__["model"], plain.holder.__dict__["model"] = model, plain
    host = grown(model)
    for mode in (True, False):
        assert same_bits(host.train(mode)(X), plain.train(mode)(X))
    assert model.training


# What cannot be a condition, and is refused by name


def test_all_globals_are_refused():
    class Made(AnyRead):
        def between(self, h: Tensor) -> Tensor:
            return h * globals()["KEY"].factor

    assert "globals" in grown(Made()).opaque[""]


def test_a_context_variable_that_is_set_is_refused_and_put_back():
    class Made(AnyRead):
        def between(self, h: Tensor) -> Tensor:
            VARIABLE.set(VARIABLE.get() + 1)
            return h * VARIABLE.get()

    model = Made()
    host = grown(model)
    assert VARIABLE.get() == 2.0
    assert "VARIABLE" in host.opaque[""]
    assert same_bits(host(X), (model.b(model.a(X) * 3.0)))


def test_a_context_variable_that_is_set_and_reset_is_no_effect():
    class Made(AnyRead):
        def between(self, h: Tensor) -> Tensor:
            token = VARIABLE.set(3.0)
            try:
                return h * VARIABLE.get()
            finally:
                VARIABLE.reset(token)

    model = Made()
    host = grown(model)
    assert "" not in host.opaque
    assert same_bits(host(X), model(X))
    assert host.explain().fallbacks == 0


def test_attributes_of_functions_that_are_set_are_refused_and_put_back():
    class Made(AnyRead):
        def between(self, h: Tensor) -> Tensor:
            Made.between.calls = getattr(Made.between, "calls", 0) + 1
            return h * Made.between.calls

    host = grown(Made())
    assert not hasattr(Made.between, "calls")
    assert "function" in host.opaque[""]


@dataclass
class Output:
    x: Tensor


def test_attributes_of_outputs_that_are_no_fields_are_refused():
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, h: Tensor) -> Output:
            output = Output(self.a(h))
            output.extra = h * 3
            return output

    class Made(AnyRead):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def between(self, h: Tensor) -> Tensor:
            output = self.inner(h)
            return output.x + output.extra

    model = Made()
    host = grown(model)
    assert "'extra'" in host.opaque["inner"]
    assert same_bits(host(X), model(X))


@functools.lru_cache
def table(size: int) -> Tensor:
    return torch.arange(size) * 1.0


def test_caches_keep_nothing_of_a_trace():
    class Made(AnyRead):
        @functools.lru_cache(maxsize=8)  # noqa: B019
        def own(self, size: int) -> Tensor:
            return torch.arange(size) * 1.0

        def between(self, h: Tensor) -> Tensor:
            return h + (table(h.shape[1]) if self.flag else self.own(h.shape[1]))

    for flag in (True, False):
        Made.flag = flag
        model, plain = Made(), Made()
        host = grown(model)
        for rows in (4, 3):
            x = torch.randn(rows, 6)
            assert same_bits(host(x), plain(x))
        assert type(table(8)) is Tensor
        assert Made.own.cache_info().currsize == 0 or type(model.own(8)) is Tensor
