"""The arguments of `SeedManager.autogrow`, where they are given as a mapping: to a callback or a trainer."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from fxgraft.manager.manager import SeedManager


def checked_terms(where: str, given: object) -> dict[str, Any]:
    """A copy of what was given.

    Args:
        where: the name of the argument, for errors.
        given: names of arguments -> values.

    Raises:
        TypeError: it is no mapping.
        ValueError: `SeedManager.autogrow` does not have such an argument.
    """
    known = [name for name in inspect.signature(SeedManager.autogrow).parameters if name != "self"]
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{where}: expected arguments of SeedManager.autogrow, as {{'budget': 2.0}}; got {given!r}"
        )
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            advice = f"; did you mean {close[0]!r}?" if close else f". Expected some of {', '.join(known)}"
            raise ValueError(f"{where}: SeedManager.autogrow has no argument {name!r}{advice}")
    return dict(given)
