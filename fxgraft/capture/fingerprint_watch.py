"""Whether what fingerprints took down is still so: asked before each call, answered in microseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter, is_, itemgetter
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
        self._getters = list(self._make_getters())
        self._now = [container for container, _ in self.containers]
        self._then = [contents for _, contents in self.containers]

    def _make_getters(self) -> Iterator[tuple[Callable[[Any], Any], Any, tuple[Any, ...]]]:
        """What reads several values of a holder at once, and what they were."""
        for holder, found in self.reads.values():
            values = list(found.values())
            get: Any = itemgetter if isinstance(holder, dict) else attrgetter
            # With two names or more a getter returns a tuple.
            yield get(*found, next(iter(found))), holder, (*values, values[0])
        if self.cells:
            yield _contents, self.cells, tuple(map(contents_of, self.cells))

    def holds(self) -> bool:
        """Whether nothing has changed."""
        try:
            for get, holder, found in self._getters:
                if not all(map(is_, get(holder), found)):
                    return False
            return self._now == self._then and not any(self.empty)
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


def _contents(cells: list[Any]) -> tuple[Any, ...]:
    return tuple(map(contents_of, cells))
