"""The forwards that a structure puts into the modules of regions, taken from there and put in elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from fxgraft.capture.fallback import COUNTER
from fxgraft_passes.naming import OWN_FORWARD

Forwards = Sequence[tuple[nn.Module, Mapping[str, Any]]]
"""Modules of regions, and the attributes that they have for their forward and its grafts."""


def forward_of(module: nn.Module) -> dict[str, Any]:
    """What a region has put into its module; nothing where it runs its class's forward."""
    return {name: value for name, value in module.__dict__.items() if _is_installed(name)}


@contextmanager
def installed(forwards: Forwards) -> Iterator[None]:
    """A context in which modules run these forwards; afterwards they run those of their classes."""
    for module, attributes in forwards:
        _clear(module)
        module.__dict__.update(attributes)
    try:
        yield
    finally:
        for module, _ in forwards:
            _clear(module)


def _clear(module: nn.Module) -> None:
    for name in forward_of(module):
        del module.__dict__[name]


def _is_installed(name: str) -> bool:
    return name in ("forward", OWN_FORWARD, COUNTER) or name.startswith("_graft_")
