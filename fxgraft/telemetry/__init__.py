"""What a manager reports: events as they happen, metrics as they stand, and sinks that take both.

Names are those of the source document (see the glossary): ``kasmina.seed.alpha``, ``seed_stage``, ….
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
