"""`manager.fuse` with other changes in one act, and in the background."""

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import Stage
from fxgraft.errors import ChannelError, SlotError, StageError
from fxgraft.telemetry import Memory
from tests.harness import assert_same_bits, snapshot
from tests.resizing.models import Mlp
from tests.resizing.test_acts import settle
from tests.resizing.test_fusing import BATCH, WithPart, grown
from tests.resizing.test_widening import outputs, steps


class Deep(nn.Module):
    """With a stack beside the part that branches are for."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Step() for _ in range(2))
        self.net = WithPart(Mlp())

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.net(x)


class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


def with_live_branch(model=None, **options):
    """A branch that has trained, and is not yet a fossil."""
    host = fxgraft.trace(model or WithPart(Mlp()), (BATCH,))
    optimizer = torch.optim.AdamW(host.parameters(), lr=1e-2)
    manager = fxgraft.SeedManager(host, optimizer, check_every=0, **options)
    inner, part = ("net.inner", "net.part") if model else ("inner", "part")
    seed = manager.germinate(part, Mlp(), source=inner, name="a", isolated=False)
    steps(host, optimizer, manager, BATCH, 2)
    manager.blend(seed, steps=0)
    steps(host, optimizer, manager, BATCH, 1)
    return host, optimizer, manager


def test_made_permanent_and_fused_deepened_and_widened_in_one_act():
    sink = Memory()
    host, optimizer, manager = with_live_branch(Deep(), sinks=[sink])
    before = outputs(host, BATCH)
    with manager.together():
        manager.fossilize("a")
        into = manager.fuse("a")
        (block,) = manager.deepen("blocks", at="end")
        done = manager.widen("net.part.up", 2)
        assert (dict(into), host.net.part.up.out_features, manager.seeds["a"].stage) == ({}, 8, Stage.HOLDING)
    assert dict(into) == {"a": "net.part.up"}
    assert (host.net.part.up.out_features, done.done) == (18, True)
    assert (list(manager.seeds), block.stage) == ([block.name], Stage.FOSSILIZED)
    torch.testing.assert_close(outputs(host, BATCH), before)
    assert [(event.seed, event.data["into"]) for event in sink.of_kind("fused")] == [("a", "net.part.up")]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in host.parameters()}
    steps(host, optimizer, manager, BATCH)


def test_all_that_will_be_fossils_then():
    host, _, manager = with_live_branch()
    with manager.together():
        manager.fossilize("a")
        into = manager.fuse()
    assert dict(into) == {"a": "part.up"}
    assert not host.structure.placements


def test_a_branch_that_is_born_in_the_act_can_be_fused_in_it():
    host = fxgraft.trace(WithPart(Mlp()), (BATCH,))
    manager = fxgraft.SeedManager(host, torch.optim.SGD(host.parameters(), lr=0.1), check_every=0)
    with manager.together():
        seed = manager.germinate("part", Mlp(), source="inner", isolated=False)
        manager.fossilize(seed, force=True)
        into = manager.fuse(seed)
    assert (list(into.values()), host.part.up.out_features) == (["part.up"], 16)
    assert not manager.seeds


def test_what_will_be_no_fossil_is_refused_at_its_call():
    host, _, manager = with_live_branch()
    with manager.together():
        with pytest.raises(StageError, match="HOLDING, and no fossil"):
            manager.fuse("a")
        manager.cull("a")
        with pytest.raises(StageError, match="CULLED, and no fossil"):
            manager.fuse("a")
    assert host.part.up.out_features == 8


def test_a_fossil_is_fused_once():
    _, _, manager = with_live_branch()
    manager.fossilize("a")
    with manager.together():
        into = manager.fuse("a")
        with pytest.raises(StageError, match="'a': it is fused already by an earlier call"):
            manager.fuse("a")
    assert dict(into) == {"a": "part.up"}


def _all_and_one(manager):
    with manager.together():
        manager.fuse()
        manager.fuse("a")


@pytest.mark.parametrize("waits", [True, False])
def test_a_fossil_that_is_gone_by_then_is_not_fused_silently(waits, caplog):
    host, optimizer, manager = with_live_branch()
    manager.fossilize("a")
    before = snapshot(host, BATCH, [optimizer])
    if waits:
        with pytest.raises(StageError, match="no seed 'a' here; there are: none"):
            _all_and_one(manager)
        assert_same_bits(before, snapshot(host, BATCH, [optimizer]))
    else:
        late = manager.fuse("a", wait=False)
        assert manager.fuse() == {"a": "part.up"}
        manager.step()
        assert "no seed 'a' here" in caplog.text
        assert not late
    steps(host, optimizer, manager, BATCH)


def _all_of_it(manager, found):
    with manager.together():
        manager.deepen("blocks")
        manager.fossilize("a")
        manager.fossilize("wrong")
        found.append(manager.fuse("a", "wrong"))


def test_an_act_whose_fusion_fails_changes_nothing():
    host, optimizer, manager = with_live_branch(Deep())
    wrong = manager.germinate("net.part", nn.Linear(4, 3), source="net.inner", name="wrong", isolated=False)
    steps(host, optimizer, manager, BATCH, 1)
    manager.blend(wrong, steps=0)
    steps(host, optimizer, manager, BATCH, 1)
    before = snapshot(host, BATCH, [optimizer])
    found = []
    with pytest.raises(SlotError, match="'wrong' cannot be fused: it is one Linear"):
        _all_of_it(manager, found)
    assert_same_bits(before, snapshot(host, BATCH, [optimizer]))
    assert {name: seed.stage for name, seed in manager.seeds.items()} == dict.fromkeys(
        ("a", "wrong"), Stage.HOLDING
    )
    assert found == [{}]
    with manager.together():
        manager.fossilize("a")
        manager.fossilize("wrong")
        into = manager.fuse()  # what can be; the other stays
    assert dict(into) == {"a": "net.part.up"}
    assert manager.seeds["wrong"].stage is Stage.FOSSILIZED


@pytest.mark.parametrize(
    "step",
    [
        "fxgraft.resizing._fusing.join",
        "fxgraft.resizing._joining._fill",
        "fxgraft.resizing._fusing.difference",
        "fxgraft.resizing.widening.retrace",
        "fxgraft.resizing.widening.replace_moments",
        "fxgraft.resizing.widening.difference",
    ],
)
def test_a_failure_at_any_step_leaves_everything(step, monkeypatch):
    host, optimizer, manager = with_live_branch(Deep())
    before = snapshot(host, BATCH, [optimizer])

    def act():
        with manager.together():
            manager.deepen("blocks")
            manager.fossilize("a")
            into = manager.fuse("a")
            manager.widen("net.part.up", 2)
        return into

    def failing(*args, **kwargs):
        raise ZeroDivisionError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(step, failing)
        with pytest.raises(ZeroDivisionError):
            act()
    assert_same_bits(before, snapshot(host, BATCH, [optimizer]))
    assert [seed.stage for seed in manager.seeds.values()] == [Stage.HOLDING]
    assert act() == {"a": "net.part.up"}
    steps(host, optimizer, manager, BATCH)


def test_a_plan_inside_changes_nothing():
    host, _, manager = with_live_branch()
    with manager.together():
        manager.fossilize("a")
        into = manager.fuse("a")
        planned = manager.plan("relu", "low_rank", rank=1)
        manager.germinate("relu", "low_rank", rank=1)
    assert planned.name in manager.seeds
    assert dict(into) == {"a": "part.up"}
    assert host.structure.placements[0].seed == planned.name


def test_an_act_is_saved_and_loaded(tmp_path):
    host, optimizer, manager = with_live_branch(Deep())
    with manager.together():
        manager.fossilize("a")
        manager.fuse("a")
        manager.deepen("blocks", at="end")
        manager.widen("net.part.up", 2)
    steps(host, optimizer, manager, BATCH)
    manager.save(tmp_path / "run")
    fresh = fxgraft.trace(Deep(), (BATCH,))
    again = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    loaded = fxgraft.SeedManager.load(tmp_path / "run", fresh, again, check_every=0)
    for one, other, run in ((host, optimizer, manager), (fresh, again, loaded)):
        steps(one, other, run, BATCH)
    assert_same_bits(host.state_dict(), fresh.state_dict())
    assert_same_bits(optimizer.state_dict()["state"], again.state_dict()["state"])


def test_a_fossil_that_grew_wider_before_it_was_fused_is_no_part_of_the_file(tmp_path):
    host, _, manager = grown(Mlp(), Mlp())
    manager.widen("_seeds.a.module.up", 3)
    manager.fuse("a")
    assert host.part.up.out_features == 19
    manager.save(tmp_path / "run")
    fresh = fxgraft.trace(WithPart(Mlp()), (BATCH,))
    again = torch.optim.SGD(fresh.parameters(), lr=0.05)
    fxgraft.SeedManager.load(tmp_path / "run", fresh, again, check_every=0)
    assert_same_bits(host.state_dict(), fresh.state_dict())


def test_in_the_background_it_is_applied_at_the_next_step():
    host, optimizer, manager = grown(Mlp(), Mlp())
    into = manager.fuse("a", wait=False)
    assert not into
    steps(host, optimizer, manager, BATCH, 1)
    assert (dict(into), host.part.up.out_features) == ({"a": "part.up"}, 16)


def test_what_fails_in_the_background_leaves_the_fossil(monkeypatch, caplog):
    host, optimizer, manager = grown(Mlp(), Mlp())
    with monkeypatch.context() as patch:
        patch.setattr("fxgraft.resizing._fusing.join", lambda *_: 1 / 0)
        into = manager.fuse("a", wait=False)
        before = snapshot(host, BATCH, [optimizer])
        manager.step()
    assert "the host's layers stay as they are: ZeroDivisionError" in caplog.text
    assert_same_bits(before, snapshot(host, BATCH, [optimizer]))
    assert not into
    assert manager.fuse("a") == {"a": "part.up"}


def test_a_compiled_host_trains_on_while_the_fused_form_is_compiled(fresh_compiler):
    host, optimizer, manager = with_live_branch()
    host.compile(backend="aot_eager")
    steps(host, optimizer, manager, BATCH, 3)
    with manager.together(wait=False):
        manager.fossilize("a")
        into = manager.fuse("a")
    manager.step()
    assert (dict(into), host.part.up.out_features) == ({}, 8)
    steps(host, optimizer, manager, BATCH)  # on weights that are others when it is applied
    settle(host, optimizer, manager, BATCH, lambda: into)
    assert host.part.up.out_features == 16
    steps(host, optimizer, manager, BATCH, 2)
    (variant,) = [v for v in host.compiled.variants if v.artifacts]
    assert (variant.graphs, variant.misses, variant.distrusted) == (0, 0, None)
    torch.testing.assert_close(host(BATCH), fxgraft.unwrap(host)(BATCH))


def _fossil_and_fused(manager):
    with manager.together():
        manager.fossilize("a")
        manager.fuse("a")


def test_outputs_that_would_differ_are_refused_in_an_act(monkeypatch):
    host, optimizer, manager = with_live_branch()
    real = fxgraft.resizing._joining._last
    monkeypatch.setattr("fxgraft.resizing._joining._last", lambda *given: real(*given) | {"part.up.weight"})
    monkeypatch.setattr("fxgraft.resizing._joining._joined", lambda path, ours, *_: ours * 1.5)
    before = snapshot(host, BATCH, [optimizer])
    with pytest.raises(ChannelError, match="expected the outputs of before"):
        _fossil_and_fused(manager)
    assert_same_bits(before, snapshot(host, BATCH, [optimizer]))
