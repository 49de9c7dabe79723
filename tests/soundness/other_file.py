"""What a model's code calls and reads in another file than its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def flipped(x: Any) -> Any:
    return x.flip(1) if isinstance(x, torch.Tensor) else x


def flipped_by_type(x: Any) -> Any:
    return x.flip(1) if type(x) is Tensor else x


def double(x: Tensor) -> Tensor:
    return x * 2


def counted(x: Tensor) -> Tensor:
    return x * counted.factor


counted.factor = 1.0


def with_defaults(x: Tensor, by: float = 2.0, more: list[float] = [1.0]) -> Tensor:  # noqa: B006
    return x * by * more[0]


REGISTRY: dict[str, Any] = {"double": double, "factor": 3.0, "class": dict}


class Config:
    factor = 2.0
