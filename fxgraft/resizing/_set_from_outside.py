"""Attributes of a block that code outside of it sets in every call: an inserted copy would never get them.

for block in self.blocks:
    block.context = x.mean()     set by the model, in its own blocks only
    x = block(x)                 a copy that is inserted keeps what it had when it was copied
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fxgraft.host.channels import example_of
from fxgraft.host.host import Host

_OURS = ("forward", "training")
"""What the library itself sets in a module that it runs."""


def attributes_set_from_outside(host: Host, block: nn.Module) -> list[str]:
    """Their names, as far as the example call sets them; none where that is not known, or has no data."""
    subject = example_of(host)
    if subject is None or any(parameter.is_meta for parameter in host.parameters()):
        return []
    found: dict[str, None] = {}
    cls = type(block)
    inside = 0

    class Told(cls):  # type: ignore[misc, valid-type]
        def __setattr__(self, name: str, value: Any) -> None:
            if not inside and name not in _OURS:
                found[name] = None
            super().__setattr__(name, value)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            inside += 1
            try:
                return super().__call__(*args, **kwargs)
            finally:
                inside -= 1

    with subject.session():
        object.__setattr__(block, "__class__", Told)
        try:
            subject.run(*subject.args, **subject.kwargs)
        except Exception:
            return []  # nothing is known of it then
        finally:
            object.__setattr__(block, "__class__", cls)
    return list(found)
