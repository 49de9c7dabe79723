"""The table of blueprints."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fxgraft_passes import Slot
from fxgraft_passes.errors import BlueprintError

Factory = Callable[..., nn.Module]
"""``factory(slot, **config) -> nn.Module``."""


@dataclass(frozen=True)
class Blueprint:
    """A named factory.

    Attributes:
        name: what it is asked for by.
        factory: ``factory(slot, **config) -> nn.Module``.
        branch: whether its modules compute something to be added, and are zero at birth.
    """

    name: str
    factory: Factory
    branch: bool = False

    def build(self, slot: Slot, **config: object) -> nn.Module:
        """A new module for ``slot``."""
        return self.factory(slot, **config)


_blueprints: dict[str, Blueprint] = {}


def register(name: str, factory: Factory, *, branch: bool = False) -> None:
    """Add a blueprint. Raises `BlueprintError` if the name is taken or the factory not callable."""
    if name in _blueprints:
        raise BlueprintError(f"there is a blueprint {name!r} already; choose another name")
    if not callable(factory):
        raise BlueprintError(
            f"blueprint {name!r}: expected a callable Slot -> nn.Module; got {type(factory).__name__}"
        )
    _blueprints[name] = Blueprint(name, factory, branch)


def names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_blueprints)


def get(name: str) -> Blueprint:
    """The blueprint of that name. Raises `BlueprintError` with the nearest names."""
    if name not in _blueprints:
        near = difflib.get_close_matches(name, _blueprints, n=3) or names()
        raise BlueprintError(f"no blueprint is named {name!r}; did you mean {', '.join(near)}?")
    return _blueprints[name]
