"""The errors that passes raise. ``fxgraft.errors`` has these and the others."""

from __future__ import annotations


class FxGraftError(Exception):
    """Base of every error that fxgraft raises on purpose."""


class SlotError(FxGraftError):
    """A slot does not exist, or a graft there would not be correct."""


class IsolationError(FxGraftError):
    """Something of a seed reached, or would reach, the host's gradients."""


class ChannelError(FxGraftError):
    """Channels cannot grow as they were asked to."""
