"""FLOPs and seconds of one run, by what they were spent on.

FLOPs are those of `torch.utils.flop_counter`, to which attention on the CPU is added, which it does not know.
They are counted in the step that runs, once for each structure: two steps of one structure cost the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fxgraft.util.flops import flop_counter

KINDS = ("train", "evaluate", "change")


@dataclass
class Ledger:
    """What was spent up to now.

    Attributes:
        flops: by kind: training steps, evaluations, changes of structure with their probes.
        seconds: CPU time of the process, by kind.
    """

    flops: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))

    def copy(self) -> Ledger:
        """Of its own."""
        return Ledger(dict(self.flops), dict(self.seconds))

    @contextmanager
    def time(self, kind: str) -> Iterator[None]:
        """Charge the CPU time spent inside."""
        began = time.process_time()
        try:
            yield
        finally:
            self.seconds[kind] += time.process_time() - began

    @property
    def total_flops(self) -> int:
        """Of all kinds."""
        return sum(self.flops.values())

    @property
    def total_seconds(self) -> float:
        """Of all kinds."""
        return sum(self.seconds.values())


class Counted:
    """Runs actions and charges their FLOPs; each kind of action in each structure is counted once."""

    def __init__(self) -> None:
        self.known: dict[Hashable, int] = {}

    def run(self, ledger: Ledger, kind: str, structure: Hashable, action: Callable[[], Any]) -> Any:
        """``action()``, charged; ``structure`` says in what its FLOPs may differ, None: count them anew."""
        key = None if structure is None else (kind, structure)
        with ledger.time(kind):
            if key in self.known and key is not None:
                result = action()
                flops = self.known[key]
            else:
                with flop_counter() as counting:
                    result = action()
                flops = counting.get_total_flops()
                if key is not None:
                    self.known[key] = flops
        ledger.flops[kind] += flops
        return result
