"""What compiled code takes for granted, looked at before each call of the host."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Protocol

from fxgraft import _torch
from fxgraft.compiling._keys import Keys
from fxgraft.compiling.units import Unit
from fxgraft.compiling.variants import Variant

logger = logging.getLogger("fxgraft")

MAX_CHANGES = 4
"""In how many calls in a row what compiled code takes for granted may change."""


class Follower(Protocol):
    """A unit that runs by compiled code."""

    variant: Variant

    def follow(self) -> None:
        """Run the variant of the unit's key as that is now."""


class Assumptions:
    """Whether compiled code is still right for what the host's modules are.

    Args:
        keys: what that code was found by.
        running: the units that run by it.

    Attributes:
        hooks: `_torch.hooks_registered` while nothing but a new hook has to be looked for; None otherwise.
        is_inside: whether a call of the host is under way, which has looked.
    """

    def __init__(self, keys: Keys, running: Mapping[Unit, Follower]):
        self._keys, self._running = keys, running
        self._has_seeds = False
        self._calls = self._changes = 0
        self._changed_in = -1  # the number of a call
        self.hooks: int | None = None
        self.is_inside = False

    def begin(self, has_seeds: bool) -> None:
        """Another structure runs."""
        self._changes, self._has_seeds, self.hooks = 0, has_seeds, None

    def look(self) -> bool:
        """Look whether what compiled code takes for granted is still so, and run what is right for it now.

        Returns False where that changes at every call: then the host runs uncompiled.
        """
        if self.hooks == _torch.hooks_registered():
            return True
        self._calls += 1
        if self._keys.hold():
            self.hooks = _torch.hooks_registered() if self._is_as_torch_compiles_it() else None
            return True
        if self._changes >= MAX_CHANGES:
            for state in self._running.values():
                state.variant.misses += 1
            return False
        in_a_row = self._changed_in == self._calls - 1
        self._changes, self._changed_in = self._changes + 1 if in_a_row else 1, self._calls
        what = self._keys.renew()
        for state in self._running.values():
            state.follow()
            state.variant.look_again()  # dynamo may compile again, and that code is to be compared
        if self._changes == MAX_CHANGES:
            logger.warning(
                "what compiled code depends on (%s) has changed in %d calls in a row: the host runs "
                "uncompiled until its structure changes",
                what,
                MAX_CHANGES,
            )
        return True

    def _is_as_torch_compiles_it(self) -> bool:
        """Whether torch's own guards, inside the compiled code, see all changes but that of a new hook.

        So it is without seeds, where dynamo made the code: looking costs up to 2 % of a step then.
        """
        variants: Iterable[Variant] = (state.variant for state in self._running.values())
        return not (self._has_seeds or self._keys.have_hooks() or any(v.artifacts for v in variants))
