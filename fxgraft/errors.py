"""The errors that fxgraft raises on purpose; all derive from `FxGraftError`."""

from fxgraft_passes.errors import (
    BlueprintError,
    ChannelError,
    CheckpointError,
    CommandError,
    DistributedError,
    FxGraftError,
    IsolationError,
    SlotError,
    StageError,
    TraceError,
    TransplantError,
)

__all__ = [
    "BlueprintError",
    "ChannelError",
    "CheckpointError",
    "CommandError",
    "DistributedError",
    "FxGraftError",
    "IsolationError",
    "SlotError",
    "StageError",
    "TraceError",
    "TransplantError",
]
