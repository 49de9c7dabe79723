"""What is compiled as a whole: the host, or each of its blocks."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.compiling.units import units_of
from fxgraft.host._running import Running
from fxgraft.testing import no_recompiles
from fxgraft_passes import Phase
from tests.harness import assert_same_bits, counting_backend, frozen, loss_of
from tests.seed_modules import Drawing, Scale

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class DropoutBlock(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.drop(self.inner(x)))


class FiveBlocks(nn.Module):
    """Five equal blocks, a head of its own, and operations between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(DropoutBlock() for _ in range(5))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class World:
    def __init__(self, granularity: str | None, backend: str = "aot_eager", model: Any = FiveBlocks) -> None:
        torch.manual_seed(0)
        self.host = fxgraft.trace(model(), (torch.randn(3, 4),))
        self.backend = counting_backend(backend)
        if granularity is not None:
            self.host.compile(backend=self.backend, granularity=granularity)
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.manager = SeedManager(self.host, self.optimizer)
        self.seen: list[Any] = []
        self.train(2)

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            out = self.host(torch.randn(3, 4))
            loss_of(out).backward()
            self.seen.append(frozen([out, *(p.grad for p in self.host.host_parameters())]))
            self.optimizer.step()
            self.manager.step()

    def phases(self) -> dict[str, Phase]:
        running = self.host.compiled.running
        return {unit.name: state.phase for unit, state in running.items()}


def test_the_units_of_a_model() -> None:
    names = [unit.name for unit in units_of(FiveBlocks(), "region")]
    assert names == [*(f"blocks.{i}" for i in range(5)), "head"]
    assert len({unit.kind for unit in units_of(FiveBlocks(), "region")}) == 2
    assert [unit.name for unit in units_of(FiveBlocks(), "host")] == [""]


@pytest.mark.parametrize(("blocks", "expected"), [(3, [""]), (4, ["0", "1", "2", "3"])])
def test_auto_goes_by_how_often_a_block_repeats(blocks: int, expected: list[str]) -> None:
    model = nn.Sequential(*(DropoutBlock() for _ in range(blocks)))
    assert [unit.name for unit in units_of(model, "auto")] == expected


def test_blocks_of_other_shapes_are_units_of_another_kind() -> None:
    model = nn.Sequential(DropoutBlock(), DropoutBlock(), DropoutBlock(8), DropoutBlock(8))
    kinds = [unit.kind for unit in units_of(model, "region")]
    assert kinds[0] == kinds[1] != kinds[2] == kinds[3]


def test_a_model_without_blocks_is_one_unit() -> None:
    assert [unit.name for unit in units_of(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "region")] == [""]


def test_an_unknown_granularity_is_refused_and_changes_nothing() -> None:
    world = World("host")
    compiled = world.host.compiled
    with pytest.raises(ValueError, match="host, region, auto; got 'layer'"):
        world.host.compile(granularity="layer")
    assert world.host.compiled is compiled


def test_a_germination_compiles_its_block_only_and_equal_blocks_share_that() -> None:
    world = World("region")
    before = world.backend.frame_count
    world.manager.germinate("blocks.1.relu", lambda slot: Drawing(), name="a")
    assert world.backend.frame_count - before == 2
    with no_recompiles():
        world.train()
        world.manager.germinate("blocks.3.relu", lambda slot: Drawing(), name="b")
        world.train()
        world.manager.blend("a", steps=2)
        world.train(3)
        assert world.phases()["blocks.1"] is Phase.SETTLED
        assert world.phases()["blocks.3"] is Phase.ISOLATED
        world.manager.blend("b", steps=1)
        world.train(2)
        world.manager.cull("a")
        world.train()
        world.manager.cull("b")
        world.train()
        world.manager.germinate("blocks.4.relu", lambda slot: Drawing(), name="c")
        world.train()
    assert world.backend.frame_count - before == 2


def test_by_region_has_the_bits_of_eager_mode() -> None:
    def life(granularity: str | None) -> list[Any]:
        world = World(granularity)
        world.manager.germinate("blocks.1.relu", lambda slot: Drawing(), name="a")
        world.train(2)
        world.manager.germinate("blocks.1.drop", Scale(), name="b", mode="convex")
        world.manager.germinate("tanh", Scale(), name="between")
        world.manager.germinate("head.1", Scale(), name="head")
        world.train(2)
        for name in ("a", "between", "head"):
            world.manager.blend(name, to=0.5, steps=2)
        world.train(3)
        world.manager.fossilize("a")
        world.manager.cull("between")
        world.train(2)
        return world.seen

    for i, (region, eager) in enumerate(zip(life("region"), life(None), strict=True)):
        assert_same_bits(region, eager, f"step {i}")


def test_a_seed_between_the_blocks_compiles_nothing() -> None:
    world = World("region")
    with no_recompiles():
        world.manager.germinate("tanh", Scale(), name="a")
        world.train()
        world.manager.blend("a", steps=1)
        world.train(2)
        assert world.manager.seeds["a"].stage is Stage.HOLDING


def test_the_isolation_check_runs_the_blocks_eager() -> None:
    """It is to see each seed's path: what compiled code does is another test's question."""
    world = World("region")
    world.manager.germinate("blocks.1.relu", lambda slot: Drawing(), name="a")
    with no_recompiles():
        world.train(3)
    assert world.manager.monitor.checks == 1
    assert world.manager.monitor.violations == 0
    assert "_compiled_call_impl" in world.host.get_submodule("blocks.1").__dict__


def test_alpha_can_be_looked_at_while_others_blend() -> None:
    """A block whose one seed learns runs the forward that passes the host's value by."""
    world = World("region")
    world.manager.germinate("blocks.1.relu", Scale(3.0), name="a")
    world.manager.germinate("blocks.2.relu", Scale(3.0), name="b")
    world.manager.blend("b", steps=1)
    world.train(2)
    world.host.eval()
    x = torch.randn(3, 4)
    with torch.no_grad():
        before = frozen(world.host(x))
    with torch.no_grad(), world.manager.at_alpha("a", 1.0):
        assert float((world.host(x) - before).abs().max()) > 1e-3
    with torch.no_grad():
        assert_same_bits(frozen(world.host(x)), before, "the output")


def test_copies_are_eager_and_their_own() -> None:
    world = World("region")
    world.manager.germinate("blocks.1.relu", Scale(), name="a")
    for twin in (copy.deepcopy(world.host), pickle.loads(pickle.dumps(world.host))):
        assert twin.compiled is None
        assert not any("_compiled_call_impl" in module.__dict__ for module in twin.modules())
        twin.eval()
        world.host.eval()
        x = torch.randn(3, 4)
        assert_same_bits(frozen(twin(x)), frozen(world.host(x)), "the output")
        world.host.train()


def test_compiled_anew_as_a_whole_the_blocks_are_eager_inside() -> None:
    world = World("region")
    backend = counting_backend()
    world.host.compile(backend=backend)
    assert not any("_compiled_call_impl" in module.__dict__ for module in world.host.modules())
    world.train()
    assert backend.frame_count == 1


def test_in_the_background_a_block_is_made_by_the_helper() -> None:
    torch.manual_seed(0)
    world = World("region")
    world.host.compile(backend="aot_eager", granularity="region")
    world.train()
    with no_recompiles():
        world.manager.germinate("blocks.1.relu", lambda slot: Drawing(), name="a", wait=False)
        while world.manager.seeds["a"].stage is Stage.GERMINATED:
            world.manager._background.wait(60)
            world.train()
        world.manager.blend("a", steps=1)
        world.train(2)
        world.manager.germinate("blocks.2.relu", lambda slot: Drawing(), name="b", wait=False)
        world.manager._background.wait(60)
        world.train()
        assert world.manager.seeds["b"].stage is Stage.TRAINING  # its block's code is there already
        world.train()
    report = fxgraft.compile_report(world.host)
    assert report.artifacts == 2
    assert report.uncompiled_calls == 0


def entered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many placements each structure has that is entered from now on."""
    sizes: list[int] = []
    plain = Running.enter

    def enter(running: Running, structure: Any, *rest: Any) -> None:
        sizes.append(len(structure.placements))
        plain(running, structure, *rest)

    monkeypatch.setattr(Running, "enter", enter)
    return sizes


def test_commands_of_one_step_are_one_structure_and_two_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many equal blocks they grow."""
    world = World("region")
    before, sizes = world.backend.frame_count, entered(monkeypatch)
    commands = [{"type": "SEED", "slot": f"blocks.{i}.relu", "blueprint": "low_rank"} for i in range(4)]
    replies = [world.manager.submit(json.dumps(command)) for command in commands]
    world.train()
    assert all(reply.result(0).accepted for reply in replies)
    assert sizes == [4]
    with no_recompiles():
        world.train(2)
    assert world.backend.frame_count - before == 2
    names = [str(reply.result(0).seed) for reply in replies]
    commands = [{"type": "CULL", "seed": name} for name in names[:2]]
    commands.append({"type": "BLEND", "seed": names[2], "steps": 1})
    with no_recompiles():  # equal blocks have had all of it
        replies = [world.manager.submit(json.dumps(command)) for command in commands]
        world.train(3)
    assert all(reply.result(0).accepted for reply in replies)
    assert sizes[1:] == [2]
    assert world.backend.frame_count - before == 2


def test_several_changes_in_the_background_are_one_structure_and_two_artifacts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World("region")
    world.host.compile(backend="aot_eager", granularity="region")
    world.train()
    sizes = entered(monkeypatch)
    with no_recompiles():
        with world.manager.together():
            slots = [f"blocks.{i}.relu" for i in range(4)]
            seeds = [world.manager.germinate(slot, "low_rank", wait=False) for slot in slots]
        while any(seed.stage is Stage.GERMINATED for seed in seeds):
            world.manager._background.wait(60)
            world.train()
        world.train(2)
    assert set(sizes) == {4}  # again when the forward for blending has come
    report = fxgraft.compile_report(world.host)
    assert (report.artifacts, report.uncompiled_calls) == (2, 0)


def test_a_transformer_by_region() -> None:
    """GPT-2: calls with keyword arguments, tuples, a layer number in each block."""
    config = transformers.GPT2Config(
        n_layer=4, n_head=2, n_embd=8, vocab_size=11, n_positions=8, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip

    def life(granularity: str | None) -> tuple[list[Any], int]:
        torch.manual_seed(0)
        ids = torch.arange(12).reshape(2, 6) % 11
        host = fxgraft.trace(transformers.GPT2LMHeadModel(config), (), {"input_ids": ids, "labels": ids})
        backend = counting_backend("aot_eager")
        if granularity:
            host.compile(backend=backend, granularity=granularity)
        optimizer = torch.optim.SGD(host.parameters(), 1e-2)
        manager = SeedManager(host, optimizer)
        seen = []
        for i in range(6):
            if i == 2:
                slot = next(name for name in host.slots if name.startswith("transformer.h.1.mlp.act"))
                manager.germinate(slot, Scale(), name="a")
            if i == 4:
                manager.blend("a", steps=1)
            optimizer.zero_grad()
            loss = host(input_ids=ids, labels=ids).loss
            loss.backward()
            seen.append(frozen([loss, *(p.grad for p in host.host_parameters())]))
            optimizer.step()
            manager.step()
        return seen, backend.frame_count

    (region, graphs), (eager, _) = life("region"), life(None)
    for i, (ours, theirs) in enumerate(zip(region, eager, strict=True)):
        assert_same_bits(ours, theirs, f"step {i}")
    assert graphs <= 4  # the block, from two kinds of input at most, and the block with the seed twice
