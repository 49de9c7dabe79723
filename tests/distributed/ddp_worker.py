"""Every promise about DistributedDataParallel, on every rank. Started by test_ddp.py."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import fxgraft
from fxgraft import Stage
from fxgraft.commands import BLEND, CULL, PAUSE, SEED
from fxgraft.errors import DistributedError
from tests.distributed.ranks import RANK, SIZE, NormedBlock, Run, group, model, say
from tests.side_by_side import Pace, SideBySide

SLOT = "1.relu"
FOLDER = Path(sys.argv[1])


def double(wrap: bool) -> Run:
    """In float64 and with plain SGD, which does not make large differences of small ones."""
    return Run(wrap, dtype=torch.float64, optimizer=lambda p: torch.optim.SGD(p, 0.05))


def close(run: Run, single: Run) -> None:
    """The weights of one process that sees all the data, up to the order of sums."""
    for (name, a), (_, b) in zip(
        run.host.state_dict().items(), single.host.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def a_whole_life_with_a_resume_in_the_middle() -> None:
    file = str(FOLDER / "run.fxgraft")
    run = Run()
    run.train(3)
    seed = run.manager.germinate(SLOT, "mlp", name="a", hidden=8)
    run.manager.germinate("2.relu", "low_rank", name="b", rank=2)
    before = {n: p.clone() for n, p in seed.module.named_parameters()}
    run.train(3)
    assert any(not torch.equal(before[n], p) for n, p in seed.module.named_parameters()), "the seed learns"
    run.manager.blend("a", steps=4)
    run.train(2)
    run.manager.save(file)
    run.train(1)
    dist.barrier()
    again = Run(load=file)
    again.steps = run.steps - 1
    assert again.manager.seeds["a"].alpha > 0
    again.train(1)
    for (name, a), (_, b) in zip(run.tensors(), again.tensors(), strict=True):
        if SIZE == 2:
            assert torch.equal(a, b), f"{name} after a resume"
        else:  # DDP's buckets are others in its first step, and with them the order of sums of three and more
            assert torch.allclose(a, b, atol=1e-6), f"{name} after a resume"
    again.train(2)
    assert again.manager.seeds["a"].stage is Stage.HOLDING
    again.manager.fossilize("a")
    weights = again.manager.seeds["a"].module.state_dict()
    first = {n: t.clone() for n, t in weights.items()}
    again.train(2)  # what is the host's now is averaged as well
    assert any(not torch.equal(first[n], t) for n, t in weights.items())
    again.manager.cull("b")
    again.train(2)
    assert set(again.manager.seeds) == {"a"}


def each_rank_goes_on_with_its_own_random_stream() -> None:
    file = str(FOLDER / "streams.fxgraft")
    run = Run()
    torch.manual_seed(70 + RANK)
    run.train(1)
    run.manager.save(file)
    expected = torch.rand(3)
    dist.barrier()
    torch.manual_seed(0)
    Run(load=file)
    assert torch.equal(torch.rand(3), expected)


def the_result_is_that_of_one_process() -> None:
    run, single = double(True), double(False)
    for each in (run, single):
        each.train(2, same=False)
        each.manager.germinate(SLOT, "mlp", name="a", hidden=8)
        each.train(3, same=False)
        each.manager.blend("a", steps=3)
        each.train(4, same=False)
        each.manager.fossilize("a")
        each.train(2, same=False)
    run.assert_ranks_are_the_same()
    close(run, single)


def the_host_does_not_feel_an_isolated_seed() -> None:
    run, without = Run(), Run()
    run.manager.germinate(SLOT, "mlp", name="a", hidden=8)
    run.train(4)
    without.train(4)
    mine = run.host.state_dict()
    for name, tensor in without.host.state_dict().items():
        assert torch.equal(tensor.view(-1).view(torch.uint8), mine[name].view(-1).view(torch.uint8)), name


def gradients_accumulate_under_no_sync() -> None:
    run, single = double(True), double(False)
    for each in (run, single):
        each.manager.germinate(SLOT, "mlp", name="a", hidden=8)
        each.manager.blend("a", steps=1)
        each.train(2, same=False)
        for _ in range(3):
            if each is run:
                with run.model.no_sync():
                    run.backward()
            else:
                each.backward()
            each.backward()
            each.update()
    run.assert_ranks_are_the_same()
    close(run, single)


def seeds_given_as_modules_begin_with_the_weights_of_rank_0() -> None:
    run = Run()
    torch.manual_seed(1000 + RANK)
    given = nn.Linear(24, 24)
    mine = given.weight.detach().clone()
    run.manager.germinate(SLOT, given, name="a")
    expected = mine.clone()
    dist.broadcast(expected, 0)
    run.train(1)  # whose gradients for the seed are of different weights, and are dropped
    assert torch.equal(given.weight, expected)
    run.train(3)
    if RANK:
        assert not torch.allclose(given.weight, mine, atol=0.05)


def ranks_may_draw_from_streams_of_their_own() -> None:
    torch.manual_seed(500 + RANK)
    host = fxgraft.trace(model(), (torch.zeros(4, 6),))
    del host
    torch.manual_seed(500 + RANK)
    run = Run()
    torch.manual_seed(500 + RANK)
    manager = fxgraft.SeedManager(run.model, run.optimizer)
    run.manager = manager
    dropped = nn.Sequential(nn.Linear(24, 24), nn.Dropout(0.5))
    manager.germinate(SLOT, lambda slot: dropped, name="d")
    manager.germinate(SLOT, "mlp", name="e", hidden=4)
    run.train(3)


def a_seed_with_buffers_keeps_them_equal() -> None:
    run = Run()
    run.manager.germinate(SLOT, nn.Sequential(nn.BatchNorm1d(24), nn.Linear(24, 24)), name="a")
    run.train(3)
    run.manager.blend("a", steps=1)
    run.train(2)


def an_inf_in_one_of_several_accumulated_passes_drops_them_all() -> None:
    run = Run(optimizer=lambda p: torch.optim.SGD(p, 0.1))
    seed = run.manager.germinate(SLOT, "mlp", name="a", hidden=4)
    run.train(1)
    before = [p.detach().clone() for p in seed.module.parameters()]
    factor = float("inf") if RANK == SIZE - 1 else 1.0
    handle = seed.module.register_forward_hook(lambda module, args, out: out * factor)
    with run.model.no_sync():
        run.backward()
    handle.remove()
    run.train(1)
    assert all(torch.equal(p, b) for p, b in zip(seed.module.parameters(), before, strict=True))


class Sometimes(nn.Module):
    """Uses its second layer on rank 0 only."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.always(x) + (self.sometimes(x) if RANK == 0 else 0)


def a_parameter_that_one_rank_does_not_use_counts_as_zero_there() -> None:
    run = Run()
    seed = run.manager.germinate(SLOT, lambda slot: Sometimes(), name="a")
    run.manager.blend("a", steps=1)
    run.train(1)
    before = seed.module.sometimes.weight.detach().clone()
    run.train(2)
    assert not torch.equal(before, seed.module.sometimes.weight)


def an_inf_on_one_rank_drops_the_seeds_gradients_on_all() -> None:
    run = Run()
    events: list[Any] = []
    run.manager._reporter._sinks._sinks = (events.append,)
    seed = run.manager.germinate(SLOT, "mlp", name="a", hidden=4)
    run.train(1)
    before = [p.detach().clone() for p in seed.module.parameters()]
    handle = seed.module.register_forward_hook(
        lambda m, a, out: out * float("inf") if RANK == SIZE - 1 else None
    )
    run.train(1)
    handle.remove()
    for p, b in zip(seed.module.parameters(), before, strict=True):
        assert torch.equal(p, b) or torch.allclose(p, b, atol=1e-3)  # AdamW moves by its moments at most
    run.train(2)
    assert all(bool(torch.isfinite(p).all()) for p in run.host.parameters())


def commands_are_given_to_rank_0_and_done_on_all() -> None:
    run = Run()
    run.train(1)
    if RANK == 0:
        first = run.manager.handle(SEED(slot=SLOT, blueprint="mlp", name="a"))
        assert first.queued
        futures = [run.manager.submit(c) for c in (BLEND(seed="a", steps=2), PAUSE(seed="nobody"))]
        assert not run.manager.seeds
    else:
        refused = run.manager.handle(SEED(slot=SLOT, blueprint="mlp", name="a"))
        assert refused.refused
        assert "rank 0" in refused.reason
        assert run.manager.submit(CULL(seed="a")).result(0).refused
    run.train(1)
    assert run.manager.seeds["a"].stage is Stage.BLENDING
    if RANK == 0:
        assert futures[0].result(0)
        assert futures[1].result(0).refused
    run.train(2)
    if RANK == 0:
        run.manager.handle(CULL(seed="a"))
    run.train(1)
    assert not run.manager.seeds


def several_changes_are_one_act_on_all_ranks() -> None:
    run = Run()
    run.train(1)
    with run.manager.together():
        run.manager.germinate(SLOT, "mlp", name="a")
        run.manager.germinate(SLOT, "mlp", name="b", before="a")
        run.manager.blend("b", steps=0)
    run.train(1)
    assert list(run.manager.seeds) == ["b", "a"]
    with run.manager.together(wait=False):
        run.manager.cull("a")
        run.manager.germinate(SLOT, "mlp", name="c")
    for _ in range(4):
        assert ("a" in run.manager.seeds) is (run.manager.seeds["c"].stage is Stage.GERMINATED)
        run.train(1)  # in which the ranks compare what they have
    assert list(run.manager.seeds) == ["b", "c"]


def stacked() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Sequential(NormedBlock(12), NormedBlock(12)), nn.Linear(12, 3))


def inserted_blocks_are_the_same_on_all_ranks_and_those_of_one_process() -> None:
    runs = [
        Run(wrap, stacked, dtype=torch.float64, optimizer=lambda p: torch.optim.SGD(p, 0.05, 0.9))
        for wrap in (True, False)
    ]
    for run in runs:
        run.train(2, same=run is runs[0])
        with run.manager.together():
            run.manager.deepen("1", 2, optimizer_state="copy", name="zero")
            run.manager.germinate("2", "scale_shift", name="beside", isolated=False)
            run.manager.blend("beside", steps=0)
        run.manager.deepen("1", init="random", at="end", name="random")
        run.manager.deepen("1", init="copy", at="start", blend=2, name="blended")
        run.train(3, same=run is runs[0])
        assert len(run.host.stacks["1"].blocks) == 6
        assert run.manager.seeds["blended"].stage is Stage.HOLDING
    close(*runs)


def sizes_that_are_there_do_not_change() -> None:
    run = Run()
    branch = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 12))
    run.manager.germinate("1.narrow", branch, source="1.norm", name="wing", isolated=False)
    run.manager.blend("wing", steps=0)
    run.train(1)
    run.manager.fossilize("wing")
    sizes = {name: tensor.shape for name, tensor in run.host.state_dict().items()}
    for change in (lambda: run.manager.widen("1.wide", 4), lambda: run.manager.fuse("wing")):
        with pytest.raises(DistributedError, match="wrapped for them"):
            change()
        assert {name: tensor.shape for name, tensor in run.host.state_dict().items()} == sizes
        assert list(run.manager.seeds) == ["wing"]
    run.train(1)


def changes_in_the_background_are_applied_in_the_same_step() -> None:
    def slow(slot: fxgraft.Slot) -> nn.Module:
        time.sleep(0.3 * RANK)  # rank 0 is ready first
        return nn.Linear(24, 24)

    run = Run(prepare=lambda host: host.compile(backend="aot_eager"), helper="auto")
    run.train(2)
    seeds = [
        run.manager.germinate(SLOT, slow, name="a", wait=False),
        run.manager.germinate("2.relu", "mlp", name="b", wait=False),
    ]
    applied: list[int] = []
    deadline = time.monotonic() + 300  # four ranks and their helpers on two cores that others use, too
    while any(seed.stage is Stage.GERMINATED for seed in seeds):
        assert time.monotonic() < deadline
        run.train(1)
        time.sleep(0.05)  # the helpers have a lower priority, and want a core
        if len(applied) < 1 and seeds[0].stage is Stage.TRAINING:
            applied.append(run.steps)
    found: list[Any] = [None] * SIZE
    dist.all_gather_object(found, (applied, [seed.stage for seed in seeds]))
    assert all(each == found[0] for each in found), found
    run.manager.blend("a", steps=2)
    run.train(3)
    run.manager.fossilize("a", wait=False)
    run.manager.cull("b", wait=False)
    while run.manager.seeds["a"].stage is not Stage.FOSSILIZED or run.manager._lifecycle.departing:
        assert time.monotonic() < deadline
        run.train(1)
        time.sleep(0.05)  # the helpers have a lower priority, and want a core
    run.train(1)


def what_fails_on_one_rank_fails_on_all() -> None:
    def factory(slot: fxgraft.Slot) -> nn.Module:
        if RANK == SIZE - 1:
            raise RuntimeError("no memory left here")
        return nn.Linear(24, 24)

    run = Run()
    seed = run.manager.germinate(SLOT, factory, name="a", wait=False)
    deadline = time.monotonic() + 300
    while seed.stage is Stage.GERMINATED:
        assert time.monotonic() < deadline
        run.train(1)
        time.sleep(0.05)  # the helpers have a lower priority, and want a core
    assert seed.stage is Stage.CULLED
    assert not run.manager.seeds
    run.manager.germinate(SLOT, "mlp", name="a")
    run.train(2)


def measurements_and_gates_agree() -> None:
    run = Run()
    run.manager.germinate(SLOT, "mlp", name="a")
    run.train(1)
    x, _ = run.batch()
    found = run.manager.measure("a", lambda: float(RANK) + 0 * run.host(x).sum())
    assert found == 0.0
    assert run.manager.seeds["a"].loss_with == sum(range(SIZE)) / SIZE
    run.train(1)


def shadow_passes_are_averaged() -> None:
    run = Run()
    run.manager.germinate(SLOT, "mlp", name="a", objective="shadow")
    for _ in range(2):
        x, y = run.batch()
        with run.manager.shadow():
            nn.functional.cross_entropy(run.manager.host(x), y).backward()
        run.train(1)


def options_of_ddp(**options: Any) -> None:
    run = Run(ddp=options)
    run.train(2)
    run.manager.germinate(SLOT, "mlp", name="a")
    run.train(2)
    run.manager.blend("a", steps=1)
    run.train(2)
    run.manager.cull("a")
    run.train(1)


def a_trainer_and_its_controller_agree() -> None:
    from fxgraft.training import Trainer, TrainingConfig

    run = Run()
    places = [SEED(slot=SLOT, blueprint="mlp"), SEED(slot="2.relu", blueprint="low_rank")]
    trainer = Trainer(
        run.model,
        run.optimizer,
        nn.functional.cross_entropy,
        TrainingConfig(epochs=3, folder=FOLDER / "trainer", checkpoint_every=4, keep=2, clip_norm=1.0),
        validation=lambda: [run.batch()],
        controller=SideBySide(places, Pace(begin=4, isolate=2, blend=2, hold=1)),
    )

    def batches(epoch: int) -> Any:
        for i in range(6):
            run.steps = 10 * epoch + i
            yield run.batch()

    trainer.fit(batches)
    run.manager = trainer.manager
    assert trainer.manager.seeds
    run.assert_ranks_are_the_same()


def a_rollback_takes_later_checkpoints_away_once() -> None:
    from fxgraft.training import Trainer, TrainingConfig, WatchdogConfig

    run = Run()
    trainer = Trainer(
        run.model,
        run.optimizer,
        nn.functional.cross_entropy,
        TrainingConfig(
            folder=FOLDER / "rollback", checkpoint_every=1, keep=20, watchdog=WatchdogConfig(confirm=4)
        ),
    )
    for step in range(10):
        run.steps = step
        x, y = run.batch()
        trainer.step(x * (float("nan") if step == 8 else 1.0), y)
    assert [at for at, _ in trainer.rollbacks] == [9]
    run.manager = trainer.manager
    run.assert_ranks_are_the_same()


def an_exploration_ranks_alike_on_all_ranks() -> None:
    run = Run()
    exploration = run.manager.explore(
        [SLOT, "2.relu"], evaluate=lambda: held_out(run), steps=4, score=lambda row: row.step_cost
    )
    run.train(4)
    rows = [(row.slot, row.blueprint, row.contribution, row.expected, row.score) for row in exploration.table]
    assert all(score is not None and expected for *_, expected, score in rows[:4]), rows
    assert_all_have(rows)


def it_grows_by_itself_alike_on_all_ranks() -> None:
    run = Run()
    terms: Any = {"when": [0.1, 0.5], "total_steps": 20, "steps": 4, "blend": 2, "hold": 2, "budget": 5.0}
    growth = run.manager.autogrow(lambda: held_out(run), gain=-10.0, **terms)
    run.train(20)
    assert growth.done, growth
    assert any(entry["what"] == "kept" for entry in growth.history), growth
    assert_all_have(growth.history)


def held_out(run: Run) -> Tensor:
    """A loss on data of this rank's own."""
    draw = torch.Generator().manual_seed(900 + RANK)
    x, y = torch.randn(8, 6, generator=draw), torch.randint(0, 3, (8,), generator=draw)
    return nn.functional.cross_entropy(run.host.eval()(x), y)


def assert_all_have(mine: Any) -> None:
    found: list[Any] = [None] * SIZE
    dist.all_gather_object(found, mine)
    assert all(theirs == mine for theirs in found), found


def ranks_that_drift_apart_are_reported() -> None:
    run = Run()
    run.train(1)
    if RANK == 0:
        run.manager.germinate(SLOT, "mlp", name="only_here")
    with pytest.raises(DistributedError) as caught:
        run.train(1, same=False)
    text = str(caught.value)
    assert "Rank 0:" in text
    assert "only_here: mlp at 1.relu, residual, TRAINING" in text
    assert "no seeds" in text


def join_is_refused() -> None:
    run = Run()
    with pytest.raises(DistributedError, match="join"), run.model.join():
        run.train(1, same=False)


def main() -> None:
    with group():
        wanted = sys.argv[2:]
        for case in (
            a_whole_life_with_a_resume_in_the_middle,
            each_rank_goes_on_with_its_own_random_stream,
            the_result_is_that_of_one_process,
            the_host_does_not_feel_an_isolated_seed,
            gradients_accumulate_under_no_sync,
            seeds_given_as_modules_begin_with_the_weights_of_rank_0,
            ranks_may_draw_from_streams_of_their_own,
            a_seed_with_buffers_keeps_them_equal,
            a_parameter_that_one_rank_does_not_use_counts_as_zero_there,
            an_inf_on_one_rank_drops_the_seeds_gradients_on_all,
            an_inf_in_one_of_several_accumulated_passes_drops_them_all,
            commands_are_given_to_rank_0_and_done_on_all,
            several_changes_are_one_act_on_all_ranks,
            inserted_blocks_are_the_same_on_all_ranks_and_those_of_one_process,
            sizes_that_are_there_do_not_change,
            changes_in_the_background_are_applied_in_the_same_step,
            what_fails_on_one_rank_fails_on_all,
            measurements_and_gates_agree,
            shadow_passes_are_averaged,
            a_trainer_and_its_controller_agree,
            a_rollback_takes_later_checkpoints_away_once,
            an_exploration_ranks_alike_on_all_ranks,
            it_grows_by_itself_alike_on_all_ranks,
        ):
            if not wanted or case.__name__ in wanted:
                case()
                say(case.__name__)
        if wanted:
            return
        for options in (
            {"static_graph": True},
            {"find_unused_parameters": True},
            {"gradient_as_bucket_view": True},
        ):
            options_of_ddp(**options)
            say(f"options_of_ddp {next(iter(options))}")
        join_is_refused()
        say("join_is_refused")
        ranks_that_drift_apart_are_reported()  # the last: the ranks are apart then
        say("ranks_that_drift_apart_are_reported")


if __name__ == "__main__":
    main()
