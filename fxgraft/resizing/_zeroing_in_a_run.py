"""The layers that end a branch in code without a graph, found on what that code did in the example call.

    addmm(bias, x, weight) ──▶ view ──▶ dropout ──▶ what attention returns          zeroed: weight, bias

A module whose code has no graph (attention with a cache) is looked at by the operations of torch that it
carried out: from what it returned back to the layers whose weights it multiplied with last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft.errors import ChannelError
from fxgraft.host.channels import subject_of
from fxgraft.host.host import Host
from fxgraft.resizing._no_output_layers import NotFoundError
from fxgraft.resizing._zero_operations import ADD, MOVES, TIMES, WEIGHTED
from fxgraft_passes.channels.recording import Operation, Recording, name_of, tensors_in

_SUMS, _PRODUCTS, _MOVES, _WEIGHTED = (
    frozenset(name if isinstance(name, str) else name_of(name) for name in table)
    for table in (ADD, TIMES, MOVES, (*WEIGHTED, F.batch_norm, F.group_norm, F.instance_norm))
)


@dataclass
class _ObservedRun:
    """One run.

    Attributes:
        returned: what the module returned.
        recording: what was done; keeps the tensors.
        made: tensor -> the operation that made it.
        weights: tensor -> the name of the parameter that it is.
    """

    returned: list[Any]
    recording: Recording
    made: dict[int, Operation]
    weights: dict[int, str]


class Endings:
    """Finds what ends the branches of a host's modules.

    Args:
        host: the host.
    """

    def __init__(self, host: Host):
        self._host = host

    def __call__(self, path: str, element: int | None) -> set[str]:
        """The parameters, named from the host, that are to be zero so that (an element of) the result is.

        Raises:
            NotFoundError: there are none; with the operation at which the search ended.
        """
        seen = self._seen(path)
        if len(seen.returned) != 1:
            raise NotFoundError(f"{path}, which has no graph, is called {len(seen.returned)} times in a run")
        value = seen.returned[0]
        if element is not None and isinstance(value, (tuple, list)):
            value = value[element]
        if not isinstance(value, Tensor):
            raise NotFoundError(
                f"{path}, which has no graph, returns a {type(value).__name__}, and no tensor"
            )
        found: set[str] = set()
        _zero(path, value, seen, found)
        return found

    def _seen(self, path: str) -> _ObservedRun:
        try:
            subject = subject_of(self._host, self._host.example_call())
        except ChannelError as error:
            raise NotFoundError(f"{path} has no graph, and cannot be run: {error}") from error
        returned: list[Any] = []

        def keep(module: nn.Module, args: Any, result: Any) -> None:
            returned.append(result)

        recording = Recording()
        with subject.session():
            handle = subject.modules[path].register_forward_hook(keep)
            try:
                used = subject.record({}, False, recording)
            except Exception as error:
                raise NotFoundError(f"{path} has no graph, and the example call fails: {error}") from error
            finally:
                handle.remove()
        made: dict[int, Operation] = {}
        for operation in recording.operations:
            read = {id(tensor) for tensor in tensors_in((operation.args, operation.kwargs))}
            for tensor in tensors_in(operation.result):
                if id(tensor) not in read:  # what gives its input back makes nothing
                    made[id(tensor)] = operation
        weights = {id(tensor): name for name, tensor in used.items() if subject.is_parameter(name)}
        return _ObservedRun(returned, recording, made, weights)


def _zero(path: str, value: Tensor, seen: _ObservedRun, found: set[str]) -> None:
    """Let ``value`` be zero, by parameters that are."""
    if (own := seen.weights.get(id(value))) is not None:
        found.add(own)
        return
    operation = seen.made.get(id(value))
    if operation is None:
        raise NotFoundError(f"a branch of {path} gives back what it was given")
    name = name_of(operation.target).strip("_")
    name = name.removeprefix("i") if name in ("iadd", "isub", "imul") else name
    given = [
        leaf for leaf in pytree.tree_leaves((operation.args, operation.kwargs)) if isinstance(leaf, Tensor)
    ]
    if name in _WEIGHTED:
        weights = {own for tensor in given if (own := _weight(tensor, seen)) is not None}
        if not weights:
            raise NotFoundError(f"a branch ends with {operation.name}, which multiplies no weights")
        found |= weights
    elif name in _SUMS:
        for tensor in given:
            _zero(path, tensor, seen, found)
    elif name in _PRODUCTS:
        _zero_factor(path, operation, given, seen, found)
    elif name in _MOVES and given:
        _zero(path, given[0], seen, found)
    else:
        raise NotFoundError(f"a branch ends with {operation.name}, which is no layer with weights")


def _weight(tensor: Tensor, seen: _ObservedRun) -> str | None:
    """The parameter that a tensor is, perhaps turned."""
    while id(tensor) not in seen.weights:
        operation = seen.made.get(id(tensor))
        if operation is None or name_of(operation.target) not in (
            "t",
            "T",
            "mT",
            "transpose",
            "to",
            "type_as",
        ):
            return None
        tensor = tensors_in(operation.args)[0]
    return seen.weights[id(tensor)]


def _zero_factor(
    path: str, operation: Operation, given: list[Tensor], seen: _ObservedRun, found: set[str]
) -> None:
    """One factor is enough: the one that ends with a layer, rather than a scale."""
    reasons = []
    for tensor in sorted(given, key=lambda factor: id(factor) in seen.weights):
        further = set(found)
        try:
            _zero(path, tensor, seen, further)
        except NotFoundError as reason:
            reasons.append(str(reason))
            continue
        found |= further
        return
    raise NotFoundError(reasons[0] if reasons else f"{operation.name} has no factor with weights")
