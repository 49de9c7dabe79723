"""Counting FLOPs: of matrix products, convolutions and attention, two for each multiply-add."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode


def count_flops(run: Callable[[], object]) -> int:
    """The floating point operations that ``run`` makes, as torch's ``FlopCounterMode`` counts them.

    Compiled code does not run inside the counter: give it eager calls.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
