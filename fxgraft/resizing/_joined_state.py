"""What optimizers keep for a branch's parameters, carried over to the parameters that they become part of.

An optimizer of the Adam family divides its moments by ``1 - beta ** step``, and has one step for a parameter.
The moments of a branch that has taken t steps, as part of a parameter that has taken T, are scaled so that
their meaning stays::

    exp_avg     * (1 - beta1 ** T) / (1 - beta1 ** t)
    exp_avg_sq  * (1 - beta2 ** T) / (1 - beta2 ** t)

What is added at an alpha is alpha times the branch's parameter: its gradient is 1 / alpha times that of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft.optimizers.group_index import groups_with
from fxgraft.optimizers.wrapped import with_nested
from fxgraft.resizing._moments import in_another_shape
from fxgraft.resizing._same_settings import StructureMismatchError

_POWERS = {
    "momentum_buffer": -1,
    "exp_avg": -1,
    "exp_inf": -1,
    "exp_avg_sq": -2,
    "max_exp_avg_sq": -2,
    "square_avg": -2,
    "grad_avg": -1,
    "sum": -2,
    "acc_delta": 2,
    "prev": -1,
    "step_size": 1,
    "ax": 1,
}
"""Key of a state -> by which power of alpha it is multiplied where the parameter is multiplied by alpha."""

_CORRECTED = {"exp_avg": 0, "exp_avg_sq": 1, "max_exp_avg_sq": 1}
"""Key of a state that is divided by ``1 - beta ** step`` -> which of the betas."""

_WITHOUT_COUNT = (torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adadelta, torch.optim.Rprop)
"""Optimizers to which the number of steps taken makes no difference."""


@dataclass(frozen=True)
class Carried:
    """State of one parameter of a branch that becomes part of that of one of the host.

    Attributes:
        ours: the host's state.
        found: key -> the branch's, as it is to be there, of the shape of the branch's parameter.
    """

    ours: dict[str, Any]
    found: Mapping[str, Tensor]


def carried(
    path: str,
    ours: nn.Parameter,
    theirs: nn.Parameter,
    share: float,
    optimizers: Sequence[Optimizer],
) -> list[Carried]:
    """What becomes of the state of ``theirs``. Changes nothing.

    Args:
        path: of the host's parameter.
        ours: this.
        theirs: the branch's.
        share: what the branch's is multiplied by.
        optimizers: that may have them.

    Raises:
        StructureMismatchError: it cannot be carried over.
    """
    holders = with_nested(optimizers)
    own = [holder for holder in holders if _has_state(holder, ours)]
    found = []
    for holder in [holder for holder in holders if _has_state(holder, theirs)]:
        _check_shapes(path, holder, theirs)
        others = [other for other in own if type(other) is type(holder) and not _has_state(other, theirs)]
        to = holder if holder in own else next(iter(others), None)
        if to is None:
            raise StructureMismatchError(
                f"was trained by {type(holder).__name__}, whose state {path} has not: expected "
                f"both in optimizers of one class, with state for both. Train both for a step, or "
                f"germinate(..., optimizer=...) in that of {path}"
            )
        state, before = to.state[ours], holder.state[theirs]
        values = {
            key: value.detach() * _factor(path, key, (to, ours), (holder, theirs), share)
            for key, value in before.items()
            if isinstance(value, Tensor) and value.shape == theirs.shape and key in state and value.dim()
        }
        found.append(Carried(state, values))
    for holder in own:
        _check_shapes(path, holder, ours)
    return found


def other_settings(
    ours: nn.Parameter, theirs: nn.Parameter, optimizers: Sequence[Optimizer]
) -> dict[str, tuple[Any, Any]]:
    """The hyper-parameters that differ: name -> those of the branch's parameter, and of the host's."""
    holders = with_nested(optimizers)
    then, now = (next(groups_with(holders, parameter), {}) for parameter in (theirs, ours))
    names = then.keys() & now.keys() - {"params", "param_names", "initial_lr"}
    return {name: (then[name], now[name]) for name in sorted(names) if not _is_equal(then[name], now[name])}


def check_owner(
    path: str,
    ours: Sequence[nn.Parameter],
    theirs: Sequence[nn.Parameter],
    optimizers: Sequence[Optimizer],
) -> None:
    """Raise `StructureMismatchError` where optimizers have parameters of a fossil, and none of the host's."""
    now, then = (any(True for p in each for _ in groups_with(optimizers, p)) for each in (ours, theirs))
    if then and not now:
        raise StructureMismatchError(
            f"is trained by an optimizer, and {path} by none, so that it would not be trained any more. "
            f"Expected both in an optimizer of the manager: optimizer.add_param_group with {path} first"
        )


def _is_equal(a: Any, b: Any) -> bool:
    return bool(torch.equal(a, b)) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)


def _has_state(holder: Optimizer, parameter: nn.Parameter) -> bool:
    return any(isinstance(value, Tensor) for value in holder.state.get(parameter, {}).values())


def _check_shapes(path: str, holder: Optimizer, parameter: nn.Parameter) -> None:
    for key, _ in in_another_shape(holder, parameter):
        raise StructureMismatchError(
            f"is trained by {type(holder).__name__}, which keeps {key!r} in another shape than that of "
            f"the parameter, so that it cannot be joined to that of {path}: expected an optimizer whose "
            f"state has the shape of its parameter. Fuse with another optimizer, then make this one anew"
        )


def _factor(
    path: str,
    key: str,
    ours: tuple[Optimizer, nn.Parameter],
    theirs: tuple[Optimizer, nn.Parameter],
    share: float,
) -> float:
    """What an entry of the branch's state is multiplied by."""
    if share != 1.0 and key not in _POWERS:
        raise StructureMismatchError(
            f"was trained by {type(ours[0]).__name__}, which keeps {key!r}, and it is not known what becomes "
            f"of this where a parameter is multiplied by alpha, {share:g}: expected alpha 1"
        )
    factor = share ** _POWERS.get(key, 0) if share else 0.0
    old, young = (_steps(holder, parameter) for holder, parameter in (ours, theirs))
    if old == young or isinstance(ours[0], _WITHOUT_COUNT):
        return factor
    if isinstance(ours[0], torch.optim.Adagrad) and not _group(*ours).get("lr_decay"):
        return factor
    if not isinstance(ours[0], (torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax)):
        raise StructureMismatchError(
            f"has taken {young:g} steps and {path} {old:g}, and {type(ours[0]).__name__} has one count for "
            f"both; how its state goes on then is known of SGD, RMSprop, Adagrad, Adadelta, Rprop, Adam, "
            f"AdamW and Adamax: expected one of them, or a new optimizer"
        )
    if key not in _CORRECTED or young == 0:
        return factor
    then, now = (float(_group(*one)["betas"][_CORRECTED[key]]) for one in (theirs, ours))
    return float(factor * (1 - now**old) / (1 - then**young))


def _steps(holder: Optimizer, parameter: nn.Parameter) -> float:
    return float(holder.state[parameter].get("step", 0))


def _group(holder: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    return next(groups_with([holder], parameter), {**holder.defaults})
