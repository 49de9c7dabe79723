"""Whether a call has the form that a host was traced with, module by module: seeds run only in such calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxgraft.capture.region import Region
from fxgraft_passes.untouched import untouched


def unmet(
    root: nn.Module, regions: Mapping[str, Region], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    """The first guard that this call of ``root`` does not pass, with its module; None if it passes all."""
    found: list[str] = []
    with untouched(root), torch.enable_grad():
        for name, region in regions.items():
            region.module.register_forward_pre_hook(_look(name, region, found), with_kwargs=True)
        given, named = pytree.tree_map_only(torch.Tensor, torch.clone, (args, dict(kwargs)))
        root(*given, **named)
    return found[0] if found else None


def _look(name: str, region: Region, found: list[str]) -> Callable[..., None]:
    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if found:
            return
        try:
            bound = region.form.signature.bind(*args, **kwargs)
        except TypeError as error:
            found.append(f"{name}: {error}")
            return
        bound.apply_defaults()
        if (guard := region.form.unmet({**bound.arguments, "self": module})) is not None:
            found.append(f"{name}: {guard}" if name else guard)

    return look
