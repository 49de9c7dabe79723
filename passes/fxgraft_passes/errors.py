"""The errors that passes raise. ``fxgraft.errors`` has these and the others."""

from __future__ import annotations


class FxGraftError(Exception):
    """Base of every error that fxgraft raises on purpose."""


class SlotError(FxGraftError):
    """A slot does not exist, or a seed there would not be correct."""


class IsolationError(FxGraftError):
    """A seed changed, or would change, the host's values or gradients while it is isolated."""


class ChannelError(FxGraftError):
    """A group of channels does not exist, or cannot grow as requested."""
