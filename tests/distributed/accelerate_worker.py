"""Accelerate on several processes: each rank its own batches, one run. Started by test_accelerate_ddp.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from fxgraft import Stage
from tests.distributed.ranks import RANK, SIZE, say
from tests.harness import assert_same_bits
from tests.integrations.test_accelerate import Job

FOLDER = Path(sys.argv[1])
RESUMES_AT = 9
"""In the middle of a ramp."""


def the_ranks_are_one_run() -> None:
    job = Job()
    assert isinstance(job.host, nn.parallel.DistributedDataParallel)
    job.train(range(20), RANK)
    for name, value in {**job.weights(), **job.optimizer_state()}.items():
        there = [torch.empty_like(value) for _ in range(SIZE)]
        dist.all_gather(there, value.contiguous())
        assert_same_bits(there, [there[0]] * SIZE, name)


def a_resumed_run_is_the_whole_one() -> None:
    folder = str(FOLDER / "state")
    whole = Job()
    whole.train(range(RESUMES_AT), RANK)
    whole.accelerator.save_state(folder)
    whole.train(range(RESUMES_AT, 20), RANK)
    whole.accelerator.wait_for_everyone()
    resumed = Job()
    resumed.accelerator.load_state(folder)
    assert resumed.growth.manager.seeds["z"].stage is Stage.BLENDING
    resumed.train(range(RESUMES_AT, 20), RANK)
    assert resumed.growth.manager.seeds["z"].stage is Stage.HOLDING
    assert_same_bits(resumed.weights(), whole.weights(), "resumed and whole")
    assert_same_bits(resumed.optimizer_state(), whole.optimizer_state(), "optimizer state")


def main() -> None:
    for case in (the_ranks_are_one_run, a_resumed_run_is_the_whole_one):
        case()
        say(case.__name__)
    sys.stdout.flush()
    os._exit(0)  # see ranks.group


if __name__ == "__main__":
    main()
