"""Events of a manager, and the sinks that receive them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("fxgraft")


@dataclass(frozen=True)
class Event:
    """An event of a run.

    Attributes:
        kind: ``seed_stage``, ``seed_operation``, ``blend_config``, ``gradients_dropped``, ….
        step: the number of training steps of the manager at that time.
        seed: the seed's name, or None.
        data: further fields, which depend on the kind; JSON types only.
    """

    kind: str
    step: int
    seed: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


Sink = Callable[[Event], None]


class Sinks:
    """Sends each event to every sink. An exception of a sink is logged, and does not affect training.

    Args:
        sinks: functions of an event, called in this order.
    """

    def __init__(self, sinks: Sequence[Sink]):
        self._sinks = tuple(sinks)

    def emit(self, event: Event) -> None:
        """Send an event to every sink.

        Args:
            event: what happened.
        """
        for sink in self._sinks:
            try:
                sink(event)
            except Exception:
                logger.exception("the sink %r failed on %s", sink, event.kind)
