"""A read-only mapping that prints as a table: what a host shows of its slots, stacks and channels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, TypeVar

from fxgraft.util.tables import text_table

Item = TypeVar("Item")


class TableMapping(Mapping[str, Item]):
    """Name -> item, in the order given. A base class: a subclass has the headers, and the row of an item.

    Args:
        items: all of them, by name; they are copied.
    """

    headers: ClassVar[tuple[str, ...]]

    def __init__(self, items: Mapping[str, Item]):
        self._items = dict(items)

    @abstractmethod
    def _row(self, name: str, item: Item) -> Sequence[object]:
        """The cells of an item, one for each header."""

    def __getitem__(self, name: str) -> Item:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self)})"

    def __str__(self) -> str:
        return text_table(self.headers, [self._row(name, item) for name, item in self.items()])
