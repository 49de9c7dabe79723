"""Where in a model it shows that it computes something else with more channels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager

from torch import Tensor

from fxgraft_passes.channels.comparing import is_other
from fxgraft_passes.channels.recording import Operation, Recording, tensors_in
from fxgraft_passes.channels.subject import Subject
from fxgraft_passes.untouched import streams_fixed


def where_it_shows(
    subject: Subject,
    wider: Mapping[str, Tensor],
    in_place: AbstractContextManager[None],
    tied: Collection[str],
) -> str:
    """The first operation that returns something else, in words; run inside of a session.

    Only results of the shape of before are compared: those that have the channels have others. Empty where
    none is found, or runs have no data.

    Args:
        subject: the model.
        wider: path -> the wider tensor.
        in_place: inside, the subject is as it will be.
        tied: paths of the parameters that both make the channels and read them.
    """
    if subject.without_data:
        return ""
    before, after = Recording(), Recording()
    try:
        with streams_fixed():
            subject.record({}, False, before)
        with in_place, streams_fixed():
            used = subject.record(wider, False, after)
    except Exception:  # what it fails by is not what is asked for
        return ""
    found = _first(before, after)
    if found is None:
        return ""
    read = {id(tensor) for tensor in tensors_in((found.args, found.kwargs))}
    for path in tied:
        if id(used[path]) in read:
            return (
                f"; it shows first in {found.name}, which reads them with {path}, by which they are made, too"
                f". Untie it before they grow (two parameters with equal values)"
            )
    return f"; it shows first in {found.name}"


def _first(before: Recording, after: Recording) -> Operation | None:
    for old, new in zip(before.operations, after.operations, strict=False):
        if old.name != new.name:
            return None
        pairs = list(zip(tensors_in(old.result), tensors_in(new.result), strict=False))
        if any(one.shape == other.shape and is_other(one, other) for one, other in pairs):
            return new
    return None
