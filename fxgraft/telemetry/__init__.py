"""What a manager reports: events as they happen, metrics as they stand, and sinks that take both.

Metrics have plain names, ``fxgraft/seed/alpha``, and the names of WP-101 (``kasmina.seed.alpha``) as aliases.

=========  =====================================================
`events`   events, and who hears of them
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
