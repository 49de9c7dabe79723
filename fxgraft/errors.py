"""The errors that fxgraft raises on purpose; all derive from `FxGraftError`."""

from fxgraft_passes.errors import (
    BlueprintError,
    CheckpointError,
    CommandError,
    FxGraftError,
    IsolationError,
    SlotError,
    StageError,
    TraceError,
)

__all__ = [
    "BlueprintError",
    "CheckpointError",
    "CommandError",
    "FxGraftError",
    "IsolationError",
    "SlotError",
    "StageError",
    "TraceError",
]
