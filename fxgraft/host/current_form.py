"""The form of a host now, which is everything but the values in its tensors.

Prepared code is valid for one form, and the trace of a module while its attributes are what they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft_passes import Slot


def current_form(host: Host) -> tuple[object, ...]:
    """Equal while trace, compiled code, structure, modes and the shapes, dtypes and devices of tensors are.

    Args:
        host: the host. What has grown in it is a part of its form; optimizers and managers are not.
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


def changed_attributes(host: Host, slots: Iterable[Slot]) -> list[str]:
    """The conditions that do not hold in the modules that have a seed at one of ``slots``.

    Left out are those that the first call of the model, which is still to come, makes true.
    """
    names = dict.fromkeys(name for slot in slots for name in (slot.region, *slot.merged))
    awaited = engine.awaits_first_call(host)
    return [
        f"in {name or 'the model'}, {what}"
        for name in names
        for what in host.regions[name].changed_attributes
        if awaited.isdisjoint(re.findall(r"\w+", what))
    ]
