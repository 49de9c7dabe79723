"""Why a block has no set of layers to zero."""

from __future__ import annotations


class NotFoundError(Exception):
    """There is none; the message says where the search ended, as a part of a sentence."""
