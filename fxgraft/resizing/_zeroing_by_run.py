"""The layers that end a branch in code without a graph, found on what that code did in the example call.

    addmm(bias, x, weight) ──▶ view ──▶ dropout ──▶ what attention returns          zeroed: weight, bias

A module whose code has no graph (attention with a cache) is looked at by the operations of torch that it
carried out: from what it returned back to the layers whose weights it multiplied with last.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fxgraft.errors import ChannelError
from fxgraft.host.channels import subject_of
from fxgraft.host.host import Host
from fxgraft.resizing._zero_operations import ADD, CASTS, MOVES, TIMES, VIEWS, WEIGHTED, NoOutputLayerError
from fxgraft_passes import _torch as _torch_of_passes
from fxgraft_passes.channels.recording import Operation, Recording, name_of, tensors_in
from fxgraft_passes.naming import OWN_FORWARD

_SUMS, _PRODUCTS, _MOVES, _CASTS, _WEIGHTED = (
    frozenset(name if isinstance(name, str) else name_of(name) for name in table)
    for table in (ADD, TIMES, MOVES, CASTS | VIEWS, (*WEIGHTED, F.batch_norm, F.group_norm, F.instance_norm))
)
_WAY_ENDS = "the way from its output back to its input ends at"
_ZEROS = {"zeros", "zeros_like", "new_zeros"}
_PUTS = {"setitem", "index_add", "scatter_add", "index_copy"}
"""What puts its last argument into its first."""
_GIVE_BACK = {"flatten", "expand", "requires_grad"}
"""What may give back the tensor that it is given, and leaves it as it is."""


@dataclass
class _ObservedRun:
    """One run.

    Attributes:
        returned: what the module returned, call by call.
        given: the arguments of these calls, by the names of parameters.
        recording: what was done; keeps the tensors.
        made: tensor -> the operation that made it.
        changed: tensor -> what changed it in place.
        weights: tensor -> the name of the parameter that it is.
    """

    returned: list[Any]
    given: list[dict[str, Any]]
    recording: Recording
    made: dict[int, Operation]
    changed: dict[int, list[Operation]]
    weights: dict[int, str]


class ObservedBranchEnds:
    """Finds what ends the branches of a host's modules.

    Args:
        host: the host.
    """

    def __init__(self, host: Host):
        self._host = host

    def __call__(self, path: str, element: int | None) -> set[str]:
        """The parameters, named from the host, that are to be zero so that (an element of) the result is.

        Raises:
            NoOutputLayerError: there are none; with the operation at which the search ended.
        """
        seen = self._seen(path)
        found: set[str] = set()
        if not seen.returned:
            raise NoOutputLayerError(f"{path}, which has no graph, is not called in the example call")
        for value in seen.returned:  # one that runs in several branches ends them all
            _zero(path, _value_of(path, value, element), seen, found)
        return found

    def of_block(self, path: str, parameter: str, element: int | None) -> set[str]:
        """The same for all that a block adds to what it is given as that parameter.

        Raises:
            NoOutputLayerError: what it returns is no such sum; with the operation at which the search ended.
        """
        found: set[str] = set()
        for training in (False, True):  # code may take another way
            seen = self._seen(path, training)
            if len(seen.returned) != 1:
                raise NoOutputLayerError(
                    f"{path}, which has no graph, is called {len(seen.returned)} times in a run"
                )
            value, stream = _value_of(path, seen.returned[0], element), seen.given[0].get(parameter)
            added: set[str] = set()
            _follow(path, value, stream, seen, added)
            if not added:
                raise NoOutputLayerError(
                    f"{path} has no graph, and adds nothing in the example call, so that what it adds in "
                    f"others is not known"
                )
            found |= added
        return found

    def _seen(self, path: str, training: bool = False) -> _ObservedRun:
        try:
            subject = subject_of(self._host, self._host.example_call())
        except ChannelError as error:
            raise NoOutputLayerError(f"{path} has no graph, and cannot be run: {error}") from error
        seen: list[tuple[dict[str, Any], Any]] = []
        recording = Recording()
        with subject.session(), _watched(subject.modules[path], seen):
            try:
                used = subject.record({}, training, recording)
            except Exception as error:
                raise NoOutputLayerError(
                    f"{path} has no graph, and the example call fails: {error}"
                ) from error
        weights = {id(tensor): name for name, tensor in used.items() if subject.is_parameter(name)}
        inside = [o for o in recording.operations if f"{o.module}.".startswith(f"{path}.")]
        _refuse_unused(path, inside, weights)
        return _ObservedRun(
            [result for _, result in seen],
            [given for given, _ in seen],
            recording,
            *_makers(recording.operations, inside),
            weights,
        )


def _makers(
    every: list[Operation], inside: list[Operation]
) -> tuple[dict[int, Operation], dict[int, list[Operation]]]:
    """Tensor -> the operation that made it; and those of the module's own that changed it in place."""
    made: dict[int, Operation] = {}
    changed: dict[int, list[Operation]] = {}
    own = {id(operation) for operation in inside}
    for operation in every:
        read = {id(tensor) for tensor in tensors_in((operation.args, operation.kwargs))}
        for tensor in tensors_in(operation.result):
            if id(tensor) not in read:
                made[id(tensor)] = operation
            elif id(operation) in own and _plain_name(operation) not in _GIVE_BACK:
                changed.setdefault(id(tensor), []).append(operation)
                if (base := _torch_of_passes.base(tensor)) is not None:
                    changed.setdefault(id(base), []).append(operation)
    return made, changed


def _refuse_unused(path: str, operations: list[Operation], weights: dict[int, str]) -> None:
    """Raise `NoOutputLayerError` where another call may do what the example call did not."""
    read = {id(t) for o in operations for t in tensors_in((o.args, o.kwargs))}
    for tensor, name in weights.items():
        if tensor not in read and name.startswith(f"{path}."):
            raise NoOutputLayerError(
                f"{path} has no graph, and its parameter {name} was not used in the example call; in another "
                f"call it may be"
            )


@contextmanager
def _watched(module: nn.Module, seen: list[tuple[dict[str, Any], Any]]) -> Iterator[None]:
    """Keep the arguments and the result of each call of the module's own forward, without seeds behind it."""
    name = OWN_FORWARD if OWN_FORWARD in module.__dict__ else "forward"
    before = module.__dict__.get(name)
    forward = MethodType(type(module).forward, module)

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = (forward if before is None else before)(*args, **kwargs)
        seen.append((inspect.signature(forward).bind(*args, **kwargs).arguments, result))
        return result

    module.__dict__[name] = watched
    try:
        yield
    finally:
        if before is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = before


def _value_of(path: str, value: Any, element: int | None) -> Tensor:
    """What the module returned, or an element of that."""
    if element is not None and isinstance(value, (tuple, list)):
        value = value[element]
    if not isinstance(value, Tensor):
        raise NoOutputLayerError(
            f"{path}, which has no graph, returns a {type(value).__name__}, and no tensor"
        )
    return value


def _follow(path: str, value: Tensor, stream: Any, seen: _ObservedRun, found: set[str]) -> None:
    """Zero all that is added on the way from ``stream`` to ``value``."""
    for change in seen.changed.get(id(value), ()):
        if _plain_name(change) not in _SUMS:
            raise NoOutputLayerError(f"{_WAY_ENDS} {change.name}, no sum")
        for other in _summands(change):
            if other is not value:
                _zero(path, other, seen, found)
    if value is stream:
        return None
    operation = seen.made.get(id(value))
    if operation is not None and _is_of_a_seed(operation):
        return _follow(path, operation.args[1], stream, seen, found)
    name = "" if operation is None else _plain_name(operation)
    if operation is None or name not in _SUMS | _CASTS:
        raise NoOutputLayerError(
            f"{_WAY_ENDS} {'a constant' if operation is None else operation.name}, no sum"
        )
    sides = tensors_in(operation.args)[:1] if name in _CASTS else _summands(operation)
    for i, side in enumerate(sides[:1] if name == "sub" else sides):
        further = set(found)
        try:
            _follow(path, side, stream, seen, further)
        except NoOutputLayerError as reason:
            last = reason
            continue
        for other in sides[:i] + sides[i + 1 :]:
            _zero(path, other, seen, further)
        found |= further
        return None
    raise last


def _summands(operation: Operation) -> list[Tensor]:
    """What a sum is of, where it is a sum of two tensors and nothing else."""
    given = [*operation.args, *operation.kwargs.values()]
    tensors = [value for value in given if isinstance(value, Tensor)]
    if len(tensors) != 2 or len(given) != 2:  # a factor such as `alpha`, or a number that is added
        raise NoOutputLayerError(f"{_WAY_ENDS} {operation.name}, no sum of two")
    return tensors


def _plain_name(operation: Operation) -> str:
    name = name_of(operation.target).strip("_")
    return name.removeprefix("i") if name in ("iadd", "isub", "imul") else name


def _zero(path: str, value: Tensor, seen: _ObservedRun, found: set[str]) -> None:
    """Collect the parameters to zero so that ``value`` is zero."""
    if (own := seen.weights.get(id(value))) is not None:
        found.add(own)
        return
    for change in seen.changed.pop(id(value), ()):  # once: a change may be of a part of it that it gave
        _zero_what_comes_in(path, change, value, seen, found)
    operation = seen.made.get(id(value))
    if operation is None:
        raise NoOutputLayerError(f"a branch of {path} gives back what it was given")
    name = _plain_name(operation)
    given = tensors_in((operation.args, operation.kwargs))
    if name in _WEIGHTED:
        weights = {own for tensor in given if (own := _weight(tensor, seen)) is not None}
        if not weights:
            raise NoOutputLayerError(f"a branch ends with {operation.name}, which multiplies no weights")
        found |= weights
    elif operation.target is F.multi_head_attention_forward and value is operation.result[0]:
        found |= _output_of_attention(operation, seen)
    elif name in _SUMS:
        for tensor in given:
            _zero(path, tensor, seen, found)
    elif name in _PRODUCTS:
        _zero_factor(path, operation, given, seen, found)
    elif name in _MOVES and given:
        _zero(path, given[0], seen, found)
    elif _is_of_a_seed(operation):
        _zero(path, operation.args[1], seen, found)
    elif name not in _ZEROS:
        raise NoOutputLayerError(f"a branch ends with {operation.name}, which is no layer with weights")


def _is_of_a_seed(operation: Operation) -> bool:
    """Whether it shows that an isolated seed is there (`branches_shown`), and gives back its value."""
    if _plain_name(operation) != "where" or len(operation.args) != 3:
        return False
    return operation.args[1] is operation.args[2]


def _zero_what_comes_in(
    path: str, change: Operation, value: Tensor, seen: _ObservedRun, found: set[str]
) -> None:
    """Collect the parameters to zero so that a change in place leaves ``value`` zero."""
    name = _plain_name(change)
    if name in _MOVES | _PRODUCTS:
        return
    if name not in _SUMS | _PUTS:
        raise NoOutputLayerError(f"a branch ends with {change.name}, which is no layer with weights")
    given = [*change.args, *change.kwargs.values()]
    given = given[-1:] if name in _PUTS else [one for one in given if isinstance(one, Tensor)]
    for other in given:
        if isinstance(other, Tensor) and other is not value:
            _zero(path, other, seen, found)
        elif not isinstance(other, Tensor) and other != 0:
            raise NoOutputLayerError(f"{change.name} adds a constant")


def _output_of_attention(operation: Operation, seen: _ObservedRun) -> set[str]:
    """The parameters of the output layer that `nn.MultiheadAttention` gives to the function that it calls."""
    call = inspect.signature(F.multi_head_attention_forward).bind(*operation.args, **operation.kwargs)
    given = [call.arguments.get(name) for name in ("out_proj_weight", "out_proj_bias")]
    weights = [_weight(tensor, seen) for tensor in given if isinstance(tensor, Tensor)]
    if None in weights:
        raise NoOutputLayerError(
            f"a branch ends with {operation.name}, whose output layer is computed of others"
        )
    return {name for name in weights if name is not None}


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
        except NoOutputLayerError as reason:
            reasons.append(str(reason))
            continue
        found |= further
        return
    raise NoOutputLayerError(reasons[0] if reasons else f"{operation.name} has no factor with weights")
