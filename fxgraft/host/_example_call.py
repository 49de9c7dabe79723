"""The example call of a host, kept to compare what grew with what is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class ExampleCall:
    """The arguments of the call that a host was traced with: copies, on the device where they were."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def for_(self, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Fresh arguments for a call of ``module``: where its parameters are, of their dtype."""
        like = next(module.parameters(), torch.empty(0))

        def fresh(tensor: torch.Tensor) -> torch.Tensor:
            dtype = like.dtype if tensor.is_floating_point() else None
            moved = tensor.detach().clone().to(device=like.device, dtype=dtype)
            return moved.requires_grad_(tensor.requires_grad)

        found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map_only(
            torch.Tensor, fresh, (self.args, self.kwargs)
        )
        return found

    def __deepcopy__(self, memo: object) -> ExampleCall:
        return self
