"""How a host is explored."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_BIRTH = 50
"""Steps: more gradients tell little more."""


@dataclass(frozen=True)
class Settings:
    """How a host is explored; as the arguments of `SeedManager.explore`."""

    steps: int
    keep: int
    at: float
    repeats: int

    @property
    def born(self) -> int:
        """For how many steps the candidates stand as they were born."""
        return min(max(self.steps // 2, 1), LONGEST_BIRTH)
