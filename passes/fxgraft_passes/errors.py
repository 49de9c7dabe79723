"""The errors of fxgraft. ``fxgraft.errors`` re-exports them; the passes raise the first two."""

from __future__ import annotations


class FxGraftError(Exception):
    """Base of every error that fxgraft raises on purpose."""


class SlotError(FxGraftError):
    """A slot does not exist, or a graft there would not be correct."""


class TraceError(FxGraftError):
    """The host could not be captured."""


class ChannelError(FxGraftError):
    """Channels cannot grow as they were asked to."""


class BlueprintError(FxGraftError):
    """A blueprint is unknown, could not be built, or does not fit its slot."""


class StageError(FxGraftError):
    """A lifecycle transition that the seed's stage does not allow."""


class IsolationError(FxGraftError):
    """Something of a seed reached, or would reach, the host's gradients."""


class CheckpointError(FxGraftError):
    """A checkpoint is damaged, of another host, or could not be written."""


class TransplantError(FxGraftError):
    """What grew does not fit into the plain model that it is to be put into."""


class CommandError(FxGraftError):
    """A command is malformed."""


class DistributedError(FxGraftError):
    """The ranks of a distributed run have drifted apart, or lost each other."""
