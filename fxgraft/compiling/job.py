"""A job for the helper: the code that a structure lacks, made there and taken in here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxgraft.compiling import artifacts
from fxgraft.compiling.artifacts import Loading
from fxgraft.compiling.calls import CallKind
from fxgraft.compiling.helper import Helper, Send
from fxgraft.compiling.units import Unit
from fxgraft.compiling.variants import Variant, own_code
from fxgraft_passes import Phase


@dataclass(frozen=True)
class Task:
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
        """The helper cannot: dynamo compiles such calls when they come, or the variant is not used."""
        if self.is_extra:
            self.variant.given_up = True
        else:
            self.variant.leave_to_dynamo(self.kind)


Install = Callable[[Phase], AbstractContextManager[Any]]
"""Puts the structure in a phase into the modules of the host."""


class Job:
    """Artifacts in the making.

    Args:
        tasks: in the order of their urgency.
        options: of ``torch.compile``.
        prepare: run first in the helper: brings the structure into the host there; returns what
            installs it in a phase, and the modules beside the units that follow train and eval mode.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        options: Mapping[str, Any],
        prepare: Callable[[], tuple[Install, Iterable[nn.Module]]],
    ):
        self._tasks = tasks
        self._unanswered = set(range(len(tasks)))
        self.failed: dict[int, str] = {}
        self._loading: tuple[int, Loading] | None = None
        self._helper = Helper(lambda send: _make(tasks, options, prepare, send), self._decode)

    def _decode(
        self, message: tuple[int, bytes | None, str | None]
    ) -> tuple[int, Loading | None, str | None]:
        index, data, error = message
        if data is None:
            return index, None, error
        try:
            with _short_turns():
                return index, Loading(data, self._tasks[index].kind), None
        except Exception as reason:
            return index, None, _told(reason)

    def take(self) -> None:
        """Go on with what has arrived, by one part: a step must not wait for more."""
        if self._loading is None:
            message = self._helper.receive()
            if message is None:
                return
            index, loading, error = message
            if loading is None:
                self._answer(index, error)
                return
            self._loading = index, loading
            return
        index, loading = self._loading
        try:
            artifact = loading.advance()
        except Exception as error:  # what torch cannot load, it can still compile
            self._loading = None
            self._answer(index, _told(error))
            return
        if artifact is not None:
            self._loading = None
            task = self._tasks[index]
            task.variant.add(task.kind, artifact)
            self._answer(index)

    def _answer(self, index: int, error: str | None = None) -> None:
        self._unanswered.discard(index)
        if error is not None:
            self.failed[index] = error

    @property
    def is_ready(self) -> bool:
        """Whether every required task was answered."""
        return not any(self._tasks[i].is_required for i in self._unanswered)

    @property
    def is_whole(self) -> bool:
        """Whether no required task has failed."""
        return self.is_ready and not any(self._tasks[i].is_required for i in self.failed)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return not self._unanswered or (self._loading is None and self._helper.is_over)

    @property
    def failure(self) -> str | None:
        """Why tasks stay unanswered; None if there are none, or the helper goes on."""
        if not self._unanswered or self._loading is not None or not self._helper.is_over:
            return None
        return self._helper.failure or "the helper process ended early"

    def leave_rest(self) -> None:
        """Do without what was not made."""
        for index in (*self._unanswered, *self.failed):
            self._tasks[index].leave()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the helper has sent all."""
        self._helper.join(timeout)

    def stop(self) -> None:
        """End the helper."""
        self._helper.stop()


def _make(
    tasks: Sequence[Task],
    options: Mapping[str, Any],
    prepare: Callable[[], tuple[Install, Iterable[nn.Module]]],
    send: Send,
) -> None:
    """In the helper: compile, and send ``(index, bytes, None)`` or ``(index, None, reason)``."""
    torch._inductor.config.compile_threads = 1  # the trainer's pool of compile workers was not forked
    install, others = prepare()
    for index, task in enumerate(tasks):
        try:
            with install(task.phase):
                data = artifacts.build(own_code(), task.unit.module, task.kind, options, *others)
        except Exception as error:
            send((index, None, _told(error)))
        else:
            send((index, data, None))


@contextmanager
def _short_turns() -> Iterator[None]:
    """Let other threads have the interpreter every half millisecond: a step takes it back many times.

    With the usual five milliseconds, one step would wait for most of what this thread does.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(min(usual, 5e-4))
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
