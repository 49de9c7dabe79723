"""What a manager reports: events as they happen, metrics as they stand, and sinks that take both.

Metrics have plain names, ``fxgraft/seed/alpha``, and as aliases (``kasmina.seed.alpha``) those of WP-101, the
document that specified the first version of this library.

=========  =====================================================
`events`   events, and the sinks that receive them
`metrics`  the table of metrics, and their values now
`sinks`    where events go: memory, JSON lines, TensorBoard, W&B
=========  =====================================================

Group: interface. May import: what they control.
"""

from fxgraft.telemetry.events import Event, Sink, Sinks, logger
from fxgraft.telemetry.metrics import METRICS, Metric
from fxgraft.telemetry.sinks import JsonLines, Logging, Memory, TensorBoard, WeightsAndBiases

__all__ = [
    "METRICS",
    "Event",
    "JsonLines",
    "Logging",
    "Memory",
    "Metric",
    "Sink",
    "Sinks",
    "TensorBoard",
    "WeightsAndBiases",
    "logger",
]
