"""Settings say what they expected, and what they got."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from fxgraft.explore.growth_settings import GrowthSettings
from fxgraft.training import TrainingConfig, WatchdogConfig
from fxgraft.util import validate


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: validate.integer("n", -1), "n: expected a whole number, 0 or more; got -1"),
        (lambda: validate.integer("n", True), "n: expected a whole number, 0 or more; got True"),
        (lambda: validate.integer("n", 0, 1), "n: expected a positive whole number; got 0"),
        (lambda: validate.number("x", math.nan), "x: expected a number; got nan"),
        (lambda: validate.number("x", "1"), "x: expected a number; got '1'"),
        (lambda: validate.number("x", -1, 0), "x: expected a number, 0 or more; got -1"),
        (lambda: validate.number("x", 2, 0, 1), "x: expected a number between 0 and 1; got 2"),
        (lambda: validate.boolean("f", 1), "f: expected True or False; got 1"),
        (lambda: GrowthSettings(window=0), "window: expected a positive whole number; got 0"),
        (lambda: GrowthSettings(gain=math.inf), "gain: expected a number; got inf"),
        (lambda: WatchdogConfig(patience=0), "patience: expected a positive whole number; got 0"),
        (lambda: WatchdogConfig(factor=-1.0), "factor: expected a number, 0 or more; got -1.0"),
        (lambda: TrainingConfig(epochs=-1), "epochs: expected a whole number, 0 or more; got -1"),
        (lambda: TrainingConfig(keep=0), "keep: expected a positive whole number; got 0"),
        (lambda: TrainingConfig(clip_norm=-1.0), "clip_norm: expected a number, 0 or more; got -1.0"),
        (
            lambda: TrainingConfig(autocast=torch.int8),
            "autocast: expected torch.bfloat16, torch.float16 or None; got torch.int8",
        ),
    ],
)
def test_an_invalid_value_is_refused(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        call()


def test_a_valid_value_is_taken() -> None:
    assert (validate.integer("n", 3), validate.number("x", 1), validate.boolean("f", False)) == (
        3,
        1.0,
        False,
    )
