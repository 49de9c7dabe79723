"""Stages can be told apart, on light and on dark pages."""

from __future__ import annotations

import pytest

from fxgraft import Stage
from fxgraft.seeds.stage import DARK, LIGHT, STAGE_COLOURS


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_stage_has_a_colour_of_its_own() -> None:
    assert set(STAGE_COLOURS) == set(Stage)
    assert len(set(STAGE_COLOURS.values())) == len(Stage)


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("background", [LIGHT, DARK])
def test_graphics_are_legible(stage: Stage, background: str) -> None:
    assert contrast(STAGE_COLOURS[stage], background) >= 3
