"""The private parts of torch that passes and operators use; the others are in ``fxgraft._torch``.

Each has been seen to work with torch 2.13.0 (the CPU wheel) and 2.14.1 (the CUDA build of PyPI), and says
what happens where it is missing; ``tests/util/test_torch.py`` calls each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.utils._device
from torch import fx

_NO_BACKWARD = -1


def is_inside_transform() -> bool:
    """Whether a ``torch.func`` transform runs. Missing: calls of seeds raise."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_in_backward() -> bool:
    """Whether autograd's backward pass runs in this thread. Missing: calls of seeds raise."""
    return backward_pass() != _NO_BACKWARD


def backward_pass() -> int:
    """Which backward pass runs in this thread: no two have the same number. Missing: training raises."""
    return int(torch._C._current_graph_task_id())


def is_watched() -> bool:
    """Whether a mode sees each operation. Missing: seeds that blend raise in eager mode."""
    return bool(torch._C._len_torch_dispatch_stack())


def is_wrapped_by_transform(tensor: torch.Tensor) -> bool:
    """Whether it is one of ``torch.func``, with no memory of its own. Missing: the isolation check raises."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor inside of a wrapper of ``torch.func`` transforms. Missing: ``vmap`` in a model raises."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def autocast_devices() -> list[str]:
    """The types of devices that know autocast. Missing: compiled hosts raise inside of autocast."""
    return list(torch._C._autocast_supported_devices())


def is_any_autocast() -> bool:
    """Whether autocast is on, for any type of device. Missing: calls of compiled hosts raise."""
    return bool(torch._C._is_any_autocast_enabled())


DefaultDevices = tuple[torch.device | None, tuple[torch.device, ...]]
"""What ``torch.set_default_device`` has set, and the devices of the ``with torch.device(...)`` around."""


def default_devices() -> DefaultDevices | None:
    """What tensors that are made without a device are on; None where another ``TorchFunctionMode`` is on.

    Missing: calls of compiled hosts raise.
    """
    count = torch._C._len_torch_function_stack()
    if not count:
        return _NOTHING_SET
    modes = [torch._C._get_function_stack_at(i) for i in range(count)]
    if not all(isinstance(mode, torch.utils._device.DeviceContext) for mode in modes):
        return None
    by_default = torch.utils._device.CURRENT_DEVICE
    return by_default, tuple(mode.device for mode in modes[by_default is not None :])


_NOTHING_SET: DefaultDevices = None, ()


@contextmanager
def default_devices_are(wanted: DefaultDevices) -> Iterator[None]:
    """Let these be the default devices inside, and no ``TorchFunctionMode`` be on. Missing: as above."""
    if default_devices() == wanted:
        yield
        return
    here = torch.utils._device
    before, modes = here.CURRENT_DEVICE, _take_modes()
    here.CURRENT_DEVICE, within = wanted
    every = within if wanted[0] is None else (wanted[0], *within)
    _put_modes(map(here.DeviceContext, every))  # as torch does: `with` a device does not set that variable
    try:
        yield
    finally:
        _take_modes()
        _put_modes(modes)
        here.CURRENT_DEVICE = before


def _take_modes() -> list[Any]:
    """Take off the ``TorchFunctionMode`` that are on; return them, the innermost last."""
    pop: Callable[[], Any] = torch.overrides._pop_mode
    found = [pop() for _ in range(torch._C._len_torch_function_stack())]
    return found[::-1]


def _put_modes(modes: Iterable[Any]) -> None:
    push: Callable[[Any], None] = torch.overrides._push_mode
    for mode in modes:
        push(mode)


def version(tensor: torch.Tensor) -> int:
    """How often a tensor was written to. Missing: writes while tracing are not seen."""
    return tensor._version


def memory(tensor: torch.Tensor) -> int:
    """Equal for tensors of one storage, while that lives. Missing: what shares memory is copied apart."""
    return int(tensor.untyped_storage()._cdata)


def base(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor that this one is a view of. Missing: `deepen` of blocks without a graph raises."""
    return tensor._base


def empty_like_graph(graph: fx.Graph) -> fx.Graph:
    """A graph without nodes, made by the tracer of ``graph``. Missing: every change of a graph raises."""
    return fx.Graph(tracer_cls=graph._tracer_cls)


def take_code_generator(graph: fx.Graph, of: fx.Graph) -> None:
    """Let code for ``graph`` be generated as that for ``of``. Missing: as above."""
    graph._codegen = of._codegen


def tensor_metadata(tensor: torch.Tensor) -> Any:
    """What ``ShapeProp`` of torch.fx writes on nodes. Missing: changes of a graph raise."""
    from torch.fx.passes.shape_prop import _extract_tensor_metadata

    return _extract_tensor_metadata(tensor)


def unseen_by_modes() -> AbstractContextManager[Any]:
    """Inside, no ``TorchFunctionMode`` sees what is done. Missing: snapshots while tracing raise."""
    return torch._C.DisableTorchFunction() if torch._C._len_torch_function_stack() else nullcontext()


def constant_when_compiled(function: Callable[..., Any]) -> None:
    """What ``torch.compiler.assume_constant_result`` does, without its import. Missing: a graph break."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_constant_when_compiled(value: object) -> bool:
    """Whether `constant_when_compiled` was called with it."""
    return hasattr(value, "_dynamo_marked_constant")
