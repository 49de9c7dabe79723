"""Growths of channels in an act, and in the background: one change, whole or not at all."""

import time

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import Stage
from fxgraft.commands import DEEPEN, WIDEN
from fxgraft.errors import ChannelError, SlotError
from fxgraft.host import engine
from fxgraft.telemetry import Memory
from tests.harness import assert_same_bits, snapshot
from tests.resizing.models import Gpt, Mlp
from tests.resizing.test_widening import TOKENS, _fail, managed, outputs, steps


def trained(model=Gpt, batch=TOKENS, **options):
    host, optimizer, manager = managed(model(), batch, **options)
    steps(host, optimizer, manager, batch)
    return host, optimizer, manager


def swaps(host, monkeypatch):
    """Counts how often another structure is installed."""
    seen, real = [], engine.set_structure

    def counting(of, structure, *rest):
        if of is host and structure is not host.structure:
            seen.append(structure)
        return real(of, structure, *rest)

    monkeypatch.setattr(engine, "set_structure", counting)
    return seen


def test_deeper_and_wider_are_one_change(monkeypatch):
    host, optimizer, manager = trained()
    before = outputs(host, TOKENS)
    moments = optimizer.state[host.token.weight]["exp_avg"].clone()
    seen = swaps(host, monkeypatch)
    with manager.together():
        (block,) = manager.deepen("blocks", at="end")
        stream = manager.widen("token", 4)
        hidden = manager.widen("_seeds.AttentionBlock_at_blocks_1.module.mlp.0", 8)
        seed = manager.germinate("blocks.0.mlp.1", nn.Linear(16, 16), name="a")
        assert (host.token.weight.shape, stream.done, hidden.done) == ((11, 12), False, False)
        assert (block.stage, stream.size, hidden.size) == (Stage.GERMINATED, 16, None)
    assert len(seen) == 1
    assert (block.stage, seed.stage) == (Stage.FOSSILIZED, Stage.TRAINING)
    assert (stream.size, hidden.size, stream.failed) == (16, 24, None)
    assert host.token.weight.shape == (11, 16)
    assert block.module.mlp[0].weight.shape == (24, 16)  # what was born in the act grows with the rest
    torch.testing.assert_close(outputs(host, TOKENS), before, rtol=1e-4, atol=1e-5)
    assert torch.equal(optimizer.state[host.token.weight]["exp_avg"][:, :12], moments)
    steps(host, optimizer, manager, TOKENS)
    assert seed.trained_steps > 0
    assert host.slots["_seeds.AttentionBlock_at_blocks_1.module.mlp.0"].shape[-1] == 24


def test_a_seed_that_goes_in_the_act_is_in_the_way_no_more():
    host, _, manager = trained(Mlp, torch.randn(3, 4))
    manager.germinate("act", nn.Linear(8, 8), name="a")
    with pytest.raises(ChannelError, match="the seed 'a'"):
        manager.widen("up", 2)
    with manager.together():
        manager.cull("a")
        done = manager.widen("up", 2)
    assert (done.done, done.size, host.up.out_features) == (True, 10, 10)


def test_what_cannot_be_planned_is_refused_at_its_call():
    host, _, manager = trained(Mlp, torch.randn(3, 4))
    with manager.together():
        for arguments, error in ((("nowhere", 1), ChannelError), (("up", 0), ChannelError)):
            with pytest.raises(error):
                manager.widen(*arguments)
        with pytest.raises(ValueError, match="optimizer_state"):
            manager.widen("up", 1, optimizer_state="old")
        manager.widen("up", 1)
        twice = manager.widen("up", 1)
    assert (host.up.out_features, twice.size) == (10, 10)


def test_an_act_with_a_growth_that_cannot_be_changes_nothing():
    host, optimizer, manager = trained()
    module, told = nn.Linear(16, 16), []
    before = snapshot(host, TOKENS, [optimizer])

    def act(then):
        with manager.together():
            seed = manager.germinate("blocks.0.mlp.1", module, name="a")
            told.append(manager.widen("token", 4))
            told.append(then())
        return seed

    with pytest.raises(ChannelError, match="no channels 'nowhere'"):
        act(lambda: manager.widen("nowhere", 4))  # what the act leads to may have it
    assert_same_bits(before, snapshot(host, TOKENS, [optimizer]))
    assert not manager.seeds
    assert all(one.failed and not one.done for one in told)
    with pytest.raises(ValueError, match="init"):
        act(lambda: manager.widen("token", 4, init="ones"))
    assert told[-1].failed == "it was taken back"
    assert_same_bits(before, snapshot(host, TOKENS, [optimizer]))


@pytest.mark.parametrize(
    "step",
    [
        "fxgraft.resizing.widening.grow",
        "fxgraft.resizing.widening.replace_moments",
        "fxgraft.resizing.widening.replace_tensors",
        "fxgraft.resizing.widening.retrace",
        "fxgraft.resizing.widening.difference",
        "fxgraft.lifecycle.lifecycle.swap",
    ],
)
def test_a_failure_at_any_step_of_an_act_leaves_everything(step, monkeypatch):
    host, optimizer, manager = trained(lambda: Gpt(depth=1))
    host.channels
    before = snapshot(host, TOKENS, [optimizer])
    for after in range(2):  # in the first growth of the act, and in the second
        with monkeypatch.context() as patch:
            calls = _fail(patch, step, after)
            try:
                with manager.together():
                    manager.deepen("blocks")
                    manager.widen("blocks.0.mlp.0", 4)
                    manager.widen("token", 4)
            except KeyError:
                assert_same_bits(before, snapshot(host, TOKENS, [optimizer]))
                assert not manager.seeds
            else:
                assert len(calls) <= after
    steps(host, optimizer, manager, TOKENS)


def test_commands_of_one_step_are_one_change(monkeypatch):
    host, _, manager = trained()
    seen = swaps(host, monkeypatch)
    orders = [DEEPEN(stack="blocks"), WIDEN(group="token", by=4), WIDEN(group="blocks.0.mlp.0", by=4)]
    futures = [manager.submit(order) for order in orders]
    manager.step()
    replies = [future.result() for future in futures]
    assert [reply.reason for reply in replies] == [
        "1 block more in blocks: AttentionBlock_at_blocks_1", "token has 16 channels",
        "blocks.0.mlp.0 has 20 channels",
    ]  # fmt: skip
    assert len(seen) == 1


def test_a_block_that_grew_alone_has_slots_of_its_own_sizes():
    host, optimizer, manager = trained(lambda: Gpt(depth=1))
    manager.deepen("blocks", name="new")
    inside = "_seeds.new.module.mlp.0"
    manager.widen(inside, 4)
    assert (host.slots[inside].shape[-1], host.slots["blocks.0.mlp.0"].shape[-1]) == (20, 16)
    seed = manager.germinate(inside, "low_rank", rank=2, isolated=False)
    manager.blend(seed, steps=0)
    steps(host, optimizer, manager, TOKENS)
    assert seed.steps > 0
    manager.cull(seed)
    manager.widen("blocks.0.mlp.0", 8)
    assert (host.slots[inside].shape[-1], host.slots["blocks.0.mlp.0"].shape[-1]) == (20, 24)
    (third,) = manager.deepen("blocks", at=[0], like=[1], name="third")  # the narrower, behind the wider
    assert third.module.mlp[0].out_features == 20
    assert host.slots["_seeds.third.module.mlp.0"].shape[-1] == 20
    assert len(host.stacks["blocks"]) == 3


# In the background


def test_without_a_compiled_form_it_is_applied_at_the_next_step():
    sink = Memory()
    host, _, manager = trained(Mlp, torch.randn(3, 4), sinks=[sink])
    done = manager.widen("up", 2, wait=False)
    assert (done.done, host.up.out_features) == (False, 8)
    manager.step()
    assert (done.done, host.up.out_features) == (True, 10)
    assert done.max_abs <= 1e-7
    assert [event.data["size"] for event in sink.of_kind("widened")] == [10]


def test_a_growth_that_fails_in_the_background_says_why(monkeypatch, caplog):
    host, optimizer, manager = trained(Mlp, torch.randn(3, 4))
    batch = torch.randn(3, 4)
    before = snapshot(host, batch, [optimizer])
    done = manager.widen("up", 2, wait=False)
    monkeypatch.setattr("fxgraft.resizing.widening.retrace", lambda *_: 1 / 0)
    manager.step()
    assert "ZeroDivisionError" in done.failed
    assert "ZeroDivisionError" in caplog.text
    assert_same_bits(before, snapshot(host, batch, [optimizer]))
    manager.step()
    assert not done.done


def settle(host, optimizer, manager, batch, until):
    deadline = time.monotonic() + 120
    while not until():
        manager._background.wait(60)
        steps(host, optimizer, manager, batch, 1)
        assert time.monotonic() < deadline


def test_a_compiled_host_trains_on_while_its_wider_form_is_compiled(fresh_compiler):
    batch = torch.randn(3, 4)
    host, optimizer, manager = managed(Mlp(), batch)
    host.compile(backend="aot_eager")
    steps(host, optimizer, manager, batch, 3)
    narrow = host.compiled
    done = manager.widen("up", 2, wait=False)
    manager.step()
    assert (done.done, host.up.out_features, host.compiled is narrow) == (False, 8, True)
    (variant,) = narrow.variants
    steps(host, optimizer, manager, batch)  # on weights that are others when it is applied
    before = outputs(host, batch)
    settle(host, optimizer, manager, batch, lambda: done.done)
    assert host.up.out_features == 10
    assert host.compiled is not narrow
    assert (variant.graphs, len(list(narrow.variants))) == (1, 1)  # it ran what it had until then
    steps(host, optimizer, manager, batch, 2)
    (variant,) = [v for v in host.compiled.variants if v.artifacts]
    assert (variant.graphs, variant.misses, variant.distrusted) == (0, 0, None)
    eager = fxgraft.unwrap(host)
    torch.testing.assert_close(host(batch), eager(batch))
    assert before.shape == host(batch).shape


def test_another_change_in_between_is_taken_into_account(fresh_compiler):
    batch = torch.randn(3, 4)
    host, optimizer, manager = managed(Mlp(), batch)
    host.compile(backend="aot_eager")
    steps(host, optimizer, manager, batch, 3)
    done = manager.widen("up", 2, wait=False)
    manager.step()
    manager.germinate("down", "scale_shift", name="a")  # at once: the structure is another one
    manager.widen("up", 1)  # and so are the sizes
    settle(host, optimizer, manager, batch, lambda: done.done or done.failed)
    assert (done.done, host.up.out_features, done.size) == (True, 11, 11)
    assert manager.seeds["a"].stage is Stage.TRAINING


def test_a_seed_in_preparation_for_other_sizes_is_given_up():
    batch = torch.randn(3, 4)
    host, optimizer, manager = trained(Mlp, batch)
    narrow = manager.germinate("act", nn.Linear(8, 8), name="narrow", wait=False)
    fits = manager.germinate("down", nn.Linear(3, 3), name="fits", wait=False)
    manager._background.wait(60)
    manager.widen("up", 2)
    steps(host, optimizer, manager, batch)
    assert (narrow.stage, fits.stage) == (Stage.CULLED, Stage.TRAINING)


def test_blocks_that_were_copied_before_a_growth_are_refused():
    host, optimizer, manager = trained(lambda: Gpt(depth=1))
    manager.widen("blocks.0.mlp.0", 4, wait=False)
    (block,) = manager.deepen("blocks", wait=False)
    steps(host, optimizer, manager, TOKENS)
    assert host.blocks[0].mlp[0].out_features == 20
    assert block.stage is Stage.CULLED
    with pytest.raises((SlotError, ChannelError)), manager.together():
        manager.widen("nowhere", 4)
    assert manager.deepen("blocks")[0].module.mlp[0].out_features == 20
