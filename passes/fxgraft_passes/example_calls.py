"""The example inputs that somebody gives: a tuple of arguments, with which the module runs.

A tensor in the place of the tuple would be taken apart into its rows, and say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor

from fxgraft_passes.errors import FxGraftError
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
