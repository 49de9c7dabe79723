"""Why a branch cannot be joined to what it stands beside."""

from __future__ import annotations


class NotAlikeError(Exception):
    """A branch is of another form; the message says why, as the end of a sentence."""
