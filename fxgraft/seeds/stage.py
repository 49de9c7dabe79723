"""The stages of a seed's life, and the transitions between them: the one table of both."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from fxgraft.errors import StageError


class Stage(Enum):
    """The stage of a seed. docs/concepts.md says what each stage computes."""

    DORMANT = "dormant"
    """No seed: the slot is empty, or seeds are disabled."""
    GERMINATED = "germinated"
    """Being prepared: not in the graph, not in the optimizer."""
    TRAINING = "training"
    """In the graph and learning; the host's values and gradients are not affected."""
    BLENDING = "blending"
    """Alpha moves towards its target."""
    HOLDING = "holding"
    """Alpha has reached its target."""
    FOSSILIZED = "fossilized"
    """A plain part of the host."""
    CULLED = "culled"
    """Gone."""


TRANSITIONS: dict[Stage, dict[str, Stage]] = {
    Stage.DORMANT: {"germinate": Stage.GERMINATED},
    Stage.GERMINATED: {"go live": Stage.TRAINING, "cull": Stage.CULLED},
    Stage.TRAINING: {"blend": Stage.BLENDING, "cull": Stage.CULLED},
    Stage.BLENDING: {"blend": Stage.BLENDING, "reach": Stage.HOLDING, "cull": Stage.CULLED},
    Stage.HOLDING: {"blend": Stage.BLENDING, "fossilize": Stage.FOSSILIZED, "cull": Stage.CULLED},
    Stage.FOSSILIZED: {},
    Stage.CULLED: {},
}


_BY_ITSELF = {"go live", "reach"}
"""What happens in `SeedManager.step`, and cannot be asked for."""


def after(stage: Stage, action: str, seed: str, where: str = "") -> Stage:
    """The stage that ``action`` leads to. Raises `StageError` naming what is possible instead.

    Args:
        stage: where the seed is.
        action: what is to be done.
        seed: its name.
        where: how far it is in that stage, for the error.
    """
    legal = TRANSITIONS[stage]
    if action not in legal:
        possible = ", ".join(a for a in legal if a not in _BY_ITSELF) or "none"
        hint = "; a fossil is permanent (an earlier checkpoint has none of it)" * (stage is Stage.FOSSILIZED)
        raise StageError(
            f"cannot {action} seed {seed!r}: it is {stage.name}{where and f' ({where})'}, from which the "
            f"legal actions are: {possible}{hint}"
        )
    return legal[action]


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
