"""Ctrl-C at any moment: a change is complete, or it has not happened.

Inside `delay_interrupts` an interrupt waits until the block is over. Inside `interruptible`, where something
may take long (a user's code, a compiler) and can be undone, it is raised at once. Only SIGINT in the main
thread is handled, and only where its handler is a Python function, as by default.
"""

from __future__ import annotations

# What the module signal wraps: there, making enums takes most of the time, at each step.
import _signal as signal  # type: ignore[import-not-found]
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Handler = Callable[[int, FrameType | None], Any]


class _Waiting:
    """The block that holds interrupts back, and those that came."""

    def __init__(self, handler: Handler):
        self.handler = handler
        self.to_the_end = False
        self.came: list[tuple[int, FrameType | None]] = []

    def hold(self) -> None:
        signal.signal(signal.SIGINT, lambda number, frame: self.came.append((number, frame)))

    def restore_handler(self) -> None:
        """Give interrupts to the handler that was there, and those that came in the meantime."""
        signal.signal(signal.SIGINT, self.handler)
        if self.came:
            last = self.came[-1]
            self.came.clear()
            self.handler(*last)


_outermost: _Waiting | None = None


def _hold() -> _Waiting | None:
    """Hold interrupts back; None where they are already, or where there are none."""
    global _outermost
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or _outermost is not None or not callable(handler):
        return None
    waiting = _Waiting(handler)
    waiting.hold()
    _outermost = waiting
    return waiting


def _let_go(waiting: _Waiting) -> None:
    global _outermost
    _outermost = None
    waiting.restore_handler()


@contextmanager
def delay_interrupts() -> Iterator[None]:
    """Hold interrupts back until the block, or the one around it, is over."""
    waiting = _hold()
    try:
        yield
    finally:
        if waiting is not None:
            _let_go(waiting)


def uninterruptible(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: `delay_interrupts` around each call; faster than that, as each training step calls it."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        waiting = _hold()
        if waiting is None:
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        finally:
            _let_go(waiting)

    return call


@contextmanager
def delay_interrupts_to_the_end() -> Iterator[None]:
    """As `delay_interrupts`, also inside of `interruptible`: for what cannot be undone once it has begun."""
    with delay_interrupts():
        waiting = _outermost
        if waiting is None:
            yield
            return
        before, waiting.to_the_end = waiting.to_the_end, True
        try:
            yield
        finally:
            waiting.to_the_end = before


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside `delay_interrupts`: raise interrupts at once again, for what takes long and can be undone."""
    global _outermost
    waiting = _outermost
    if waiting is None or waiting.to_the_end or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        _outermost = None
        waiting.restore_handler()
        yield
    finally:
        waiting.hold()
        _outermost = waiting
