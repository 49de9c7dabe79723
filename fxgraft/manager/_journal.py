"""What sinks receive every N training steps: the steps themselves, what was compiled, and the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fxgraft.host.compile_report import VariantReport, compile_report
from fxgraft.host.host import Host
from fxgraft.manager.reporter import Reporter
from fxgraft.telemetry import logger
from fxgraft.util.losses import mean_loss


class StepRecords:
    """The losses and times of the training steps since they were last taken."""

    def __init__(self) -> None:
        self._losses: list[float | Tensor | None] = []
        self._milliseconds: list[float | None] = []
        self._before: float | None = None

    def step(self, loss: float | Tensor | None) -> None:
        """A training step ends. Does not wait for the device."""
        now = time.perf_counter()
        self._milliseconds.append(None if self._before is None else (now - self._before) * 1e3)
        # A copy: the loss of a CUDA graph is overwritten by the next step.
        self._before = now
        self._losses.append(None)  # should what follows fail: losses and times stay in step
        if loss is not None:
            mean = mean_loss(loss)
            self._losses[-1] = mean.clone() if isinstance(mean, Tensor) else mean

    def take(self) -> dict[str, Any]:
        """``loss``: of each step, or None where it was not given. ``ms``: since the step before."""
        losses, self._losses = self._losses, []
        milliseconds, self._milliseconds = self._milliseconds, []
        tensors = [loss for loss in losses if isinstance(loss, Tensor)]
        values = iter(torch.stack(tensors).tolist() if tensors else ())  # waits for the device once
        return {
            "loss": [next(values) if isinstance(loss, Tensor) else loss for loss in losses],
            "ms": milliseconds,
        }


class CompileWatch:
    """Tells what was compiled since it last looked."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._known: dict[str, VariantReport] = {}
        self.recent()  # what is there already was compiled in another run

    def recent(self) -> list[VariantReport]:
        """The variants for which something was compiled, or that had to run uncompiled."""
        if self._host.compiled is None:
            return []
        rows = compile_report(self._host).variants
        recent = [row for row in rows if _work(row) != _work(self._known.get(row.label))]
        self._known = {row.label: row for row in rows}
        return recent


class Journal:
    """Emits the events ``steps``, ``compiled`` and ``metrics``.

    Args:
        host: what is compiled.
        reporter: counts the steps, and takes the events.
        metrics: gives their values.
        every: training steps between two entries; 0 for none.
    """

    def __init__(self, host: Host, reporter: Reporter, metrics: Callable[[], dict[str, Any]], every: int):
        self._host, self._reporter, self._metrics, self._every = host, reporter, metrics, every
        self._pace = StepRecords()
        self._compiles = CompileWatch(host) if every else None

    @property
    def is_kept(self) -> bool:
        """Whether there are entries at all."""
        return bool(self._every)

    def step(self, loss: float | Tensor | None) -> None:
        """After each training step. What goes wrong here is logged, and never changes training."""
        if not self._every:
            return
        try:
            self._note(loss)
        except Exception:
            logger.exception("the journal of step %d failed", self._reporter.step)

    def _note(self, loss: float | Tensor | None) -> None:
        self._pace.step(loss)
        if self._reporter.step % self._every:
            return
        parameters = sum(parameter.numel() for parameter in self._host.host_parameters())
        self._reporter.emit("steps", **self._pace.take(), parameters=parameters)
        for row in self._compiles.recent() if self._compiles else ():
            self._reporter.emit("compiled", **asdict(row))
        self._reporter.emit("metrics", **self._metrics())


def _work(row: VariantReport | None) -> tuple[int, int, int]:
    return (row.graphs, row.artifacts, row.uncompiled_calls) if row else (0, 0, 0)
