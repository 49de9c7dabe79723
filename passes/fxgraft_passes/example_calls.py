"""Example inputs of a graph: given by the user, or made as its placeholders say.

Given is a tuple of arguments, with which the module runs. A tensor in the place of the tuple would be taken
apart into its rows, and say nothing.

`torch.fx.passes.shape_prop.ShapeProp` leaves ``meta["tensor_meta"]``, exporting and compiling
``meta["val"]``, `FindSlots` what it has observed: an input can be made of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor

from fxgraft_passes.errors import ChannelError, FxGraftError
from fxgraft_passes.untouched import untouched


def why_no_arguments(given: object, call: str) -> str | None:
    """Why that is not the positional arguments of a call; None if it is.

    Args:
        given: by the user.
        call: what was called, for the message: ``"FindSlots"``.
    """
    if isinstance(given, tuple):
        return None
    got = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
    return f"example_args of {call}: expected the arguments of one call as a tuple, (x,); got {got}"


def check_example(
    graph_module: fx.GraphModule,
    args: object,
    kwargs: Mapping[str, Any],
    call: str,
    kind: type[FxGraftError],
) -> None:
    """Raise such an error where ``graph_module`` does not run with these arguments. Nothing is changed.

    Args:
        graph_module: what runs.
        args: the positional arguments; they have to be a tuple.
        kwargs: those by name.
        call: whose example it is, for the message.
        kind: of the error.
    """
    if why := why_no_arguments(args, call):
        raise kind(why)
    assert isinstance(args, tuple)
    copies, named = torch.utils._pytree.tree_map_only(Tensor, torch.clone, (args, dict(kwargs)))
    with untouched(graph_module), torch.enable_grad():
        try:
            graph_module(*copies, **named)
        except Exception as failure:
            inputs = ", ".join(str(node.target) for node in graph_module.graph.find_nodes(op="placeholder"))
            given = [*map(_described, args), *(f"{name}={_described(v)}" for name, v in kwargs.items())]
            raise kind(
                f"example_args of {call}: expected arguments that the module runs with, forward({inputs}); "
                f"got ({', '.join(given)}), with which it raised {type(failure).__name__}: "
                f"{_first_line(failure)}"
            ) from failure


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}".replace("torch.", "")
    return f"a {type(value).__name__}"


def _first_line(failure: Exception) -> str:
    return (str(failure).splitlines() or [""])[0]


_SEED = 0


def example_of(graph_module: fx.GraphModule) -> tuple[Tensor, ...]:
    """An input for each placeholder without a default: normal numbers, or zeros where they are integers.

    Raises:
        ChannelError: a placeholder does not say of what form its input is.
    """
    generator = torch.Generator().manual_seed(_SEED)
    found = []
    for node in graph_module.graph.find_nodes(op="placeholder"):
        form = next(
            (node.meta[key] for key in ("val", "tensor_meta", "observation") if key in node.meta), None
        )
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
