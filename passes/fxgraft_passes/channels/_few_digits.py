"""What rounding does inside of a model that computes in fewer digits than its outputs have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class FewDigits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, what is computed in fewer digits differs by a rounding of these.

    Args:
        eps: of the dtype whose digits are not few.
        seed: of the signs of the roundings.

    Attributes:
        coarsest: the dtype with the fewest digits, of those that were few; None where there was none.
    """

    def __init__(self, eps: float, seed: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.coarsest: torch.dtype | None = None
        self._eps, self._stream = eps, torch.Generator("cpu").manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(returned.alias_info is not None for returned in func._schema.returns):
            return result  # a view, or written in place
        return pytree.tree_map_only(Tensor, self._rounded, result)

    def _rounded(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or (eps := torch.finfo(tensor.dtype).eps) <= self._eps:
            return tensor
        if self.coarsest is None or eps > torch.finfo(self.coarsest).eps:
            self.coarsest = tensor.dtype
        if tensor.is_meta or bool((tensor == tensor.round()).all()):  # masks and counts are meant as they are
            return tensor
        drawn = torch.randint(0, 2, tensor.shape, generator=self._stream, device="cpu") * 2 - 1
        return tensor * (1 + drawn.to(tensor.device) * eps).to(tensor.dtype)
