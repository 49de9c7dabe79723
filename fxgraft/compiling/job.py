"""A job for the compiler process: code that a structure lacks is compiled there, and loaded here."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxgraft.compiling._artifacts import Loading
from fxgraft.compiling._calls import CallKind
from fxgraft.compiling._payload import pack
from fxgraft.compiling._torch_settings import TorchSettings
from fxgraft.compiling._worker import Order, describe_error
from fxgraft.compiling.forwards import Forwards
from fxgraft.compiling.helper import HelperRun
from fxgraft.compiling.units import Unit
from fxgraft.compiling.variants import Variant
from fxgraft_passes import Phase


@dataclass(frozen=True)
class CompileTask:
    """One artifact to make.

    Attributes:
        unit: what to compile.
        variant: what the artifact is for.
        phase: the forward.
        kind: the call.
        is_required: whether the structure has to wait for it.
        is_extra: whether the host can do without the variant.
    """

    unit: Unit
    variant: Variant
    phase: Phase
    kind: CallKind
    is_required: bool = True
    is_extra: bool = False

    def leave(self) -> None:
        """The process cannot make it: dynamo compiles such calls as they come, or the variant is not used."""
        if self.is_extra:
            self.variant.given_up = True
        else:
            self.variant.leave_to_dynamo(self.kind)


class Job:
    """The artifacts that the compiler process makes for one structure.

    Args:
        tasks: in the order of their urgency.
        options: of ``torch.compile``.
        forwards: what the structure puts into the modules of regions, in each phase of the tasks.
        others: further modules whose train and eval mode the code depends on.

    Raises:
        NotSendableError: something cannot be given to another process.
    """

    def __init__(
        self,
        tasks: Sequence[CompileTask],
        options: Mapping[str, Any],
        forwards: Mapping[Phase, Forwards],
        others: Sequence[nn.Module],
    ):
        self._tasks = tasks
        self._unanswered = set(range(len(tasks)))
        self.failed: dict[int, str] = {}
        self._loading: tuple[int, Loading] | None = None
        self._arrived = 0
        self._was_ready = False
        units = list(dict.fromkeys(task.unit for task in tasks))
        modules = [unit.module for unit in units]
        order = Order(
            TorchSettings.here(),
            options,
            modules,
            [(units.index(task.unit), task.phase, task.kind) for task in tasks],
            forwards,
            others,
        )
        self._run = HelperRun(pack(order, (*modules, *others)), self._decode)

    def _decode(
        self, message: tuple[int | None, bytes | None, str | None]
    ) -> tuple[int | None, Loading | None, str | None]:
        self._arrived += 1
        index, data, error = message
        if data is None or index is None:
            return index, None, error
        try:
            with _frequent_thread_switches():
                return index, Loading(data, self._tasks[index].kind), None
        except Exception as reason:
            return index, None, describe_error(reason)

    def take(self) -> bool:
        """Go on with what has arrived, by one part: a step must not wait for more. Returns whether it did."""
        if self._loading is None:
            message = self._run.receive()
            if message is None:
                return False
            index, loading, error = message
            if loading is None:
                self._answer([index] if index is not None else list(self._unanswered), error)
                return True
            self._loading = index, loading
            return True
        index, loading = self._loading
        try:
            artifact = loading.advance()
        except Exception as error:  # what torch cannot load, it can still compile
            self._loading = None
            self._answer([index], describe_error(error))
            return True
        if artifact is not None:
            self._loading = None
            task = self._tasks[index]
            task.variant.add(task.kind, artifact)
            self._answer([index])
        return True

    def _answer(self, indices: Iterable[int], error: str | None = None) -> None:
        for index in indices:
            self._unanswered.discard(index)
            if error is not None:
                self.failed[index] = error

    @property
    def has_arrived(self) -> bool:
        """Whether `take` has something to go on with."""
        return self._loading is not None or self._run.has_messages

    @property
    def is_ready(self) -> bool:
        """Whether every required task was answered, and nothing waited to be loaded then.

        Once it is, it stays so, whatever comes after that: other ranks have been notified.
        """
        if not self._was_ready and self._loading is None and not self._run.has_messages:
            self._was_ready = not any(self._tasks[i].is_required for i in self._unanswered)
        return self._was_ready

    @property
    def has_all_required(self) -> bool:
        """Whether no required task has failed."""
        return self.is_ready and not any(self._tasks[i].is_required for i in self.failed)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return not self._unanswered or (self._loading is None and self._run.is_over)

    @property
    def unavailable(self) -> str | None:
        """Why there is no compiler process, where that is so."""
        return self._run.unavailable if self._unanswered and self._run.is_over else None

    @property
    def failure(self) -> str | None:
        """Why tasks stay unanswered; None if there are none, or the compiler process goes on."""
        if not self._unanswered or self._loading is not None or not self._run.is_over:
            return None
        return self._run.failure or "the compiler process ended early"

    def leave_rest(self) -> None:
        """Do without what was not made."""
        for index in (*self._unanswered, *self.failed):
            self._tasks[index].leave()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the compiler process has sent all."""
        self._run.join(timeout)

    def stop(self) -> None:
        """End it, and the process with it where that is still at it."""
        if self._arrived < len(self._tasks):
            self._run.stop()


@contextmanager
def _frequent_thread_switches() -> Iterator[None]:
    """Switch threads every half millisecond inside, so that a step is not held up.

    With the usual five milliseconds, one step would wait for most of what this thread does.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(min(usual, 5e-4))
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
