"""How much work some code does, in bytecode instructions: the same in each run, unlike a time."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Effort:
    """Instructions run inside, in all of Python (what C does in one of them counts as one)."""

    def __init__(self) -> None:
        self.total = 0
        self.by_function: Counter[str] = Counter()

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "call":
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
        elif event == "opcode":
            self.total += 1
            code = frame.f_code
            self.by_function[f"{code.co_filename}:{code.co_name}"] += 1
        return self.trace


@contextmanager
def effort() -> Iterator[Effort]:
    """Count the instructions of this thread inside."""
    counted, before = Effort(), sys.gettrace()
    sys.settrace(counted.trace)
    try:
        yield counted
    finally:
        sys.settrace(before)
