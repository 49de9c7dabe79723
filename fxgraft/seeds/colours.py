"""The colour of each stage, the same in every picture, page and terminal."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fxgraft.seeds.stage import Stage

STAGE_COLOURS: Mapping[Stage, str] = MappingProxyType(
    {
        Stage.DORMANT: "#7d8590",  # grey
        Stage.GERMINATED: "#9a7500",  # ochre
        Stage.TRAINING: "#2f7dc4",  # blue
        Stage.BLENDING: "#c96a00",  # orange
        Stage.HOLDING: "#8e63c7",  # violet
        Stage.FOSSILIZED: "#26885a",  # green
        Stage.CULLED: "#c04e57",  # red
    }
)
"""Each has a contrast of 3 or more (WCAG 2.2, for graphics) against white and against `DARK`."""

LIGHT, DARK = "#ffffff", "#15181c"
"""The backgrounds that pictures are made for."""
