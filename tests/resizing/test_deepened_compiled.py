"""Blocks inserted in a compiled host, and averages and other things that have to know of them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxgraft
from fxgraft import Stage, averaging, commands
from fxgraft.errors import SlotError
from tests.harness import assert_same_bits, counting_backend
from tests.resizing.deep_models import IDS, CharGPT, Given, Run, TransformerBlock, assert_kept
from tests.resizing.test_stacks import X

FOUR = Given(CharGPT, 4, "blocks", (IDS,), {})


@pytest.mark.parametrize("granularity", ["host", "region"])
@pytest.mark.usefixtures("fresh_compiler")
def test_one_act_on_a_compiled_host_compiles_two_graphs_at_most(granularity: str) -> None:
    run = Run(FOUR)
    backend = counting_backend()
    run.host.compile(backend=backend, granularity=granularity)
    run.train(2)
    graphs = backend.frame_count
    run.deepened(count=8)
    run.train(1)
    assert backend.frame_count - graphs <= 2
    assert len(run.blocks) == 12
    eager = copy.deepcopy(run.host)  # which is not compiled
    assert_same_bits(run.given.run(run.host), run.given.run(eager))


def test_an_average_follows() -> None:
    run = Run(FOUR)
    average = AveragedModel(run.host, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaging.follow(run.host, average)
    run.deepened(count=2, name="n")
    run.manager.germinate("_seeds.n_0.module.up", nn.Linear(64, 64), name="inside")
    run.train(1)
    average.update_parameters(run.host)
    assert average.module.stacks["blocks"].blocks == run.blocks
    assert [n for n, _ in average.module.named_parameters()] == [n for n, _ in run.host.named_parameters()]
    run.manager.cull("inside")
    late = AveragedModel(run.host, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    run.deepened(at="end")
    averaging.follow(run.host, late)
    assert late.module.stacks["blocks"].blocks == run.blocks
    assert_same_bits(run.given.run(average.module).shape, run.given.run(run.host).shape)


@pytest.mark.parametrize("init", ["zero", "copy", "random"])
@pytest.mark.parametrize("like", ["blocks.1", "an inserted one"])
def test_the_average_of_a_block_begins_as_that_of_the_one_it_copies(init: str, like: str) -> None:
    run = Run(FOUR)
    average = AveragedModel(run.host, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaging.follow(run.host, average)
    at = 1
    if like != "blocks.1":
        run.deepened(at=[1], init="copy", name="first")
        like, at = "_seeds.first.module", 2
    for _ in range(3):
        run.train(1)
        average.update_parameters(run.host)
    run.deepened(at=[at], init=init, name="n")
    new, averaged = (dict(host.graft("n").module.named_parameters()) for host in (run.host, average.module))
    original = dict(average.module.get_submodule(like).named_parameters())
    for name, parameter in averaged.items():
        live = new[name]
        is_copy = init != "random" and bool(live.any())
        assert_same_bits(parameter, original[name] if is_copy else live, name)
    assert not torch.equal(original["up.weight"], run.host.get_submodule(like).up.weight)  # it lags behind


def test_a_controller_deepens_by_a_command() -> None:
    run = Run(FOUR)
    command = {"type": "DEEPEN", "stack": "blocks", "count": 2, "at": "end", "name": "n", "id": "1"}
    reply = run.manager.handle(command)
    assert reply.accepted
    assert (reply.seed, reply.reason) == ("n_0, n_1", "2 blocks more in blocks: n_0, n_1")
    assert commands.to_dict(commands.DEEPEN(stack="blocks", at=[1])) == {
        "type": "DEEPEN",
        "stack": "blocks",
        "at": [1],
    }
    assert run.manager.handle(command) == reply  # carried out once
    assert len(run.blocks) == 6
    for bad, told in (
        ({"at": [9]}, "expected indices of blocks, 0 to 5"),
        ({"at": [[]]}, "at[0]: expected integer"),
        ({"count": 0}, "expected 1 to 1024"),
        ({"stack": "h"}, "one of host.stacks"),
        ({"init": "ones"}, "expected one of"),
    ):
        reply = run.manager.handle({"type": "DEEPEN", "stack": "blocks", **bad})
        assert reply.refused
        assert told in reply.reason
    assert len(run.blocks) == 6


def test_a_state_dict_carries_blocks() -> None:
    run = Run(FOUR)
    run.deepened(count=2, init="random")
    run.host.structure_entry = lambda host: run.manager.describe()
    state = {name: tensor.clone() for name, tensor in run.host.state_dict().items()}
    fresh = FOUR.host()
    fresh.load_state_dict(state)
    assert fresh.stacks["blocks"].blocks == run.blocks
    assert_same_bits(run.given.run(fresh), run.given.run(run.host))


def test_a_model_for_inference_has_them(tmp_path: Path) -> None:
    run = Run(FOUR)
    run.deepened(count=2, init="random")
    run.manager.save(tmp_path / "run")
    loaded = fxgraft.load_model(tmp_path / "run", FOUR.model())
    assert_same_bits(run.given.run(loaded), run.given.run(run.host))


def test_blocks_and_channels_grow_in_one_run_and_are_loaded(tmp_path: Path) -> None:
    run = Run(FOUR)
    run.train(1)
    before = run.seen()
    run.deepened(at=[0], name="narrow")
    run.manager.widen("blocks.0.up", 8)
    assert_same_bits(run.seen()[0], before[0])
    run.train(1)
    run.deepened(at=[0], name="wide", init="copy", like=[0])
    run.train(1)
    assert run.blocks[:3] == ("blocks.0", "_seeds.wide.module", "_seeds.narrow.module")
    assert [run.host.get_submodule(block).up.out_features for block in run.blocks[:3]] == [72, 72, 64]
    run.manager.save(tmp_path / "run")
    loaded = Run(FOUR)
    loaded.manager = fxgraft.SeedManager.load(tmp_path / "run", loaded.host, loaded.optimizer, check_every=0)
    run.train(2)
    loaded.train(2)
    assert_same_bits(dict(loaded.host.state_dict()), dict(run.host.state_dict()))
    assert_same_bits(run.given.run(fxgraft.unwrap(run.host)), run.given.run(run.host))


def test_blocks_go_live_in_the_background() -> None:
    run = Run(FOUR)
    before = run.seen()
    seeds = run.deepened(count=2, wait=False)
    assert [seed.stage for seed in seeds] == [Stage.GERMINATED] * 2
    assert len(run.blocks) == 4
    run.manager.step()
    assert [seed.stage for seed in seeds] == [Stage.FOSSILIZED] * 2
    assert_kept(run, before)


def test_a_seed_in_a_block_joins_the_group_of_the_layers_that_it_is_among() -> None:
    host = FOUR.host()
    first = list(host.blocks[0].parameters())
    rest = [p for p in host.parameters() if all(p is not known for known in first)]
    optimizer = torch.optim.SGD([{"params": first, "lr": 1.0}, {"params": rest, "lr": 2.0}])
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    manager.deepen("blocks", at=[0], name="n")
    seed = manager.germinate("_seeds.n.module.up", nn.Linear(64, 64))
    assert seed.places == {"weight": (0, 0), "bias": (0, 0)}


def test_linear_fossils_in_blocks_are_folded() -> None:
    run = Run(FOUR)
    run.deepened(count=1, init="random", name="n")
    seed = run.manager.germinate("_seeds.n.module.up", nn.Linear(64, 64), isolated=False, name="linear")
    run.manager.fossilize(seed, force=True)
    folded = fxgraft.fold(run.host, (IDS,))
    assert folded.into == {"linear": "_seeds.n.module.up"}
    assert folded.refused == {"n": "is a block"}
    assert list(folded.module.state_dict()) == list(CharGPT(5).state_dict())
    torch.testing.assert_close(folded.module(IDS), run.host(IDS))


def test_a_branch_that_would_run_a_block_elsewhere_is_refused() -> None:
    host = fxgraft.trace(nn.Sequential(TransformerBlock(), TransformerBlock(), TransformerBlock()), (X,))
    manager = fxgraft.SeedManager(host, check_every=0)
    manager.deepen("", at=[0], name="n")
    with pytest.raises(
        SlotError, match="block 'n' stands at '0': expected a module that is called by itself"
    ):
        manager.germinate("1.add", nn.Linear(16, 16), source="0.add")
    manager.germinate("2.add", nn.Linear(16, 16), source="1.add", name="branch")
    with pytest.raises(SlotError, match=r"with a branch into or out of it \(branch\)"):
        manager.deepen("", at=[2])
    host(X)


def test_an_input_of_a_module_is_no_place_for_other_seeds() -> None:
    host = FOUR.host()
    with pytest.raises(SlotError, match="got placeholder"):
        fxgraft.SeedManager(host).germinate("blocks.0@x", nn.Linear(16, 16))
    with pytest.raises(SlotError, match="an argument that is a tensor"):
        host.slot("blocks.0@y")
