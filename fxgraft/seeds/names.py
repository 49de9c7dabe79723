"""Names of seeds where none is given."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from itertools import count


class SeedNames:
    """Hands out names, each once: ``mlp_0``, ``mlp_1``, …"""

    def __init__(self, next_numbers: Mapping[str, int] | None = None) -> None:
        self._next = dict(next_numbers or {})

    @property
    def next_numbers(self) -> Mapping[str, int]:
        """Base -> the number that comes next."""
        return self._next

    def make(self, blueprint: str, taken: Container[str]) -> str:
        """A name for a seed of ``blueprint`` that was never made before and is not ``taken``."""
        base, number = self._following(blueprint, taken)
        self._next[base] = number + 1
        return f"{base}_{number}"

    def note(self, name: str) -> None:
        """A seed is called so by its user: `make` will never make that name."""
        base, _, digits = name.rpartition("_")
        # What is no number that `make` could come to stands in nobody's way.
        if base and re.fullmatch(r"0|[1-9][0-9]{0,8}", digits):
            self._next[base] = max(self._next.get(base, 0), int(digits) + 1)

    def foresee(self, blueprint: str, taken: Container[str]) -> str:
        """The name that `make` would make."""
        base, number = self._following(blueprint, taken)
        return f"{base}_{number}"

    def _following(self, blueprint: str, taken: Container[str]) -> tuple[str, int]:
        base = re.sub(r"\W+", "_", blueprint).strip("_") or "seed"
        return base, next(n for n in count(self._next.get(base, 0)) if f"{base}_{n}" not in taken)
