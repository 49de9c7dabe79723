"""The error where an exploration or a growth cannot continue from a given state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fxgraft.errors import CheckpointError

DAMAGED = (LookupError, TypeError, ValueError)
"""What reading a state raises that has not the form of one."""


@contextmanager
def restoring(what: str, call: str, *kinds: type[Exception]) -> Iterator[None]:
    """Raise `CheckpointError` for such errors inside.

    Args:
        what: that goes on: ``"growth"``.
        call: of the manager, that is to be repeated: ``"autogrow"``.
        *kinds: errors beside those of a damaged state that say that it does not fit.
    """
    caught: tuple[type[Exception], ...] = (*DAMAGED, *kinds)
    try:
        yield
    except caught as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"the {what} cannot go on from that state: {why}. Call {call} with the arguments of the saved "
            f"run, and with the state as it was saved"
        ) from error
