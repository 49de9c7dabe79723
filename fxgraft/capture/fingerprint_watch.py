"""Whether what fingerprints took down is still so: asked before each call, answered in microseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter, getitem, is_
from typing import Any, Protocol

contents_of = attrgetter("cell_contents")
"""Of a cell of a closure."""


class Watched(Protocol):
    """What a fingerprint took down.

    Attributes:
        reads: id of a holder -> the holder, and the values of its attributes or items by name.
        cells: of closures.
        containers: lists, dictionaries and sets, each with a copy of what was in it.
        empty: registers of hooks in which there was none.
        has_hooks: whether there were any in another register.
    """

    reads: dict[int, tuple[Any, dict[str, Any]]]
    cells: list[Any]
    containers: list[tuple[Any, Any]]
    empty: list[Any]
    has_hooks: bool


class FingerprintWatch:
    """Looks whether all that fingerprints took down is still so.

    Args:
        parts: of what; several are looked at faster together, as they share classes and globals.
    """

    def __init__(self, parts: Iterable[Watched]):
        self.reads: dict[int, tuple[Any, dict[str, Any]]] = {}
        self.cells: list[Any] = []
        self.containers: list[tuple[Any, Any]] = []
        self.empty: list[Any] = []
        self.has_hooks = False
        for part in parts:
            self.has_hooks |= part.has_hooks
            for key, (holder, found) in part.reads.items():
                self.reads.setdefault(key, (holder, {}))[1].update(found)
            self.cells += part.cells
            self.containers += part.containers
            self.empty += part.empty
        # In flat lists, so that each is gone through without running Python in between.
        self._items, self._attributes = _Pairs(getitem), _Pairs(getattr)
        for holder, found in self.reads.values():
            pairs = self._items if isinstance(holder, dict) else self._attributes
            for name, value in found.items():
                pairs.add(holder, name, value)
        self._contents = [contents_of(cell) for cell in self.cells]
        self._now = [container for container, _ in self.containers]
        self._then = [contents for _, contents in self.containers]

    def holds(self) -> bool:
        """Whether nothing has changed."""
        try:
            return (
                self._items.hold()
                and self._attributes.hold()
                and all(map(is_, map(contents_of, self.cells), self._contents))
                and self._now == self._then
                and not any(self.empty)
            )
        except Exception:  # a name that is gone, values that cannot be compared
            return False

    def changed(self) -> str:
        """What has changed, in words; empty if nothing has."""
        for holder, found in self.reads.values():
            for name, value in found.items():
                now = holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
                if now is not value:
                    return name
        return "" if self.holds() else "a hook, a submodule or what is in a container"


class _Pairs:
    """Values by holder and name, and whether they are still the same objects."""

    def __init__(self, read: Callable[[Any, str], Any]):
        self._read = read
        self._holders: list[Any] = []
        self._names: list[str] = []
        self._values: list[Any] = []

    def add(self, holder: Any, name: str, value: Any) -> None:
        self._holders.append(holder)
        self._names.append(name)
        self._values.append(value)

    def hold(self) -> bool:
        """Raises what reading raises where a name is gone."""
        return all(map(is_, map(self._read, self._holders, self._names), self._values))
