"""The compiler process: a fresh interpreter that compiles, job after job, until the trainer is gone.

`fxgraft.compiling.helper` starts it, by `main`. It is given parcels without weights:
``("do", job, bytes)``; ``("leave", job)`` takes that back. It answers ``("ready",)`` first, then
``("made", job, index, bytes)`` or ``("failed", job, index, reason)`` for each task of a job
(``("unread", job, reason)`` for all of them), and ``("over", job)``.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from torch import nn

from fxgraft import _torch
from fxgraft.compiling import _artifacts
from fxgraft.compiling._by_value import arriving
from fxgraft.compiling._calls import CallKind
from fxgraft.compiling._payload import unpack
from fxgraft.compiling._torch_settings import TorchSettings
from fxgraft.compiling.forwards import Forwards, installed
from fxgraft.compiling.variants import own_code
from fxgraft_passes import Phase, devices

_NICENESS = 5
"""Where a core is free no niceness shows in the trainer's steps. Where training keeps every core busy this is
a quarter of one for the compiler; at 19 it got nothing (a germination of 10 s was not live after 200)."""

_LOOK_AFTER_TRAINER = 1.0  # seconds


@dataclass(frozen=True)
class Order:
    """What one job is to make.

    Attributes:
        torch_settings: the trainer's settings.
        options: of ``torch.compile``.
        modules: of the units.
        tasks: for each the number of its module, the forward, and the call.
        forwards: forward -> what it puts into the regions' modules.
        others: further modules that follow train and eval mode.
    """

    torch_settings: TorchSettings
    options: Mapping[str, Any]
    modules: Sequence[nn.Module]
    tasks: Sequence[tuple[int, Phase, CallKind]]
    forwards: Mapping[Phase, Forwards]
    others: Sequence[nn.Module]


def main(read: int, write: int, trainer: int) -> None:
    """Work until the trainer is gone.

    Args:
        read: the descriptor that jobs come from.
        write: that of the answers.
        trainer: the number of the process that started this one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # is for the trainer, which stops this process
    warnings.simplefilter("ignore")  # the trainer has warned, or does when it compiles
    os.nice(_NICENESS)
    _use_every_core()
    _torch.import_compiler()
    incoming, outgoing = Connection(read, writable=False), Connection(write, readable=False)
    jobs: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
    left: set[int] = set()
    threading.Thread(target=_listen, args=(incoming, jobs, left, trainer), daemon=True).start()
    outgoing.send(("ready",))
    while True:
        job, data = jobs.get()
        _carry_out(job, data, left, outgoing)
        _clean_up()
        with suppress(OSError):  # what was printed is for the failure of the next job
            os.ftruncate(2, 0)


def _clean_up() -> None:
    """After a job: of that nothing is kept."""
    gc.collect()
    devices.free_memory()  # which the trainer may need


def _use_every_core() -> None:
    """A trainer that is pinned pins what it starts: the compiler is to have what the machine lets it have."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_setaffinity"):
        with suppress(OSError):
            os.sched_setaffinity(0, range(cores))
        cores = len(os.sched_getaffinity(0))
    if cores <= 2:  # one trains: a pool of processes that compile costs more than it brings
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def _listen(
    incoming: Connection, jobs: queue.SimpleQueue[tuple[int, bytes]], left: set[int], trainer: int
) -> None:
    """Take jobs in, and end with the trainer: its end of the pipe is closed, or this process is an orphan."""
    try:
        while os.getppid() == trainer:
            if incoming.poll(_LOOK_AFTER_TRAINER):
                what, job, *data = incoming.recv()
                if what == "leave":
                    left.add(job)
                else:
                    jobs.put((job, *data))
    finally:
        os.killpg(0, signal.SIGKILL)  # with the compilers that it has started


def _carry_out(job: int, data: bytes, left: set[int], outgoing: Connection) -> None:
    with arriving():
        try:
            order: Order = unpack(data)
        except Exception as error:
            outgoing.send(("unread", job, describe_error(error)))
        else:
            with order.torch_settings.applied():
                for index in range(len(order.tasks)):
                    if job not in left:
                        outgoing.send(_made(job, index, order))
        outgoing.send(("over", job))
        left.discard(job)
        _torch.forget_compilations()


def _made(job: int, index: int, order: Order) -> tuple[Any, ...]:
    number, phase, kind = order.tasks[index]
    try:
        with installed(order.forwards[phase]):
            data = _artifacts.build(own_code(), order.modules[number], kind, order.options, *order.others)
    except Exception as error:
        return "failed", job, index, describe_error(error)
    return "made", job, index, data


def describe_error(error: BaseException) -> str:
    """The class and the message of an error."""
    return f"{type(error).__name__}: {error}"
