"""What a module's code does beside computing its result, and a graph would not do.

A trace that met any of it is right in the example run only, and must be refused.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from fxgraft_passes.errors import FxGraftError
from fxgraft_passes.untouched import SavedAttributes


class SideEffectError(FxGraftError):
    """The code does what a graph cannot; the message says what, as in "the module <message>"."""


class Effects:
    """Watches the code of one module, from one operation to the next."""

    def __init__(self, module: nn.Module):
        self._attributes = SavedAttributes(module)
        self._contexts = _contexts()
        self.resume()

    def check(self, draws: bool = True) -> None:
        """Raise `SideEffectError` if the code did anything since `resume`; look at random ``draws`` too?"""
        for (what, before), (_, now) in zip(self._contexts, _contexts(), strict=True):
            if before != now:
                raise SideEffectError(f"switches {what} in its forward")
        if draws and random.getstate() != self._random:
            raise SideEffectError("draws from Python's random module in its forward")
        if draws and not _same_numpy(self._numpy, np.random.get_state()):
            raise SideEffectError("draws from NumPy's global random stream in its forward")

    def resume(self) -> None:
        """From here on it is the module's own code that runs."""
        self._random = random.getstate()
        self._numpy = np.random.get_state()

    def check_attributes(self) -> None:
        """Raise `SideEffectError` if the code changed an attribute of its module."""
        if name := self._attributes.changed():
            raise SideEffectError(f"changes its attribute {name!r} in its forward")

    def undo(self) -> None:
        """Take back what the code did to the attributes of its module."""
        self._attributes.restore()


@contextmanager
def numpy_untouched() -> Iterator[None]:
    """Put NumPy's global random stream back afterwards."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


def _contexts() -> tuple[tuple[str, Any], ...]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (
        ("autocast", tuple(map(torch.is_autocast_enabled, ("cpu", device)))),
        ("the autocast dtype", tuple(map(torch.get_autocast_dtype, ("cpu", device)))),
        ("inference mode", torch.is_inference_mode_enabled()),
        ("the default dtype", torch.get_default_dtype()),
    )


def _same_numpy(a: Any, b: Any) -> bool:
    return a[2:] == b[2:] and bool((a[1] == b[1]).all())
