"""Places that are named by what they are to another: edges, inputs, elements, all calls of a module."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft.errors import SlotError
from fxgraft.testing import no_recompiles
from tests.harness import assert_same_bits, observed_call, snapshot, traced_once, train
from tests.lifecycle.test_cull_properties import run_seeds, trained
from tests.lifecycle.test_isolation_properties import OPTIMIZERS
from tests.seed_modules import FITTING, Scale
from tests.strategies import Plan, plans

X = torch.linspace(-1, 1, 12).view(3, 4)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + x


class Model(nn.Module):
    """One value with two readers, a module called twice, a tuple, a write in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(4, 4)
        self.inner = Inner()
        self.lstm = nn.LSTM(4, 4)
        self.written = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x).tanh()
        z = self.left(y) + self.right(y)
        z = self.left(self.inner(z))
        out, (hidden, _) = self.lstm(z)
        w = self.written(out + hidden[-1])
        v = w.relu_()
        size = v.argmax(-1)
        return v + w.mean() + size.sum() * 0 + z.view(-1)[:4]


@traced_once
def traced() -> fxgraft.Host:
    return fxgraft.trace(Model(), (X,))


def grown(place: str, seed: nn.Module | None = None, alpha: float | None = 1.0):
    torch.manual_seed(0)
    host = traced()
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    manager.germinate(place, seed or Scale(), name="a")
    if alpha is not None:
        manager.blend("a", to=alpha, steps=1)
        manager.step()
    return host, manager


def add(x: Tensor) -> Tensor:
    """What a blended `Scale` makes of a value."""
    return x + (0.5 * x + 0.25)


def same(x: Tensor) -> Tensor:
    return x


def run(host: fxgraft.Host, left=same, right=same, inner=same, inside=same, lstm=same, lefts=same) -> Tensor:
    """`Model.forward` with something done to a value at one place."""
    y = host.fc(X).tanh()
    z = lefts(host.left(left(y))) + host.right(right(y))
    z = inner(z)
    z = lefts(host.left(host.inner.fc(inside(z)) + z))
    out, (hidden, _) = host.lstm(z)
    w = host.written(lstm(out) + hidden[-1])
    w = w.relu()
    return w + w.mean() + 0 + z.view(-1)[:4]


PLACES = {
    "tanh->left": {"left": add},
    "tanh -> right": {"right": add},
    "->right": {"right": add},
    "->inner": {"inner": add},
    "add->inner": {"inner": add},
    "->inner.fc": {"inside": add},
    "lstm[0]": {"lstm": add},
    "left@*": {"lefts": add},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_seed_is_felt_there_and_nowhere_else(place):
    host, manager = grown(place, alpha=None)
    plain = Model()
    plain.load_state_dict({k: v for k, v in host.state_dict().items() if not k.startswith("_seeds")})
    assert_same_bits(observed_call(host, X), observed_call(plain, X), "isolated")
    manager.blend("a", steps=1)
    manager.step()
    assert_same_bits(host(X), run(host, **PLACES[place]), "blended")
    loss = host(X).sum()
    parameters = [p for n, p in host.named_parameters() if not n.startswith("_seeds")]
    got = torch.autograd.grad(loss, parameters)
    cut = {name: lambda x: x + (0.5 * x + 0.25).detach() for name in PLACES[place]}
    expected = torch.autograd.grad(run(host, **cut).sum(), parameters)
    torch.testing.assert_close(got, expected)
    manager.fossilize("a")
    assert_same_bits(host(X), run(host, **PLACES[place]), "fossilized")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("tanh->fc", "'fc' does not read 'tanh'; it is read by 'left', 'right'"),
        ("->add", "it reads 'left->add', 'right->add'"),
        ("->nowhere", "there is no 'nowhere'"),
        ("nowhere->fc", "there is no 'nowhere'"),
        ("written->relu_", "the value is changed in place later, for all its readers"),
        ("argmax->sum", "the value is torch.int64"),
        ("lstm[1]", "the element is a tuple"),
        ("lstm[5]", "the element is not read"),
        ("nowhere[0]", "there is no 'nowhere'"),
        ("tanh@*", "expected a call of a module; got tanh"),
        ("nowhere@*", "there is no 'nowhere'"),
    ],
)
def test_what_is_no_place_is_refused_with_the_reason(place, reason):
    host = traced()
    before = snapshot(host, X)
    with pytest.raises(SlotError, match=reason):
        fxgraft.SeedManager(host).germinate(place, "mlp")
    assert_same_bits(snapshot(host, X), before, "the host")


class Rereading(nn.Module):
    """Reads its input several times."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * x.tanh() + x.exp() * 0.3


class Passing(nn.Module):
    """Reads its input once, as the very tensor, and that several times."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32)
        return x.sigmoid() * x


class Nested(nn.Module):
    """Whether its caller goes on to read its input cannot be seen from here."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Rereading()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Once(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y * y


READERS = {
    "fc": nn.Linear(4, 4),
    "norm": nn.LayerNorm(4),
    "drop": nn.Dropout(0.5),
    "same": nn.Identity(),
    "rereading": Rereading(),
    "passing": Passing(),
    "once": Once(),
    "nested": Nested(),
    "deep": nn.Sequential(nn.Identity(), Rereading()),
    "sin": torch.sin,
    "shrink": F.tanhshrink,
    "unit": lambda x: F.normalize(x, dim=-1),
    "double": lambda x: x * x,
    "cat": lambda x: torch.cat([x, x], dim=-1)[..., 2:6],
    "view": lambda x: x.view(-1).cos().view(x.shape),
    "cast": lambda x: x.to(torch.float32).exp(),
}


class Readers(nn.Module):
    """A value, and some readers of it, one after the other."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.named = nn.ModuleDict({n: copy.deepcopy(READERS[n]) for n in names if n in MODULES})
        self.names = names

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).tanh()
        z = torch.ones(())
        for name in self.names:
            z = z * 0.5 + (self.named[name] if name in self.named else READERS[name])(y)
        return z


MODULES = [name for name, reader in READERS.items() if isinstance(reader, nn.Module)]


def edges_of(host: fxgraft.Host, value: str) -> list[str]:
    readers = host.slots[value].node.users
    names = {node.meta.get("qualified_name") for node in readers if node.op != "output"}
    return [f"{value}->{name}" for name in sorted(names)]


@given(st.lists(st.sampled_from(sorted(READERS)), min_size=2, max_size=5), st.booleans())
def test_a_seed_on_an_edge_leaves_the_order_in_which_gradients_are_summed(
    names: list[str], train_mode: bool
) -> None:
    """It is no slot where it could not."""
    torch.manual_seed(0)
    x, weights = torch.randn(16, 4), torch.randn(16, 4)
    plain = Readers(names).train(train_mode)

    def gradients(module: nn.Module) -> list[Tensor]:
        torch.manual_seed(1)
        (module(x) * weights).sum().backward()
        return [p.grad for n, p in module.named_parameters() if not n.startswith("_seeds")]

    expected = gradients(copy.deepcopy(plain))
    table = fxgraft.trace(copy.deepcopy(plain), (x,))
    for edge in edges_of(table, "tanh") if "tanh" in table.slots else ():
        host = fxgraft.trace(copy.deepcopy(plain), (x,))
        try:
            fxgraft.SeedManager(host).germinate(edge, nn.Linear(4, 4))
        except SlotError as error:
            reason = str(error)
        else:
            assert_same_bits(gradients(host), expected, edge)
            continue
        assert "its gradients would be summed up in another order" in reason


@pytest.mark.parametrize(
    ("names", "reader", "reason"),
    [
        (["rereading", "sin"], "named.rereading", "'named.rereading' may use .*, and sin reads it later"),
        (["shrink", "fc"], "tanhshrink", "'tanhshrink' may use .*, and named_fc reads it later"),
        (["double", "sin"], "mul_1", "and sin reads it later"),
        (["passing", "sin"], "named.passing", "and sin reads it later"),
        (["deep", "sin"], "named.deep", "and sin reads it later"),
        (["same", "rereading"], "named.rereading", "and whoever reads named_same reads it later"),
        (["sin", "rereading"], "named.rereading", None),
        (["fc", "sin"], "named.fc", None),
        (["once", "sin"], "named.once", None),
        (["norm", "drop", "sin"], "named.norm", None),
        (["sin", "double"], "sin", None),
    ],
)
def test_which_edges_are_no_slots_for_that(names, reader, reason):
    host = fxgraft.trace(Readers(names), (torch.randn(16, 4),))
    if reason is None:
        assert host.slot(f"tanh->{reader}").reader is not None
        return
    with pytest.raises(SlotError, match=reason):
        host.slot(f"tanh->{reader}")


def test_an_input_may_be_read_by_the_caller_later():
    host = fxgraft.trace(Readers(["nested", "sin"]), (torch.randn(16, 4),))
    with pytest.raises(SlotError, match="the caller, perhaps, reads it later"):
        host.slot("->named.nested.inner")
    assert host.slot("->named.nested.inner.fc").reader is not None


def test_hooks_of_a_reader_do_not_run_while_it_is_looked_at():
    host = fxgraft.trace(Readers(["fc", "sin"]), (torch.randn(16, 4),))
    seen = []
    host.named.fc.register_forward_hook(lambda module, args, out: seen.append(out))
    with pytest.raises(SlotError, match="sin reads it later"):
        host.slot("tanh->named.fc")
    assert not seen


def test_calls_of_different_shapes_or_regions_are_not_one_place():
    class Shapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + self.fc(x[:1])

    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner.fc(self.inner(x))

    for model, place, reason in (
        (Shapes(), "fc@*", r"expected calls with one shape and dtype; got \(3, 4\), \(1, 4\)"),
        (Regions(), "inner.fc@*", r"its calls are in several regions, \['', 'inner'\]"),
    ):
        with pytest.raises(SlotError, match=reason):
            fxgraft.trace(model, (X,)).slot(place)


def test_one_call_whose_value_is_written_into_is_enough_to_copy_all():
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x)).relu_()

    host = fxgraft.trace(Written(), (X,))
    assert (host.slot("fc").copy, host.slot("fc@*").copy) == (False, True)


def test_the_input_of_a_module_is_before_its_value():
    host = traced()
    assert host.site("right", "->right").source.name == "->right"
    with pytest.raises(SlotError, match="it comes later"):
        host.site("->right", "right")


def test_names_that_exist_are_as_they_were():
    host = traced()
    assert host.slot("lstm[0]") is host.slots["getitem"]
    assert not any("->" in name or "@" in name for name in host.slots)
    assert fxgraft.SeedManager(host).germinate("lstm[0]", "mlp").slot == "getitem"


def test_seeds_at_a_value_and_at_its_edges_compose():
    """Whoever comes first: what is behind the value is before what is on the edge."""
    codes = set()
    for order in (("tanh", "tanh->left"), ("tanh->left", "tanh")):
        torch.manual_seed(0)
        host = traced()
        manager = fxgraft.SeedManager(host)
        for place in order:
            manager.germinate(place, Scale(0.5 + len(place) / 64), name="z" if place == "tanh" else "a")
            manager.blend(manager.seeds["z" if place == "tanh" else "a"], steps=1)
        manager.step()
        behind, edge = (host.graft(name).module for name in "za")
        y = host.fc(X).tanh()
        y = y + behind(y)
        z = host.left(y + edge(y)) + host.right(y)
        assert_same_bits(host(X), _rest(host, z), "output")
        codes.add(host.regions[""].code)
    assert len(codes) == 1


def _rest(host: fxgraft.Host, z: Tensor) -> Tensor:
    z = host.left(host.inner(z))
    out, (hidden, _) = host.lstm(z)
    w = host.written(out + hidden[-1]).relu()
    return w + w.mean() + 0 + z.view(-1)[:4]


def test_an_edge_is_a_source_and_an_end_of_branches():
    host, manager = grown("tanh->left")
    manager.germinate("->inner", nn.Linear(4, 4), source="tanh->left", name="b")
    manager.blend("b", steps=1)
    manager.step()
    y = host.fc(X).tanh()
    y_left = y + host.graft("a").module(y)
    z = host.left(y_left) + host.right(y)
    assert_same_bits(host(X), _rest(host, z + host.graft("b").module(y_left)), "output")
    for slot, source in (("tanh->left", "left"), ("left@*", "fc"), ("inner", "left@*")):
        with pytest.raises(SlotError, match="expected"):
            host.site(slot, source)


def test_an_edge_into_a_module_keeps_it_from_being_merged():
    host, manager = grown("->inner")
    seed, before = nn.Linear(4, 4), snapshot(host, X)
    with pytest.raises(SlotError, match="edge add -> inner"):
        manager.germinate("inner.fc", seed, source="fc")
    assert_same_bits(snapshot(host, X), before, "the host")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("made", [copy.deepcopy, lambda host: pickle.loads(pickle.dumps(host))])
def test_copies(place, made):
    host, _ = grown(place)
    twin = made(host)
    assert twin.regions[""].code == host.regions[""].code
    assert_same_bits(twin(X), host(X), "output")


@pytest.mark.parametrize("place", PLACES)
def test_a_saved_run_goes_on(place, tmp_path):
    host, manager = grown(place)
    manager.save(tmp_path / "run")
    again = traced()
    optimizer = torch.optim.SGD(again.parameters(), 0.1)
    loaded = fxgraft.SeedManager.load(tmp_path / "run", again, optimizer, blueprints={"a": Scale()})
    ours = train(host, manager._optimizers[0], [X, X], lambda i: manager.step())
    theirs = train(again, optimizer, [X, X], lambda i: loaded.step())
    theirs.assert_same(ours)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled():
    class Plain(nn.Module):  # dynamo does not take LSTMs
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.left = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x).tanh()
            return self.left(self.left(y) + y)

    torch.manual_seed(0)
    host = fxgraft.trace(Plain(), (X,))
    host.compile(backend="aot_eager")
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    manager = fxgraft.SeedManager(host, optimizer, helper="off")
    train(host, optimizer, [X])
    manager.germinate("tanh->add", Scale(), name="a")
    manager.germinate("left@*", Scale(), name="b")
    with no_recompiles():
        manager.blend("a", steps=2)
        manager.blend("b", steps=2)
        train(host, optimizer, [X] * 2, lambda i: manager.step())
    a, b = (host.graft(name).module for name in "ab")
    y = host.fc(X).tanh()
    once = host.left(y)
    twice = host.left(once + b(once) + (y + a(y)))
    torch.testing.assert_close(host(X), twice + b(twice))


def drawn_place(host: fxgraft.Host, data: st.DataObject) -> str:
    """An edge, an input or all calls of a module, anywhere in a random host."""
    places = []
    for slot in host.slots.values():
        places += [f"->{slot.name}", f"{slot.name}@*"]
        reads = [node.meta.get("qualified_name") for node in slot.node.users]
        places += [f"{slot.name}->{reader}" for reader in reads if reader]
    place = data.draw(st.sampled_from(places))
    try:
        host.slot(place)
    except SlotError:
        assume(False)
    return place


@given(plans(), st.data(), st.sampled_from(sorted(FITTING)), st.sampled_from(["residual", "convex"]))
def test_isolated_seeds_anywhere_leave_the_trajectory_alone(
    plan: Plan, data: st.DataObject, seed: str, mode: str
) -> None:
    batches = [plan.batch(i) for i in range(4)]
    plain = plan.build()
    expected = train(plain, OPTIMIZERS["adamw"](plain.parameters()), batches)
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    places = [drawn_place(host, data) for _ in range(2)]
    optimizer = OPTIMIZERS["adamw"](host.parameters())
    manager = fxgraft.SeedManager(host, optimizer)

    def grow(i: int) -> None:
        manager.step()
        for place in places if i == 0 else ():
            manager.germinate(place, FITTING[seed], mode=mode)

    train(host, optimizer, batches, grow).assert_same(expected)


@given(plans(), st.data(), st.booleans())
def test_cull_restores_everything(plan: Plan, data: st.DataObject, blended: bool) -> None:
    host, optimizer, scheduler, manager = trained(plan)
    before = snapshot(host, plan.batch(9), [optimizer], [scheduler])
    for name in "ab":
        manager.germinate(drawn_place(host, data), Scale(), name=name)
        if blended:
            manager.blend(name, steps=1)
    manager.step()
    run_seeds(host, plan)
    manager.cull_all()
    assert_same_bits(snapshot(host, plan.batch(9), [optimizer], [scheduler]), before, "the host")
