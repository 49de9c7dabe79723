"""The errors that fxgraft raises on purpose; all derive from `FxGraftError`."""

from fxgraft_passes.errors import ChannelError, FxGraftError, IsolationError, SlotError

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


class TraceError(FxGraftError):
    """The host could not be captured."""


class BlueprintError(FxGraftError):
    """A blueprint is unknown, could not be built, or does not fit its slot."""


class StageError(FxGraftError):
    """A lifecycle transition that the seed's stage does not allow."""


class CheckpointError(FxGraftError):
    """A checkpoint is damaged, belongs to another host, or could not be written."""


class TransplantError(FxGraftError):
    """What has grown does not fit into the given plain model."""


class CommandError(FxGraftError):
    """A command is malformed."""


class DistributedError(FxGraftError):
    """The ranks of a distributed run differ in structure, or have lost contact."""
