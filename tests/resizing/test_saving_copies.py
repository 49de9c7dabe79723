"""Saved runs with blocks that are copies: of inserted ones, of others of the model, of ones that are gone."""

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.errors import SlotError
from tests.harness import assert_same_bits
from tests.resizing.test_widening import steps

BATCH = torch.randn(5, 4)


class SlopedBlock(nn.Module):
    def __init__(self, slope=0.01):
        super().__init__()
        self.norm, self.up, self.act, self.down = (
            nn.RMSNorm(4),
            nn.Linear(4, 8),
            nn.LeakyReLU(slope),
            nn.Linear(8, 4),
        )

    def forward(self, x):
        return x + self.down(self.act(self.up(self.norm(x))))


class OfUnequalBlocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.blocks = nn.ModuleList([SlopedBlock(), SlopedBlock(0.5)])

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def fresh():
    torch.manual_seed(0)
    host = fxgraft.trace(OfUnequalBlocks(), (BATCH,))
    return host, torch.optim.AdamW(host.parameters(), lr=1e-2)


def deepen(at, name, **options):
    return lambda manager: manager.deepen("blocks", 1, at=[at], name=name, **options)


def widen(group, by=2):
    return lambda manager: manager.widen(group, by)


def cull(name):
    return lambda manager: manager.cull(name)


RUNS = {
    "a copy of an inserted block": [deepen(0, "a"), widen("blocks.0.up"), deepen(1, "b")],
    "a copy of a copy": [deepen(0, "a"), widen("blocks.0.up"), deepen(1, "b"), deepen(2, "c")],
    "of one that is gone": [
        deepen(0, "a"),
        widen("blocks.0.up"),
        deepen(1, "b", blend=9),
        deepen(2, "c"),
        cull("b"),
    ],
    "of one that grew by itself": [
        deepen(0, "a"),
        widen("_seeds.a.module.up"),
        deepen(1, "b"),
        widen("_seeds.b.module.up", 1),
        widen("blocks.0.up", 3),
    ],
    "and all grow": [deepen(0, "a"), widen("first"), deepen(1, "b"), widen("first")],
    "of another block of the model": [deepen(0, "a", like=[1], init="copy"), deepen(1, "b", init="copy")],
    "the name was that of a block": [
        deepen(0, "a", blend=9),
        widen("blocks.0.up"),
        cull("a"),
        deepen(0, "a"),
    ],
    "the name was that of a seed": [
        lambda manager: manager.germinate("blocks.0", "mlp", name="a"),
        widen("blocks.0.up"),
        cull("a"),
        lambda manager: manager.germinate("blocks.0.up", "mlp", name="a"),
    ],
}


@pytest.mark.parametrize("way", ["file", "state"])
@pytest.mark.parametrize("run", RUNS)
def test_a_run_goes_on_to_the_bit(run, way, tmp_path):
    host, optimizer = fresh()
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    for action in RUNS[run]:
        action(manager)
        steps(host, optimizer, manager, BATCH, 1)
    again, other = fresh()
    if way == "file":
        manager.save(tmp_path / "run")
        loaded = fxgraft.SeedManager.load(tmp_path / "run", again, other, check_every=0)
        assert again.widenings == host.widenings
        for one in ((host, optimizer, manager), (again, other, loaded)):
            steps(*one, BATCH, 2)
    else:
        host.structure_entry = lambda host: manager.describe()
        again.load_state_dict(host.state_dict())
    assert_same_bits(host(BATCH), again(BATCH))


def test_a_cleared_host_forgets_what_grew_in_its_blocks(tmp_path):
    host, optimizer = fresh()
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    for action in (deepen(0, "a"), widen("_seeds.a.module.up"), widen("blocks.1.up")):
        action(manager)
    host.clear()
    again, _ = fresh()
    fxgraft.SeedManager(host, check_every=0).save(tmp_path / "run")
    fxgraft.SeedManager.load(tmp_path / "run", again, check_every=0)
    assert [done.group for done in again.widenings] == ["blocks.1.up"]
    assert_same_bits(host(BATCH), again(BATCH))


def test_a_change_that_is_taken_back_leaves_the_history_of_growths(monkeypatch):
    host, optimizer = fresh()
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    for action in (deepen(0, "a"), widen("_seeds.a.module.up")):
        action(manager)
    before = host.widenings

    def failing(*args, **kwargs):
        raise RuntimeError("injected")

    monkeypatch.setattr("fxgraft.lifecycle.lifecycle.swap", failing)
    with pytest.raises(RuntimeError, match="injected"):
        manager.deepen("blocks", 1, at=[1])
    assert host.widenings is before


@pytest.mark.parametrize("original", ["first", "_seeds.a.module", "no", 3])
def test_a_file_that_names_no_block_is_refused(original, tmp_path, monkeypatch):
    host, optimizer = fresh()
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)
    (seed,) = manager.deepen("blocks", 1, at=[0], name="a")
    fxgraft.seeds.seed.amend(seed, config={**seed.config, "original": original})
    manager.save(tmp_path / "run")
    again, other = fresh()
    with pytest.raises((SlotError, fxgraft.errors.CheckpointError), match="expected a block of 'blocks'"):
        fxgraft.SeedManager.load(tmp_path / "run", again, other)
    assert not again.structure.placements
