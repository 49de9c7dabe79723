"""Blocks that grow between blocks are compiled as their equals are; one act makes one structure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import Stage
from fxgraft.host import engine
from fxgraft.testing import no_recompiles
from tests.harness import assert_same_bits, counting_backend, frozen
from tests.networks import ResidualMLP
from tests.seed_modules import Scale

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class World:
    def __init__(
        self, granularity: str, backend: Any = None, model: nn.Module | None = None, bits: bool = True
    ) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(3, 4)
        model = model or nn.Sequential(*(ResidualMLP() for _ in range(4)))
        self.host = fxgraft.trace(model, (self.x,))
        self.backend = backend or counting_backend()
        self.host.compile(backend=self.backend, granularity=granularity)
        self.manager = fxgraft.SeedManager(self.host)
        self.call(3, bits)

    def call(self, times: int = 1, bits: bool = True) -> None:
        """Compare with eager mode: to the bit, unless blocks and what is between them read one value, whose
        gradients are summed in another order then."""
        for _ in range(times):
            self.host.zero_grad()
            out = self.host(self.x)
            out.square().sum().backward()
            grads = [p.grad for p in self.host.parameters()]
            ours = frozen([out, grads])
            with engine.probing(self.host, self.host.structure, self.host.phase) as model:
                self.host.zero_grad()
                out = model(self.x)
                out.square().sum().backward()
            theirs = frozen([out, [p.grad for p in self.host.parameters()]])
            torch.testing.assert_close(ours, theirs)
            if bits:
                assert_same_bits(ours, theirs, "the host")

    def graphs(self) -> int:
        return fxgraft.compile_report(self.host).graphs


@pytest.mark.parametrize("granularity", ["region", "auto"])
def test_grown_blocks_are_units(granularity: str) -> None:
    world = World(granularity)
    before = world.graphs()
    world.manager.germinate("1", ResidualMLP(), name="a")
    assert "_seeds.a.module" in fxgraft.compile_report(world.host).units
    with (
        no_recompiles()
    ):  # an isolated block reads what needs no gradient: that was compiled before it was live
        world.call(3)
    world.manager.germinate("2", ResidualMLP(), name="b")
    with no_recompiles():
        world.call(3)
        world.manager.blend("a", steps=1)
        world.manager.blend("b", steps=1)
        world.manager.step()
        world.call(3)
        world.manager.fossilize("a")
        world.call(3, bits=False)
        world.manager.cull("b")
        world.call(3, bits=False)
    assert world.graphs() == before  # the first block of the model reads what needs no gradient, too
    assert "_seeds.b.module" not in fxgraft.compile_report(world.host).units
    assert fxgraft.compile_report(world.host).uncompiled_calls == 0


def test_in_the_background_grown_blocks_compile_nothing_here() -> None:
    world = World("region", "aot_eager")
    with no_recompiles():
        for name, module in [("a", ResidualMLP()), ("b", nn.Sequential(nn.Linear(4, 4), nn.Tanh()))]:
            seed = world.manager.germinate("1", module, name=name, wait=False)
            while seed.stage is Stage.GERMINATED:
                world.manager._background.wait(60)
                world.manager.step()
            for _ in range(20):
                world.call()
                world.manager._background.wait(60)
                world.manager.step()
        before = fxgraft.compile_report(world.host).uncompiled_calls
        world.call(3)
    report = fxgraft.compile_report(world.host)
    assert report.uncompiled_calls == before
    assert {"_seeds.a.module", "_seeds.b.module"} <= set(report.units)


def test_the_report_names_seeds_that_run_uncompiled() -> None:
    world = World("region")
    world.manager.germinate("1", Scale(), name="small")
    world.call()
    report = fxgraft.compile_report(world.host)
    assert report.eager == ("small",)
    assert "small" in str(report).splitlines()[-1]


@pytest.mark.parametrize("granularity", ["host", "region"])
def test_a_grown_block_is_collected_when_it_is_culled(granularity: str) -> None:
    import gc
    import weakref

    world = World(granularity)
    world.manager.germinate("1", ResidualMLP(), name="a")
    world.call(3)
    module = weakref.ref(world.manager.seeds["a"].module)
    world.manager.cull("a")
    world.host.zero_grad()
    gc.collect()
    assert module() is None


def _grow_inside_of_a_new_block(world: World, name: str) -> None:
    world.manager.deepen("", name=name, at=[1], blend=5, isolated=True)
    world.manager.germinate(f"_seeds.{name}.module.relu", "low_rank", name="inside")
    world.call()


def test_what_is_known_of_the_regions_of_seeds_goes_with_them() -> None:
    world = World("host", "eager")
    keys = world.host.compiled._keys  # type: ignore[union-attr]
    counts = []
    for i in range(4):
        _grow_inside_of_a_new_block(world, f"block{i}")
        counts.append(len(keys._forwards))
        world.manager.cull("inside")
        world.manager.cull(f"block{i}")
        world.call()
    assert counts == counts[:1] * 4


def test_a_seed_of_a_name_that_was_there_before_is_known_by_its_own_graph() -> None:
    world = World("host", "eager")
    keys = world.host.compiled._keys  # type: ignore[union-attr]
    found = []
    for _ in range(2):
        _grow_inside_of_a_new_block(world, "block")
        region, _ = keys._forwards["_seeds.block.module"]
        found.append(region())
        assert region() is world.host.regions["_seeds.block.module"]
        world.manager.cull("inside")
        world.manager.cull("block")
    assert found[0] is not found[1]


@pytest.mark.parametrize(("granularity", "graphs"), [("host", 2), ("region", 0)])
def test_eight_blocks_in_one_act(granularity: str, graphs: int) -> None:
    world = World(granularity)
    before = world.graphs()
    with world.manager.together():
        for i in range(8):
            world.manager.germinate(str(i % 4), ResidualMLP(), name=f"s{i}")
    with no_recompiles():
        world.call(3)
        world.manager.blend("s0", steps=1)
        world.manager.step()
        world.call(3)
    assert world.graphs() - before == graphs


@pytest.mark.parametrize("granularity", ["host", "region"])
@pytest.mark.parametrize(
    ("count", "blend", "isolated"),
    [(5, 0, False), (5, 3, False), (5, 3, True), (4, 3, True)],  # behind three blocks: 2, 2, 1 and 2, 1, 1
)
def test_blocks_that_are_spread_unevenly_are_compiled_for_what_they_may_run_only(
    granularity: str, count: int, blend: int, isolated: bool
) -> None:
    stack = nn.Sequential(*(ResidualMLP() for _ in range(3)))
    backend = counting_backend("eager")  # how often it compiles, not what
    world = World(granularity, backend, nn.Sequential(nn.Linear(4, 4), stack), bits=False)
    before = world.graphs()
    seeds = world.manager.deepen("1", count, blend=blend, isolated=isolated)
    for step in range(blend + 6):
        world.call(bits=False)
        if isolated and step == 2:
            for seed in seeds:
                world.manager.blend(seed, steps=2)
        world.manager.step()
    assert world.graphs() - before <= 2
    assert fxgraft.compile_report(world.host).uncompiled_calls == 0
