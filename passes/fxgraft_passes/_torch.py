"""The private parts of torch that passes and operators use; the others are in ``fxgraft._torch``.

Each has been seen to work with torch 2.13.0 (the CPU wheel) and 2.14.1 (the CUDA build of PyPI), and says
what happens where it is missing; ``tests/util/test_torch.py`` calls each.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_NO_BACKWARD = -1


def is_inside_transform() -> bool:
    """Whether a ``torch.func`` transform runs. Missing: calls of seeds raise."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_in_backward() -> bool:
    """Whether autograd's backward pass runs in this thread. Missing: calls of seeds raise."""
    return torch._C._current_graph_task_id() != _NO_BACKWARD


def is_watched() -> bool:
    """Whether a mode looks on at each operation. Missing: seeds that blend raise in eager mode."""
    return bool(torch._C._len_torch_dispatch_stack())


def is_wrapped_by_transform(tensor: torch.Tensor) -> bool:
    """Whether it is one of ``torch.func``, with no memory of its own. Missing: the isolation check raises."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that those of ``torch.func`` transforms stand for. Missing: ``vmap`` in a model raises."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def unseen_by_modes() -> AbstractContextManager[Any]:
    """Inside, no ``TorchFunctionMode`` sees what is done. Missing: snapshots while tracing raise."""
    return torch._C.DisableTorchFunction() if torch._C._len_torch_function_stack() else nullcontext()


def constant_when_compiled(function: Callable[..., Any]) -> None:
    """What ``torch.compiler.assume_constant_result`` does, without its import. Missing: a graph break."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_constant_when_compiled(value: object) -> bool:
    """Whether `constant_when_compiled` was called with it."""
    return hasattr(value, "_dynamo_marked_constant")
