"""Example inputs for a graph whose placeholders say of what form they are.

`torch.fx.passes.shape_prop.ShapeProp` leaves ``meta["tensor_meta"]``, exporting and compiling
``meta["val"]``, `FindSlots` what it has observed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
from torch import Tensor

from fxgraft_passes.errors import ChannelError
from fxgraft_passes.observe import KEY

_SEED = 0


def example_of(graph_module: fx.GraphModule) -> tuple[Tensor, ...]:
    """An input for each placeholder without a default: normal numbers, or zeros where they are integers.

    Raises:
        ChannelError: a placeholder does not say of what form its input is.
    """
    generator = torch.Generator().manual_seed(_SEED)
    found = []
    for node in graph_module.graph.find_nodes(op="placeholder"):
        form = next((node.meta[key] for key in ("val", "tensor_meta", KEY) if key in node.meta), None)
        if not isinstance(getattr(form, "shape", None), torch.Size):
            if node.args:  # it has a default
                break
            raise ChannelError(
                f"input {node.target!r} of the graph: expected a value to run it with, or to know of what "
                f"form that is; got neither. Give example inputs, FindChannels((x,))(graph_module) or "
                f"Widen(group, by, (x,))(graph_module); or let the graph say it first: "
                f"torch.fx.passes.shape_prop.ShapeProp(graph_module).propagate(x)"
            )
        found.append(_made(form, generator))
    return tuple(found)


def _made(form: Any, generator: torch.Generator) -> Tensor:
    dtype, device = form.dtype, getattr(form, "device", None)
    shape = [int(size) for size in form.shape]
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)
    return torch.zeros(shape, dtype=dtype, device=device)
