"""Saves and loads a sharded run. Started by test_dcp.py, on another number of ranks each time.

dcp_worker.py FOLDER save | load
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from fxgraft import Stage
from fxgraft.errors import CheckpointError
from tests.distributed.fsdp_run import Run, assert_close, assert_same
from tests.distributed.ranks import RANK, SIZE, group, say

FOLDER = Path(sys.argv[1])
WHERE = str(FOLDER / "run")


def sgd(parameters):  # type: ignore[no-untyped-def]
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


def a_run_saved_in_the_middle() -> None:
    run = Run(dtype=torch.float64, optimizer=sgd)
    run.train(2)
    run.manager.germinate("1.relu", "mlp", name="a", hidden=8)
    run.manager.germinate("2.relu", "low_rank", name="old", rank=2)
    run.manager.blend("old", steps=1)
    run.train(1)
    run.manager.fossilize("old")
    run.manager.blend("a", steps=6)
    run.train(2)
    with torch.no_grad():
        run.host(run.batch()[0])  # leaves the host's own parameters gathered
    run.manager.save(WHERE)
    _remember(run, "saved")
    run.train(3)
    _remember(run, "later")


def it_goes_on_on_other_ranks() -> None:
    run = Run(dtype=torch.float64, optimizer=sgd, load=WHERE)
    run.steps = 5
    assert {n: s.stage for n, s in run.manager.seeds.items()} == {
        "a": Stage.BLENDING,
        "old": Stage.FOSSILIZED,
    }
    for parameter, state in run.optimizer.state.items():
        assert state["momentum_buffer"].placements == parameter.placements, "sharded again, not whole on each"
    assert_same(run.weights(), load_file(FOLDER / "saved"))
    run.train(3)
    later = load_file(FOLDER / "later")
    if SIZE == 2:
        assert_same(run.weights(), later)
    assert_close(run.weights(), later)


def saving_again_replaces_what_was_there() -> None:
    run = Run(dtype=torch.float64, optimizer=sgd, load=WHERE)
    run.steps = 5
    run.train(1)
    again = FOLDER / f"again{SIZE}"
    run.manager.save(again)
    run.train(1)
    run.manager.save(again)
    found = [path for path in again.iterdir() if path.is_dir()]
    assert [path.name for path in found] == [(again / "current").read_text()]
    assert not [
        p for p in again.rglob("*") if p.is_file() and (p.name == ".metadata" or p.suffix == ".distcp")
    ]
    expected = run.weights()
    other = Run(dtype=torch.float64, optimizer=sgd, load=str(again))
    assert_same(other.weights(), expected)
    dist.barrier()


def a_failed_save_leaves_the_one_before() -> None:
    run = Run(dtype=torch.float64, optimizer=sgd, load=WHERE)
    where = FOLDER / f"kept{SIZE}"
    run.manager.save(where)
    kept = (where / "current").read_text()
    save_shards, run.manager._saver._save_shards = run.manager._saver._save_shards, _raise
    with pytest.raises(CheckpointError, match="rank 0: OSError: no space"):
        run.manager.save(where)
    run.manager._saver._save_shards = save_shards
    assert (where / "current").read_text() == kept
    assert [path.name for path in where.iterdir() if path.is_dir()] == [kept]
    dist.barrier()


def damaged_and_foreign_folders_are_refused() -> None:
    with pytest.raises(CheckpointError, match="expected the folder of a sharded run"):
        Run(dtype=torch.float64, optimizer=sgd, load=str(FOLDER / "nothing"))
    with pytest.raises(CheckpointError, match="another host"):
        Run(dtype=torch.float32, optimizer=sgd, load=WHERE)
    run = Run(dtype=torch.float64, optimizer=sgd, load=WHERE)
    broken = FOLDER / f"broken{SIZE}"
    run.manager.save(broken)
    if RANK == 0:
        shards = broken / (broken / "current").read_text() / "shards"
        sorted(shards.iterdir())[-1].unlink()
    dist.barrier()
    with pytest.raises(CheckpointError, match="a file"):
        Run(dtype=torch.float64, optimizer=sgd, load=str(broken))
    dist.barrier()  # all have read it
    if RANK == 0:
        (broken / "current").write_text("../../elsewhere")
    dist.barrier()
    with pytest.raises(CheckpointError, match="names no folder"):
        Run(dtype=torch.float64, optimizer=sgd, load=str(broken))


def _raise(run: object) -> None:
    raise OSError("no space left on device")


def _remember(run: Run, name: str) -> None:
    weights = {n: t.contiguous() for n, t in run.weights().items()}
    if RANK == 0:
        save_file(weights, FOLDER / name)
    dist.barrier()


def main() -> None:
    saves = sys.argv[2] == "save"
    for case in (
        (a_run_saved_in_the_middle,)
        if saves
        else (
            it_goes_on_on_other_ranks,
            saving_again_replaces_what_was_there,
            a_failed_save_leaves_the_one_before,
            damaged_and_foreign_folders_are_refused,
        )
    ):
        case()
        say(case.__name__)


if __name__ == "__main__":
    with group():
        main()
        gc.collect()  # what holds groups goes before they are destroyed
        dist.barrier()
