"""Acts that fail on one of several ranks, and growth of a sharded host. Started by test_acts.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

import fxgraft
from fxgraft import SeedManager
from fxgraft.errors import DistributedError
from tests.distributed.fsdp_run import gathered
from tests.distributed.ranks import RANK, SIZE, NormedBlock, Run, group, say

FAILING = SIZE - 1


def _stacked() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Sequential(NormedBlock(12), NormedBlock(12)), nn.Linear(12, 3))


def _begun() -> Run:
    run = Run(make=_stacked)
    run.train(1)
    run.manager.germinate("2", "scale_shift", name="old", isolated=False)
    run.train(1)
    return run


def act(run: Run, wait: bool = True) -> None:
    with run.manager.together(wait=wait):
        run.manager.deepen("1", init="copy", at="end", name="block")
        run.manager.germinate("1.0.relu", "mlp", hidden=4, name="new")
        run.manager.cull("old")


def state(run: Run) -> dict[str, Any]:
    tensors = {name: tensor.clone() for name, tensor in run.tensors()}
    return {**tensors, "seeds": [(name, seed.stage) for name, seed in run.manager.seeds.items()]}


def assert_is(run: Run, before: dict[str, Any]) -> None:
    now = state(run)
    assert now.keys() == before.keys(), now.keys() ^ before.keys()
    for name, value in before.items():
        assert torch.equal(now[name], value) if isinstance(value, torch.Tensor) else now[name] == value, name


def _late(*_: object) -> None:
    raise MemoryError("no memory left here")


def failing_here(patch: pytest.MonkeyPatch, run: Run) -> None:
    """On the last rank: as the new seeds join the optimizer, where all else is done."""
    if RANK == FAILING:
        patch.setattr(run.manager.registry, "join", _late)


def an_act_that_fails_on_one_rank_is_reported_on_all() -> None:
    """There it is undone; the others have made it, and no rank trains on."""
    run = _begun()
    before = state(run)
    with pytest.MonkeyPatch.context() as patch:
        failing_here(patch, run)
        if RANK == FAILING:
            with pytest.raises(MemoryError):
                act(run)
            assert_is(run, before)
        else:
            act(run)
            assert list(run.manager.seeds) == ["block", "new"]
    assert_all_raise(run)


def an_act_that_fails_on_one_rank_in_the_background_is_reported_on_all() -> None:
    run = _begun()
    before = state(run)
    with pytest.MonkeyPatch.context() as patch:
        failing_here(patch, run)
        act(run, wait=False)
        with pytest.raises(DistributedError, match="drifted apart"):
            run.train(20, same=False)
    assert ("block" in run.manager.seeds) is (RANK != FAILING)
    assert RANK != FAILING or [s for s, _ in state(run)["seeds"]] == [s for s, _ in before["seeds"]]


def an_act_that_cannot_be_prepared_on_one_rank_is_given_up_on_all() -> None:
    run = _begun()
    before = state(run)["seeds"]
    act(run, wait=False)
    with pytest.MonkeyPatch.context() as patch:
        if RANK == FAILING:
            patch.setattr("fxgraft.manager._preparing.Preparing._grafts", _late)
        for _ in range(20):
            run.train(1)
    assert state(run)["seeds"] == before
    assert "block" not in run.manager.seeds
    act(run)
    run.train(1)


def an_act_that_fails_on_all_ranks_is_as_if_it_was_not_there() -> None:
    runs = [_begun(), _begun()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs[0].manager.registry, "join", _late)
        with pytest.raises(MemoryError):
            act(runs[0])
    for run in runs:
        run.train(2)
    assert_is(runs[0], state(runs[1]))
    for run in runs:
        act(run)
        run.train(2)
    assert_is(runs[0], state(runs[1]))


def assert_all_raise(run: Run) -> None:
    with pytest.raises(DistributedError) as caught:
        run.train(1, same=False)
    text = str(caught.value)
    assert "drifted apart" in text
    assert "block: NormedBlock" in text
    assert "old: scale_shift" in text


class Sharded:
    """A host that ``fully_shard`` has sharded: each block by itself, or all as one; or whole on each rank."""

    def __init__(self, how: str, prepare: Callable[[fxgraft.Host], object] = lambda host: None):
        self.host = fxgraft.trace(_stacked(), (torch.zeros(4, 6),))
        prepare(self.host)
        if how != "whole":
            for name in ("1.0", "1.1") if how == "blocks" else ():
                fully_shard(self.host.get_submodule(name))
            fully_shard(self.host)
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.manager = SeedManager(self.host, self.optimizer, check_every=0) if how != "whole" else None

    def train(self) -> None:
        """The same data on each rank: what is averaged is what one process has."""
        draw = torch.Generator().manual_seed(3)
        for _ in range(3):
            self.optimizer.zero_grad()
            self.host(torch.randn(4, 6, generator=draw)).square().mean().backward()
            self.optimizer.step()
            if self.manager is not None:
                self.manager.step()

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: gathered(tensor) for name, tensor in self.host.state_dict().items()}


def a_host_that_grew_before_it_was_sharded_trains_as_one_process() -> None:
    def grow(host: fxgraft.Host) -> None:
        manager = SeedManager(host, check_every=0)
        manager.deepen("1", init="copy", name="block")
        torch.manual_seed(1)
        manager.germinate("2", nn.Linear(3, 3), name="fossil", isolated=False)
        manager.fossilize("fossil")

    single = Sharded("whole", grow)
    single.train()
    for how in ("blocks", "one"):
        run = Sharded(how, grow)
        run.train()
        for name, value in run.weights().items():
            torch.testing.assert_close(value, single.weights()[name])


def deepening_a_sharded_host_is_refused_by_name() -> None:
    """Also between its forward and its backward pass, where all its parameters are whole."""
    for how in ("blocks", "one"):
        run = Sharded(how)
        run.train()
        before = run.weights()
        for is_after_forward in (False, True):
            for change in (_deepen, _in_an_act):
                if is_after_forward:
                    run.host(torch.ones(4, 6))
                with pytest.raises(DistributedError, match=r"sharded.*Deepen it before fully_shard"):
                    change(run.manager)
                assert not run.manager.seeds
                assert not run.host.structure.placements
        after = run.weights()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
        run.train()


def _deepen(manager: SeedManager) -> None:
    manager.deepen("1")


def _in_an_act(manager: SeedManager) -> None:
    with manager.together():
        manager.germinate("0", "mlp", hidden=4)
        manager.deepen("1", at="end", init="copy")


def main() -> None:
    for case in (
        an_act_that_fails_on_one_rank_is_reported_on_all,
        an_act_that_fails_on_one_rank_in_the_background_is_reported_on_all,
        an_act_that_cannot_be_prepared_on_one_rank_is_given_up_on_all,
        an_act_that_fails_on_all_ranks_is_as_if_it_was_not_there,
        a_host_that_grew_before_it_was_sharded_trains_as_one_process,
        deepening_a_sharded_host_is_refused_by_name,
    ):
        case()
        say(case.__name__)


if __name__ == "__main__":
    with group():
        main()
