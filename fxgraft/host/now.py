"""What a host is like now, beside the values in its tensors: what was prepared for it is for this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from fxgraft.host import engine

if TYPE_CHECKING:
    from fxgraft.host.host import Host


def form_now(host: Host) -> tuple[object, ...]:
    """Equal while trace and compiled form are the same ones, its tensors of one form, its parts in one mode.

    Args:
        host: the host. What has grown in it is a part of it; who trains it is not.
    """
    parts = [form for tree in engine.trees(host) for form in _forms(tree)]
    return host._traced.regions, host.compiled, host.structure.key, host.widenings, tuple(parts)


def _forms(tree: nn.Module) -> list[object]:
    found: list[object] = []
    for module in tree.modules():
        found.append(module.training)
        for register in (module._parameters, module._buffers):
            for tensor in register.values():
                if tensor is not None:
                    found.append((tensor.shape, tensor.dtype, tensor.device))
    return found
