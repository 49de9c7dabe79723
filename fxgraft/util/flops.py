"""Counting FLOPs: of matrix products, convolutions and attention, two for each multiply-add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from fxgraft import _torch


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]  # shapes, not tensors


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]


def flop_counter() -> FlopCounterMode:
    """A context manager that counts: ``counter.get_total_flops()``.

    Compiled code does not run inside: give it eager calls.
    """
    forward, backward = _torch.cpu_attention()  # which torch's counter takes for nothing
    mapping = {forward: _attention, backward: _attention_backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def count_flops(run: Callable[[], object]) -> int:
    """The floating point operations that ``run`` makes. Compiled code does not run inside."""
    with flop_counter() as counter:
        run()
    return int(counter.get_total_flops())
