"""What a manager reports, and to whom."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("fxgraft")


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        kind: ``seed_stage``, ``seed_operation``, ``blend_config``, ``gradients_dropped``, ….
        step: how many training steps the manager had seen.
        seed: the seed's name, or None.
        data: more, by kind. JSON types only.
    """

    kind: str
    step: int
    seed: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


Sink = Callable[[Event], None]


class Sinks:
    """Sends each event to every sink. A sink that raises is logged, and never changes training."""

    def __init__(self, sinks: Sequence[Sink]):
        self._sinks = tuple(sinks)

    def emit(self, event: Event) -> None:
        """Send ``event`` everywhere."""
        for sink in self._sinks:
            try:
                sink(event)
            except Exception:
                logger.exception("the sink %r failed on %s", sink, event.kind)
