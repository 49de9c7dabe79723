"""The memory of a training step with live seeds, against the same network written by hand.

Measured in bytes that torch's allocator hands out, which is exact and the same in every run: what is
alive before a step (parameters, gradients, state of the optimizer, buffers), and on top of it the highest
point within the step, from the allocator's events as `torch.profiler` reports them. Resident memory would
be blurred by what the allocator of the C library keeps, and by the 200 MiB that torch itself takes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import accumulate

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.bench_seeds import FEW, SEEDS, STAGES, grown, twin
from benchmarks.budgets import PEAK
from benchmarks.modes import Mode
from benchmarks.rows import Row, Spread
from benchmarks.settings import Settings
from benchmarks.workloads import Trainer, Workload

WARM_UP = 3
MEASURED = "measured step"
Contender = Callable[[Workload, Mode, int, str], Trainer]


def rows(settings: Settings) -> Iterator[Row]:
    """One for each workload, mode, number of seeds and stage."""
    wanted = [("MLP-12", "eager")] if settings.quick else [("*", "eager"), ("MLP-12", "inductor")]
    for workload, mode in settings.pairs(*wanted):
        for k in SEEDS if mode.name == "eager" else FEW:
            for stage in STAGES:
                yield _compare(workload, mode, k, stage)


def _compare(workload: Workload, mode: Mode, k: int, stage: str) -> Row:
    ours, theirs = (_mebibytes(workload, mode, k, stage, side) for side in (alone, by_hand_alone))
    what = f"peak of a step, {k} {stage} seed{'s' * (k > 1)}"
    ratio = Spread.exactly(ours / theirs)
    where = ("memory", workload.name, mode.name)
    return Row(*where, what, "by hand", ratio, "x", PEAK, (ours, theirs), "MiB")


def _mebibytes(workload: Workload, mode: Mode, k: int, stage: str, side: Contender) -> float:
    floor = alive()
    return (peak(side(workload, mode, k, stage).step) - floor) / 2**20


def alone(workload: Workload, mode: Mode, k: int, stage: str) -> Trainer:
    """A host with ``k`` seeds."""
    return grown(workload, mode, k, stage)[0]


def by_hand_alone(workload: Workload, mode: Mode, k: int, stage: str) -> Trainer:
    """The same by hand; of the host that it is a copy of nothing is left, or it would be counted here."""
    _, manager = grown(workload, mode, k, stage)
    trainer = twin(workload, mode, stage, manager)
    manager.cull_all()
    return trainer


def peak(step: Callable[[], object]) -> int:
    """Bytes: those of all tensors that are alive before ``step``, and its highest point above that."""
    for _ in range(WARM_UP):
        step()
    before = alive()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()  # the profiler has to see blocks come, or it does not tell when they go
        with record_function(MEASURED):
            step()
    events = sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    began = next(event.start_ns() for event in events if event.name() == MEASURED)
    sizes = [e.nbytes() for e in events if e.name() == "[memory]" and e.start_ns() >= began]
    return before + max(accumulate(sizes, initial=0))


def alive() -> int:
    """The bytes of all tensors in the process, each memory counted once. A compiler's have none."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    tensors = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    storages = {}
    for tensor in tensors:
        if tensor.device.type == "cpu" and tensor.layout is torch.strided:
            with suppress(RuntimeError):  # a tensor of a compiler has no memory
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())
