"""Runs whose host has grown wider, saved and loaded."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fxgraft
from fxgraft.errors import CheckpointError, DistributedError
from tests.harness import assert_same_bits, snapshot
from tests.resizing.models import AttentionBlock, Gpt, Mlp
from tests.resizing.test_widening import TOKENS, managed, outputs, steps


def grown():
    host, optimizer, manager = managed(Gpt(nn.RMSNorm, depth=1), TOKENS)
    steps(host, optimizer, manager, TOKENS)
    manager.widen("blocks.0.mlp.0", 4)
    manager.germinate("blocks.0.mlp.1", nn.Linear(20, 20), name="a")
    steps(host, optimizer, manager, TOKENS, 1)
    manager.widen("token", 4)
    steps(host, optimizer, manager, TOKENS, 1)
    return host, optimizer, manager


def test_a_run_goes_on_to_the_bit(tmp_path):
    host, optimizer, manager = grown()
    manager.save(tmp_path / "run")
    torch.manual_seed(1)
    fresh = fxgraft.trace(Gpt(nn.RMSNorm, depth=1), (TOKENS,))
    again = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    loaded = fxgraft.SeedManager.load(
        tmp_path / "run", fresh, again, blueprints={"a": nn.Linear(20, 20)}, check_every=0
    )
    assert fresh.widenings == host.widenings
    assert fresh.norm.eps == host.norm.eps
    for one, other, run in ((host, optimizer, manager), (fresh, again, loaded)):
        steps(one, other, run, TOKENS)
    assert_same_bits(host.state_dict(), fresh.state_dict())
    assert_same_bits(optimizer.state_dict()["state"], again.state_dict()["state"])
    assert loaded.widen("blocks.0.attn.qkv", 4).size == 16


def test_a_model_for_inference(tmp_path):
    host, _, manager = grown()
    manager.save(tmp_path / "run")
    found = fxgraft.load_model(
        tmp_path / "run", Gpt(nn.RMSNorm, depth=1), blueprints={"a": nn.Linear(20, 20)}
    )
    assert_same_bits(found(TOKENS), host.eval()(TOKENS))


def test_a_model_that_is_as_wide_by_itself(tmp_path):
    host, _, manager = managed(Mlp(), torch.randn(3, 4))
    manager.widen("up", 2)
    manager.save(tmp_path / "run")
    model = Mlp()
    model.up, model.down = nn.Linear(4, 10), nn.Linear(10, 3)
    fresh = fxgraft.trace(model, (torch.randn(3, 4),))
    fxgraft.SeedManager.load(tmp_path / "run", fresh, torch.optim.AdamW(fresh.parameters()))
    assert_same_bits(host.state_dict(), fresh.state_dict())


def test_a_model_that_is_too_wide_for_an_inserted_block_says_so(tmp_path):
    _, _, manager = managed(Gpt(nn.LayerNorm, depth=1), TOKENS)
    manager.deepen("blocks", 1, at="end", name="new")
    manager.widen("blocks.0.mlp.0", 4)  # not the new block
    manager.save(tmp_path / "run")
    wide = Gpt(nn.LayerNorm, depth=1)
    ends = wide.blocks[0].mlp
    ends[0], ends[2] = nn.Linear(12, 20), nn.Linear(20, 12)
    fresh = fxgraft.trace(wide, (TOKENS,))
    with pytest.raises(CheckpointError, match=r"expected .*20.* got .*16.* model as it was when"):
        fxgraft.SeedManager.load(tmp_path / "run", fresh, torch.optim.AdamW(fresh.parameters(), lr=1e-2))
    assert not fresh.structure.placements


def test_a_load_that_fails_leaves_a_narrow_host(tmp_path):
    _, _, manager = grown()
    manager.save(tmp_path / "run")
    fresh = fxgraft.trace(Gpt(nn.RMSNorm, depth=1), (TOKENS,))
    optimizer = torch.optim.AdamW(fresh.parameters())
    before = snapshot(fresh, TOKENS, [optimizer])
    with pytest.raises(CheckpointError, match="blueprints="):
        fxgraft.SeedManager.load(tmp_path / "run", fresh, optimizer)
    assert_same_bits(before, snapshot(fresh, TOKENS, [optimizer]))
    assert fresh.widenings == ()
    with pytest.raises(CheckpointError, match="does not grow as that of the checkpoint did"):
        fxgraft.SeedManager.load(
            tmp_path / "run", fxgraft.trace(Mlp(), (torch.randn(3, 4),)), torch.optim.AdamW([torch.zeros(1)])
        )


def test_a_state_says_it_and_a_fresh_host_grows():
    host, _, manager = grown()
    manager.deepen("blocks", name="new")
    manager.widen("_seeds.new.module.mlp.0", 2)
    host.structure_entry = lambda host: manager.describe()
    state = host.state_dict()
    fresh = fxgraft.trace(Gpt(nn.RMSNorm, depth=1), (TOKENS,))
    fresh.seed_blueprints["a"] = nn.Linear(20, 20)
    fresh.load_state_dict(state)
    assert_same_bits(fresh.eval()(TOKENS), host.eval()(TOKENS))
    assert (fresh.widenings, fresh.norm.eps) == (host.widenings, host.norm.eps)
    again = fresh.state_dict()  # which says it as well
    assert_same_bits(again, state)
    assert set(again) > set(host.model_state())
    fresh.load_state_dict(again)
    with pytest.raises(RuntimeError, match="size mismatch"):  # one that does not say it
        fxgraft.trace(Gpt(nn.RMSNorm, depth=1), (TOKENS,)).load_state_dict(host.model_state())


def test_a_wide_state_without_seeds():
    host, _, manager = managed(Mlp(), torch.randn(3, 4))
    manager.widen("up", 2)
    host.structure_entry = lambda host: manager.describe()
    state = host.state_dict()
    fresh = fxgraft.trace(Mlp(), (torch.randn(3, 4),))
    fresh.load_state_dict(state)
    assert_same_bits(fresh.state_dict(), state)
    with pytest.raises(CheckpointError, match="up of this one has grown wider"):
        fresh.load_state_dict({**state, "_seeds._structure": _without_seeds()})
    other = fxgraft.trace(Gpt(), (TOKENS,))
    with pytest.raises(CheckpointError, match="does not grow as that of the checkpoint did"):
        other.load_state_dict(state)


def _without_seeds():
    _, _, manager = managed(Mlp(), torch.randn(3, 4))
    return manager.describe()[0]


class Stacked(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.norm, self.head = nn.Embedding(11, 12), nn.LayerNorm(12), nn.Linear(12, 11)
        self.blocks = nn.Sequential(AttentionBlock(), AttentionBlock())

    def forward(self, tokens):
        return self.head(self.norm(self.blocks(self.token(tokens))))


def test_inserted_blocks_grow_wider_and_are_loaded(tmp_path):
    host, optimizer, manager = managed(Stacked(), TOKENS)
    steps(host, optimizer, manager, TOKENS, 1)
    for i in range(2):
        manager.widen(f"blocks.{i}.mlp.0", 4)
    manager.deepen("blocks", 2, at=[0, 1], name="new")
    steps(host, optimizer, manager, TOKENS, 1)
    before = outputs(host, TOKENS)
    manager.widen("blocks.1.mlp.0", 4)
    manager.widen("_seeds.new_0.module.mlp.0", 2)
    manager.widen("token", 4)
    torch.testing.assert_close(outputs(host, TOKENS), before, rtol=1e-4, atol=1e-5)
    steps(host, optimizer, manager, TOKENS, 1)
    manager.save(tmp_path / "run")
    fresh = fxgraft.trace(Stacked(), (TOKENS,))
    again = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    loaded = fxgraft.SeedManager.load(tmp_path / "run", fresh, again, check_every=0)
    for one, other, run in ((host, optimizer, manager), (fresh, again, loaded)):
        steps(one, other, run, TOKENS, 1)
    assert_same_bits(host.state_dict(), fresh.state_dict())
    assert list(loaded.seeds) == list(manager.seeds)
    plain = fxgraft.unwrap(host)
    assert_same_bits(plain(TOKENS), host(TOKENS))
    assert [block.mlp[0].out_features for block in plain.blocks] == [20, 22, 24, 20]


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_wrapped_host_is_refused_and_a_wide_one_can_be_wrapped(one_rank, tmp_path):
    batch = torch.randn(3, 4)
    host, _, manager = managed(Mlp(), batch)
    manager.widen("up", 2)
    manager.save(tmp_path / "run")
    wrapped = DistributedDataParallel(host)
    with pytest.raises(DistributedError, match="wrapped for them"):
        manager.widen("up", 2)
    narrow = fxgraft.trace(Mlp(), (batch,))
    ddp = DistributedDataParallel(narrow)
    with pytest.raises(CheckpointError, match=r"host\.clear\(\)"):
        fxgraft.SeedManager.load(tmp_path / "run", ddp, torch.optim.AdamW(ddp.parameters()))
    fresh = fxgraft.load_model(tmp_path / "run", Mlp()).train()
    fresh.clear()
    again = DistributedDataParallel(fresh)
    optimizer = torch.optim.AdamW(again.parameters(), lr=1e-2)
    loaded = fxgraft.SeedManager.load(tmp_path / "run", again, optimizer, check_every=0)
    steps(again, optimizer, loaded, batch, 1)
    assert fresh.widenings == host.widenings
    assert wrapped.module is host


@pytest.mark.parametrize(("blueprint", "layer"), [("mlp", "up"), ("low_rank", "down")])
def test_a_fossil_that_grew_wider_itself_is_loaded(blueprint, layer, tmp_path):
    x = torch.randn(5, 4)

    def plain():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    host, optimizer, manager = managed(plain(), x)
    manager.germinate("1", blueprint, name="a", isolated=False)
    steps(host, optimizer, manager, x, 1)
    manager.blend("a", steps=0)
    manager.fossilize("a")
    manager.widen(f"_seeds.a.module.{layer}", 2)
    steps(host, optimizer, manager, x, 1)
    manager.save(tmp_path / "run")
    assert_same_bits(fxgraft.load_model(tmp_path / "run", plain())(x), host(x), "for inference")
    fresh = fxgraft.trace(plain(), (x,))
    again = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    loaded = fxgraft.SeedManager.load(tmp_path / "run", fresh, again, check_every=0)
    for one, other, run in ((host, optimizer, manager), (fresh, again, loaded)):
        steps(one, other, run, x)
    assert_same_bits(host.state_dict(), fresh.state_dict())
