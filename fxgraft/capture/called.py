"""Which modules an evaluation calls: code without a graph may go around some of them.

``nn.TransformerEncoderLayer`` does: in eval mode and without gradients torch hands the weights of its layers
to one fused operation, its *fast path*, and calls none of them; ``nn.TransformerEncoder`` calls its layers
with nested tensors then, where there is a padding mask. What stands there would run in training only.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

TURN_OFF = "torch.backends.mha.set_fastpath_enabled(False)"


class Called:
    """Watches which modules are called.

    Args:
        takes: whether a module's seeds run in a call with these arguments.
    """

    def __init__(self, takes: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], bool]):
        self._takes = takes
        self.modules: set[nn.Module] = set()

    def watch(self, module: nn.Module) -> Callable[..., Any]:
        """What to run in the place of the module's ``forward``."""
        forward = MethodType(type(module).forward, module)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._takes(module, args, kwargs):
                self.modules.add(module)
            return forward(*args, **kwargs)

        return watched

    def __contains__(self, module: nn.Module) -> bool:
        return module in self.modules


def why_left_out(root: nn.Module, name: str) -> str:
    """Why the boundary of the module of that name, which an evaluation does not call, is no slot."""
    reason = "is not called so in eval mode under no_grad, where a seed there would be left out"
    parents = [root.get_submodule(name.rsplit(".", i)[0]) for i in range(1, name.count(".") + 1)]
    if any(
        isinstance(parent, (nn.TransformerEncoder, nn.TransformerEncoderLayer)) for parent in (root, *parents)
    ):
        reason += (
            f" (torch's fast path for transformer encoders; {TURN_OFF} before fxgraft.trace makes it one)"
        )
    return reason


def keep_slow(root: nn.Module) -> None:
    """Let what is traced with torch's fast path turned off never take it: other processes have it on."""
    if torch.backends.mha.get_fastpath_enabled():
        return
    for module in root.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = (
                0  # what layers with other activations have; asked for nothing else
            )
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
