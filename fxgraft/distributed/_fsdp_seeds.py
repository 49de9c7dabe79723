"""A seed's parameters on the ranks of a sharded host: in parts, or whole on each; gathered while it runs.

    parameters   DTensors on the host's mesh, Shard(0) or Replicate(): what optimizers and checkpoints see
    forward      all-gather -> plain tensors, which the seed's code reads
    backward     reduce-scatter (or all-reduce): each rank's part of the mean over ranks

The gathers are part of the autograd graph, so that gradients arrive at the parameters as they do elsewhere,
with every hook on them. The seed has no part in the state of ``fully_shard``: nothing of it is left in
there when the seed goes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from fxgraft.errors import BlueprintError

SHARD_FROM = 2**16
"""Elements from which a parameter is sharded by default: 256 KiB in float32, less is not worth a gather."""


def distribute(module: nn.Module, mesh: DeviceMesh, shard_from: int = SHARD_FROM) -> Callable[[], None]:
    """Make DTensors of the parameters of ``module``, in place, with the values of the mesh's first rank.

    Every rank calls it. A parameter with at least ``shard_from`` elements is sharded along its first
    dimension, others are replicated; so two runs with other numbers of ranks decide alike.

    Args:
        module: of plain parameters; gets a hook before and one after its forward.
        mesh: of one dimension.
        shard_from: elements from which a parameter is sharded.

    Returns:
        What undoes it: the parameters that were there are put back.

    Raises:
        BlueprintError: the module keeps its parameters in a second place (``nn.LSTM`` and its like).
    """
    for name, part in module.named_modules():
        if hasattr(part, "_flat_weights"):
            raise BlueprintError(
                f"expected a seed whose parameters can be sharded; {name or 'it'} is an "
                f"{type(part).__name__}, which keeps them in a second place"
            )
    before = list(_places(module))
    shared: dict[int, nn.Parameter] = {}
    for owner, name, parameter in before:
        if id(parameter) not in shared:
            placement = Shard(0) if parameter.dim() and parameter.numel() >= shard_from else Replicate()
            tensor = distribute_tensor(parameter.detach(), mesh, [placement])
            shared[id(parameter)] = nn.Parameter(tensor, parameter.requires_grad)
        owner._parameters[name] = shared[id(parameter)]
    gathering = _Gathering(module)
    hooks = (
        module.register_forward_pre_hook(gathering.gather),
        module.register_forward_hook(gathering.put_back, always_call=True),
    )

    def undo() -> None:
        for hook in hooks:
            hook.remove()
        for owner, name, parameter in before:
            owner._parameters[name] = parameter

    return undo


class _Gathering:
    """The whole parameters of a module while its forward runs."""

    def __init__(self, module: nn.Module):
        self._module = weakref.ref(module)
        self._kept: list[list[tuple[nn.Module, str, nn.Parameter]]] = []

    def gather(self, *_: Any) -> None:
        module = self._module()
        assert module is not None
        kept = list(_places(module))
        self._kept.append(kept)
        whole: dict[int, Tensor] = {}
        for owner, name, parameter in kept:
            if isinstance(parameter, DTensor):
                if id(parameter) not in whole:
                    whole[id(parameter)] = _gathered(parameter)
                owner._parameters[name] = whole[id(parameter)]  # type: ignore[assignment]

    def put_back(self, *_: Any) -> None:
        for owner, name, parameter in self._kept.pop() if self._kept else ():
            owner._parameters[name] = parameter


def _gathered(parameter: DTensor) -> Tensor:
    """The whole of ``parameter``, plain; its gradient comes back as the mean over ranks."""
    mesh = parameter.device_mesh
    whole = parameter.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    if whole.requires_grad:
        size = mesh.size()  # before the sum: scaled gradients of float16 would overflow
        whole.register_hook(lambda grad: grad / size)  # type: ignore[no-untyped-call]
    assert isinstance(whole, Tensor)
    return whole


def _places(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield owner, name, parameter
