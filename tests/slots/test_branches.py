"""Branches: a seed that reads an earlier slot, in the same region or in another, and is blended in later."""

from __future__ import annotations

import copy
import pickle
from itertools import combinations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxgraft
from fxgraft.capture.merge import merge
from fxgraft.errors import BlueprintError, SlotError
from fxgraft.testing import no_recompiles
from fxgraft_passes.graft import MODES
from fxgraft_passes.metadata import metadata
from tests.harness import (
    assert_same_bits,
    counting_backend,
    frozen,
    loss_of,
    observed_call,
    snapshot,
    traced_once,
    train,
)
from tests.lifecycle.test_cull_properties import bring_to, run_seeds, trained
from tests.lifecycle.test_isolation_properties import OPTIMIZERS
from tests.strategies import Plan, plans


class Bridge(nn.Module):
    """From a value of any shape to one of another; keeps what it read last."""

    def __init__(self, slot: fxgraft.Slot):
        super().__init__()
        self.shape = tuple(slot.shape)
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.bias = nn.Parameter(torch.tensor(0.25))
        self.read: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.read[:] = [x.detach().clone()]
        mean = x.contiguous().mean()  # in one order whatever the strides
        return (self.weight * mean + self.bias).expand(self.shape)


class Probe(nn.Module):
    """Keeps the values that come by, and adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.read[:] = [x.detach().clone()]
        return torch.zeros_like(x)


def drawn_branch(host: fxgraft.Host, data: st.DataObject) -> tuple[str, str]:
    """A pair of slots that a branch can join."""
    first, second = data.draw(st.tuples(st.integers(0, 60), st.integers(0, 60)))
    names = list(host.slots)
    source, slot = sorted((first % len(names), second % len(names)))
    assume(source != slot)
    try:
        host.site(names[slot], names[source])
    except SlotError as error:
        reason = str(error)
    else:
        return names[source], names[slot]
    assert "is called several times" in reason
    assume(False)
    raise AssertionError("not reached")


@given(plans(), st.data(), st.sampled_from(MODES), st.sampled_from(["trust", "shadow", "straight_through"]))
def test_an_isolated_branch_leaves_the_trajectory_alone(
    plan: Plan, data: st.DataObject, mode: str, objective: str
) -> None:
    batches = [plan.batch(i) for i in range(4)]
    plain = plan.build()
    expected = train(plain, OPTIMIZERS["adamw"](plain.parameters()), batches)
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    source, slot = drawn_branch(host, data)
    assume(len(host.slots[slot].shape) > 0 or mode != "channelwise")
    optimizer = OPTIMIZERS["adamw"](host.parameters())
    manager = fxgraft.SeedManager(host, optimizer)

    def grow(i: int) -> None:
        manager.step()
        if i == 0:
            manager.germinate(slot, Bridge, source=source, mode=mode, objective=objective)

    train(host, optimizer, batches, grow).assert_same(expected)
    assert not any(region.fallbacks for region in host.regions.values())


@given(plans(), st.data(), st.sampled_from(["TRAINING", "BLENDING", "HOLDING"]), st.booleans())
def test_cull_restores_everything(plan: Plan, data: st.DataObject, stage: str, neighbours: bool) -> None:
    host, optimizer, scheduler, manager = trained(plan)
    before = snapshot(host, plan.batch(9), [optimizer], [scheduler])
    source, slot = drawn_branch(host, data)
    if neighbours:
        manager.germinate(source, Probe(), name="z")
        manager.germinate(slot, Probe(), name="y")
    manager.germinate(slot, Bridge, source=source, name="branch")
    if neighbours:
        manager.germinate(source, Probe(), name="a")
    bring_to(manager, "branch", stage)
    run_seeds(host, plan)
    for name in data.draw(st.permutations(list(manager.seeds))):
        manager.cull(name)
    assert_same_bits(snapshot(host, plan.batch(9), [optimizer], [scheduler]), before, "the host")


@given(plans(), st.data(), st.sampled_from(["residual", "convex"]), st.booleans())
def test_a_blended_branch_is_one_written_by_hand(
    plan: Plan, data: st.DataObject, mode: str, training: bool
) -> None:
    """Its input is what a plain seed reads at the source, and what leaves the slot is the formula."""
    host = fxgraft.trace(plan.build(), (plan.batch(0),))
    source, slot = drawn_branch(host, data)
    assume(metadata(host.slots[slot].node)["observation"].calls == 1)  # or one call changes the next
    plain = fxgraft.trace(plan.build(), (plan.batch(0),))
    probes = {name: Probe() for name in (source, slot)}
    watching = fxgraft.SeedManager(plain)
    for name, probe in probes.items():
        watching.germinate(name, probe)
    manager = fxgraft.SeedManager(host)
    manager.germinate(slot, Bridge, source=source, mode=mode, name="m")
    leaving = Probe()
    manager.germinate(slot, leaving, name="z")  # the last of the chain: reads what leaves the branch
    bring_to(manager, "m", "BLENDING")
    alpha = manager.seeds["m"].alpha
    for each in (host, plain):
        each.train(training)
        observed_call(each, plan.batch(1))
    bridge, h = manager.seeds["m"].module, probes[slot].read[0]
    assert_same_bits(bridge.read, probes[source].read, "what the branch reads")
    with torch.no_grad():
        s = bridge(probes[source].read[0])
    expected = h + torch.tensor(alpha) * s if mode == "residual" else torch.lerp(h, s, alpha)
    assert_same_bits(leaving.read, [expected.to(h.dtype)], "what leaves the slot")


@given(plans(), st.data())
def test_a_fossil_is_the_branch_with_all_its_gradients(plan: Plan, data: st.DataObject) -> None:
    """Against the same branch germinated attached: no gradient is cut off.

    In float64: in front of a batch norm a gradient can be nothing but rounding.
    """
    hosts = [fxgraft.trace(plan.build().double(), (plan.batch(0, torch.float64),)) for _ in range(2)]
    source, slot = drawn_branch(hosts[0], data)
    for host, isolated in zip(hosts, (True, False), strict=True):
        manager = fxgraft.SeedManager(host)
        manager.germinate(slot, Bridge, source=source, isolated=isolated, name="a")
        manager.blend("a", steps=1)
        manager.step()
        if isolated:
            manager.fossilize("a")
    fossil, attached = (observed_call(host, plan.batch(1, torch.float64)) for host in hosts)
    torch.testing.assert_close(fossil["output"], attached["output"])
    torch.testing.assert_close(fossil["gradients"], attached["gradients"])


class Part(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, outputs)
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x))


class Model(nn.Module):
    """Three regions below the root, of different widths; the second is a region around another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Part(4, 6)
        self.middle = nn.Sequential(Part(6, 5), nn.Linear(5, 5))
        self.last = Part(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


X = torch.linspace(-1, 1, 12).view(3, 4)
SOURCE, SLOT = "first.fc", "last.act"


@traced_once
def traced() -> fxgraft.Host:
    return fxgraft.trace(Model(), (X,))


def linear(slot: fxgraft.Slot) -> nn.Module:
    return nn.Linear(slot.input.shape[-1], slot.shape[-1])


def grown(model: nn.Module | None = None, **options) -> tuple[fxgraft.Host, fxgraft.SeedManager]:
    torch.manual_seed(0)
    host = fxgraft.trace(model, (X,)) if model else traced()
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), 0.1))
    manager.germinate(SLOT, linear, source=SOURCE, name="a", **options)
    return host, manager


def by_hand(host: fxgraft.Host, alpha: float) -> Tensor:
    early = host.first.fc(X)
    h = nn.Sequential(host.first.act, host.middle, host.last)(early)
    return h + alpha * host.graft("a").module(early.detach())


def test_regions_run_as_one_graph_while_the_branch_lives():
    host, manager = grown()
    assert host.structure.merged == {"": ("first", "last")}
    assert "self.middle(" in host.regions[""].code
    assert "self.first.fc(" in host.regions[""].code
    manager.blend("a", steps=1)
    manager.step()
    assert_same_bits(host(X), by_hand(host, 1.0), "the branch")
    manager.cull("a")
    assert "self.first(" in host.regions[""].code
    assert not any("forward" in module.__dict__ for module in host.modules())


def test_other_seeds_in_the_merged_regions_stay_where_they_are():
    host, manager = grown()
    manager.germinate("first.fc", Probe(), name="b")
    manager.germinate("first", Probe(), name="c")
    manager.germinate("middle.0.fc", linear, source="first", name="d")
    assert host.structure.merged == {"": ("first", "last", "middle", "middle.0")}
    assert_same_bits(host(X), by_hand(host, 0.0), "isolated")
    manager.cull("a")
    assert host.structure.merged == {"": ("middle", "middle.0")}
    manager.cull("d")
    assert host.structure.merged == {}
    assert {n for n, r in host.regions.items() if r.graph is not r.base} == {"", "first"}
    host(X)
    assert manager.seeds["b"].module.read[0].shape == (3, 6)


@pytest.mark.parametrize(
    ("source", "slot", "merged"),
    [
        ("first.fc", "first", ("", "first")),
        ("middle.0.fc", "middle.1", ("middle", "middle.0")),
        ("middle.0.fc", "middle", ("", "middle", "middle.0")),
        ("middle.0", "last", ("", "middle")),
        ("middle.0.fc", "middle.0.act", ()),
    ],
)
def test_what_is_merged_is_what_lies_between(source, slot, merged):
    host = traced()
    expected = host(X)
    site = host.site(slot, source)
    assert (site.name, site.source.name, site.input.shape) == (slot, source, host.slots[source].shape)
    assert site.merged == merged
    manager = fxgraft.SeedManager(host)
    manager.germinate(slot, linear, source=source)
    assert_same_bits(host(X), expected, "isolated")


INSIDE, AROUND = ("middle.0.fc", "middle.1"), ("middle.0.fc", "last.act")


@pytest.mark.parametrize("order", [(INSIDE, AROUND), (AROUND, INSIDE)])
def test_the_outermost_region_takes_in_what_others_merge(order):
    host = traced()
    expected, manager = host(X), fxgraft.SeedManager(host)
    for source, slot in order:
        manager.germinate(slot, linear, source=source)
    assert host.structure.merged == {"": ("last", "middle", "middle.0")}
    assert_same_bits(host(X), expected, "isolated")


def test_a_structure_as_seen_from_inside():
    host = fxgraft.trace(nn.Sequential(Model(), nn.Identity()), (X,))
    fxgraft.SeedManager(host).germinate(f"0.{SLOT}", linear, source=f"0.{SOURCE}")
    alone, _ = grown()
    assert host.structure.merged == {"0": ("0.first", "0.last")}
    inside = host.structure.within("0")
    assert inside.merged == {"": ("first", "last")}
    assert inside.wirings("") == alone.structure.wirings("")


def test_a_source_that_is_written_into_is_read_before():
    class Written(Model):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first.fc(x)
            return self.last(self.middle(y.relu_()))

    host = fxgraft.trace(Written(), (X,))
    expected, manager = observed_call(host, X), fxgraft.SeedManager(host)
    probe = Probe()
    manager.germinate("middle", nn.Sequential(probe, nn.Linear(6, 5)), source="first.fc")
    assert_same_bits(observed_call(host, X), expected, "isolated")
    assert_same_bits(probe.read, [host.first.fc(X).detach()], "what the branch reads")


def test_the_slot_as_its_own_source_is_a_plain_seed():
    host = traced()
    seed = fxgraft.SeedManager(host).germinate(SLOT, "mlp", source=SLOT)
    assert seed.source is None
    assert host.structure.merged == {}


def test_a_factory_is_told_both_shapes():
    told = []

    def factory(slot: fxgraft.Slot) -> nn.Module:
        told.append((slot.shape, slot.source.shape, slot.input is slot.source))
        return linear(slot)

    host = traced()
    fxgraft.SeedManager(host).germinate(SLOT, factory, source=SOURCE)
    assert told == [((3, 3), (3, 6), True)]


# What cannot be, with the reason


class Twice(Model):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x).tanh() + self.first(x)))


class Branching(Model):
    """The root has no graph."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() < 9 else x


class Hooked(Model):
    def __init__(self) -> None:
        super().__init__()
        self.first.register_forward_hook(lambda module, args, out: out * 2)


class Constant(nn.Module):
    """A size, an input of the parent's graph, is a constant in that of the child."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Part(4, 6)
        self.last = self.Last()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x), x.shape[0])

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)
            self.act = nn.Tanh()

        def forward(self, x: Tensor, n: int) -> Tensor:
            return self.act(self.fc(x) / n)


@pytest.mark.parametrize(
    ("model", "source", "slot", "reason"),
    [
        (Model, SLOT, SOURCE, "expected a slot that is computed earlier; it comes later"),
        (Model, "frist.fc", SLOT, "no slot 'frist.fc'; did you mean 'first.fc'"),
        (Model, SOURCE, "lst", "no slot 'lst'"),
        (Twice, SOURCE, SLOT, "'first' is called several times"),
        (Branching, SOURCE, SLOT, "'(first|last)' is called by code that has no graph"),
        (Hooked, SOURCE, SLOT, "'first' has hooks"),
        (Constant, SOURCE, SLOT, "'last' is given values that are constants in its graph"),
    ],
)
def test_a_branch_that_cannot_be_is_refused_with_the_reason(model, source, slot, reason):
    host = fxgraft.trace(model(), (X,))
    manager = fxgraft.SeedManager(host)
    before = snapshot(host, X)
    with pytest.raises(SlotError, match=reason):
        manager.germinate(slot, linear, source=source)
    assert not manager.seeds
    assert_same_bits(snapshot(host, X), before, "the host")
    reply = manager.handle({"type": "SEED", "slot": slot, "blueprint": "mlp", "source": source})
    assert reply.refused
    assert "SlotError" in reply.reason


def test_a_branch_inside_a_region_that_is_called_twice():
    """Both calls have it, each with its own value."""
    torch.manual_seed(0)
    host = fxgraft.trace(Twice(), (X,))
    manager = fxgraft.SeedManager(host)
    manager.germinate("first.act", nn.Linear(6, 6), source="first.fc", name="a")
    manager.blend("a", steps=1)
    manager.step()

    def first(x: Tensor) -> Tensor:
        early = host.first.fc(x)
        return host.first.act(early) + host.graft("a").module(early)

    assert_same_bits(host(X), host.last(host.middle(first(X).tanh() + first(X))), "both calls")


@pytest.mark.parametrize("blueprint", [nn.Linear(5, 3), "norm", "identity", nn.Linear(6, 4)])
def test_a_seed_that_does_not_fit_is_refused_with_both_shapes(blueprint):
    host = traced()
    manager = fxgraft.SeedManager(host)
    before = snapshot(host, X)
    with pytest.raises(
        BlueprintError, match=r"at slot 'last.act', source 'first.fc': expected .*\(3, [36]\)"
    ):
        manager.germinate(SLOT, blueprint, source=SOURCE)
    assert_same_bits(snapshot(host, X), before, "the host")


@pytest.mark.parametrize("blueprint", ["mlp", "low_rank"])
@pytest.mark.parametrize("mode", MODES)
def test_blueprints_that_project_join_values_of_different_shapes(blueprint, mode):
    host = traced()
    expected = host(X)
    manager = fxgraft.SeedManager(host)
    seed = manager.germinate(SLOT, blueprint, source=SOURCE, mode=mode)
    loss_of(host(X)).backward()
    assert any(p.grad.any() for p in seed.module.parameters() if p.grad is not None)
    assert_same_bits(host(X), expected, "isolated")


WATCHERS = {
    "hook": lambda module, saw: module.register_forward_hook(lambda *a: saw.append("hook")),
    "pre-hook": lambda module, saw: module.register_forward_pre_hook(lambda *a: saw.append("pre-hook")),
    "backward hook": lambda module, saw: module.register_full_backward_hook(
        lambda *a: saw.append("backward hook")
    ),
    "forward": lambda module, saw: setattr(
        module, "forward", lambda x: saw.append("forward") or type(module).forward(module, x)
    ),
}


@pytest.mark.parametrize("what", WATCHERS)
def test_a_hook_that_comes_later_is_not_passed_over(what):
    """A module that is merged is not called: with a hook on it the host runs as the model has it."""
    host, manager = grown()
    manager.blend("a", steps=1)
    manager.step()
    with_branch, without, saw = by_hand(host, 1.0), by_hand(host, 0.0), []
    handle = WATCHERS[what](host.last, saw)
    out = host(X)
    out.sum().backward()
    assert_same_bits(out, without, "without the branch")
    assert saw == [what]
    assert host.regions[""].fallbacks == 1
    host.last.__dict__.pop("forward", None) if handle is None else handle.remove()
    assert_same_bits(host(X), with_branch, "the branch")
    assert host.regions[""].fallbacks == 1


class Sized(Part):
    """Takes another path for a single row."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y * 3 if x.shape[0] == 1 else self.act(y)


class SizedFirst(Model):
    def __init__(self) -> None:
        super().__init__()
        self.first = Sized(4, 6)


def test_sizes_for_which_a_merged_module_takes_another_path_fall_back():
    host, manager = grown(SizedFirst())
    assert host.structure.merged
    manager.blend("a", steps=1)
    manager.step()
    assert_same_bits(host(X), by_hand(host, 1.0), "the branch")
    assert host.regions[""].fallbacks == 0
    row = X[:1]
    expected = host.last(host.middle(host.first.fc(row) * 3))
    assert_same_bits(host(row), expected, "as the model has it")
    assert host.regions[""].fallbacks == 1


# Everything else a seed can do


@pytest.mark.parametrize("made", [copy.deepcopy, lambda host: pickle.loads(pickle.dumps(host))])
@pytest.mark.parametrize("stage", ["TRAINING", "BLENDING"])
def test_a_copy_has_the_branch(made, stage):
    host, manager = grown()
    bring_to(manager, "a", stage)
    twin = made(host)
    assert twin.structure.merged == host.structure.merged
    assert twin.regions[""].code == host.regions[""].code
    assert_same_bits(observed_call(twin, X), observed_call(host, X), "call")
    manager.cull("a")
    assert twin.structure.merged
    twin(X)


@pytest.mark.parametrize("stage", ["TRAINING", "BLENDING", "HOLDING", "FOSSILIZED"])
def test_a_saved_run_goes_on_bit_for_bit(stage, tmp_path):
    host, manager = grown()
    train(host, manager._optimizers[0], [X], lambda i: manager.step())
    bring_to(manager, "a", "HOLDING" if stage == "FOSSILIZED" else stage)
    if stage == "FOSSILIZED":
        manager.fossilize("a")
    manager.save(tmp_path / "run")
    again = traced()
    optimizer = torch.optim.SGD(again.parameters(), 0.1)
    loaded = fxgraft.SeedManager.load(tmp_path / "run", again, optimizer, blueprints={"a": linear})
    assert loaded.seeds["a"].source == SOURCE
    runs = [
        train(h, o, [X, X + 1], lambda i, m=m: m.step())
        for h, o, m in ((host, manager._optimizers[0], manager), (again, optimizer, loaded))
    ]
    runs[1].assert_same(runs[0])
    assert_same_bits(frozen(dict(again.state_dict())), frozen(dict(host.state_dict())), "state")


def test_a_command_germinates_a_branch():
    host = traced()
    manager = fxgraft.SeedManager(host)
    command = {"type": "SEED", "slot": "middle", "blueprint": "mlp", "source": "middle.0.act", "name": "a"}
    assert manager.handle(command)
    assert manager.seeds["a"].source == "middle.0.act"


def test_an_average_follows_a_branch():
    host = traced()
    averaged = torch.optim.swa_utils.AveragedModel(host)
    fxgraft.averaging.follow(host, averaged)
    manager = fxgraft.SeedManager(host)
    manager.germinate(SLOT, linear, source=SOURCE, name="a")
    assert averaged.module.structure.merged == host.structure.merged
    manager.cull("a")
    assert averaged.module.structure.merged == {}


def test_the_monitor_finds_nothing_and_a_leak():
    strict = fxgraft.SeedManager(traced(), strict=True, check_every=1)
    strict.germinate("middle", linear, source=SOURCE, name="right")
    for stage in ("TRAINING", "BLENDING", "HOLDING"):
        if stage != "TRAINING":
            strict.blend("right", steps=2) if stage == "BLENDING" else strict.step()
        loss_of(strict.host(X)).backward()
        strict.step()
    assert (strict.monitor.checks > 2, strict.monitor.violations) == (True, 0)

    class Leaky(nn.Linear):
        def forward(self, value: Tensor) -> Tensor:
            strict.host.first.fc.weight.register_hook(lambda grad: grad * 2)
            return super().forward(value)

    strict.germinate(SLOT, lambda slot: Leaky(6, 3), source=SOURCE)
    loss_of(strict.host(X)).backward()
    with pytest.raises(fxgraft.errors.IsolationError, match=r"first\.fc\.weight"):
        strict.step()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("granularity", ["host", "region"])
def test_compiled_alpha_and_known_structures_recompile_nothing(granularity):
    torch.manual_seed(0)
    model = nn.Sequential(*(Part(4, 4) for _ in range(4)))
    host = fxgraft.trace(model, (X,))
    host.compile(backend=counting_backend("aot_eager"), granularity=granularity)
    optimizer = torch.optim.SGD(host.parameters(), 0.1)
    manager = fxgraft.SeedManager(host, optimizer, helper="off")

    def steps(count: int) -> None:
        train(host, optimizer, [X] * count, lambda i: manager.step())

    steps(2)
    expected = host(X)
    manager.germinate("1", "mlp", name="plain")
    manager.germinate("2.act", nn.Linear(4, 4), source="1.fc", name="a")
    assert_same_bits(host(X), expected, "isolated")
    with no_recompiles():
        steps(1)
        manager.blend("a", steps=2)
        steps(3)
        manager.cull("a")
        steps(1)
        manager.germinate("2.act", nn.Linear(4, 4), source="1.fc", name="a")
        steps(1)
    early = model[1].fc(model[0](X))
    manager.blend("a", steps=1)
    manager.step()
    h = model[2](model[1].act(early)) + manager.seeds["a"].module(early)
    torch.testing.assert_close(host(X), model[3](h))


def test_merging_does_not_change_the_graphs_that_it_reads():
    host = traced()
    before = {name: str(region.base) for name, region in host.regions.items()}
    graph, names = merge(host.regions[""], [host.regions["first"], host.regions["last"]])
    graph.lint()
    assert {name: str(region.base) for name, region in host.regions.items()} == before
    assert set(names) == {"x", "first", "first:fc", "first:act", "middle", "last", "last:fc", "last:act"}


def test_every_pair_of_slots_of_a_nested_model_is_a_branch_or_says_why():
    host = traced()
    expected = host(X)
    for source, slot in combinations(host.slots, 2):
        manager = fxgraft.SeedManager(host)
        manager.germinate(slot, linear, source=source)
        assert_same_bits(host(X), expected, f"{source} -> {slot}")
        manager.cull_all()
