"""Names of seeds where none is given: what they are made from, and where they are."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from itertools import count

_MADE = re.compile(r"(\w+_at_\w+)(?:-([1-9][0-9]{0,8}))?")
"""What `SeedNames.make` makes: a base, and from the second name with that base on a number."""

_GRAFT = re.compile(r"(?:^|(?<=\.))_seeds\.([\w-]+)\.module(?=\.|$)")
"""The path of a seed's module, in which the name of the seed says enough."""


class SeedNames:
    """Hands out names, each once: ``mlp_at_blocks_0_relu``, ``mlp_at_blocks_0_relu-2``, …

    Args:
        next_numbers: of another one, whose names are not made again.
    """

    def __init__(self, next_numbers: Mapping[str, int] | None = None) -> None:
        self._next = dict(next_numbers or {})

    @property
    def next_numbers(self) -> Mapping[str, int]:
        """Base -> the number that comes next."""
        return self._next

    def make(self, blueprint: str, slot: str, taken: Container[str]) -> str:
        """A name for a seed of ``blueprint`` at ``slot`` that was never made before and is not ``taken``."""
        name = self.preview(blueprint, slot, taken)
        self.note(name)
        return name

    def note(self, name: str) -> None:
        """A seed is called so: `make` will never make that name."""
        if found := _MADE.fullmatch(name):  # no other name can collide
            base, number = found[1], int(found[2] or 1)
            self._next[base] = max(self._next.get(base, 1), number + 1)

    def preview(self, blueprint: str, slot: str, taken: Container[str]) -> str:
        """The name that `make` would make."""
        place = _GRAFT.sub(r"\1", slot)
        base = f"{_word(blueprint)}_at_{_word(place)}"
        numbers = count(self._next.get(base, 1))
        names = (base if number == 1 else f"{base}-{number}" for number in numbers)
        return next(name for name in names if name not in taken)


def _word(text: str) -> str:
    """Its letters, digits and underscores."""
    return re.sub(r"\W+", "_", text).strip("_") or "seed"
