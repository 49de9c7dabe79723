"""Which parameters an optimizer can take while it trains: what it would refuse later is refused at once.

An optimizer is right for a seed if it updates each parameter separately: else an isolated seed would affect
the host through it. Those of torch are known; any other is tried on dummy parameters (`_trial`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn, optim
from torch.optim import Optimizer

from fxgraft.optimizers import _trial
from fxgraft.optimizers.entries import ELEMENT_WISE

_FOR_EACH = (*ELEMENT_WISE, optim.Adafactor, optim.Muon)
"""Those that update each parameter separately, with dense gradients."""

_STEPS = {inspect.unwrap(kind.step): kind for kind in _FOR_EACH}
_REAL_ONLY = (optim.Adafactor, optim.Muon)
INSTEAD = (
    "Give the manager an optimizer beside it that updates each parameter separately, and step both: "
    "SeedManager(host, [optimizer, torch.optim.AdamW([{'params': []}], lr=1e-3)])"
)
logger = logging.getLogger("fxgraft")
_untried: set[type[Optimizer]] = set()


def why_incompatible(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: nn.Parameter, tries: bool = True
) -> str | None:
    """Why ``optimizer`` cannot train a new ``parameter`` in its ``group`` now; None if it can.

    Args:
        optimizer: any.
        group: of its.
        parameter: of a seed.
        tries: whether to try out an optimizer that is not known; on the training thread only.
    """
    if isinstance(optimizer, optim.LBFGS):
        return (
            f"LBFGS takes one step along one direction for all its parameters together: an isolated seed "
            f"would affect the host. Train with one that updates each separately (SGD, AdamW, …). {INSTEAD}"
        )
    if isinstance(optimizer, optim.SparseAdam):
        return f"SparseAdam takes sparse gradients, and those of a seed are dense. {INSTEAD}"
    known = _STEPS.get(inspect.unwrap(type(optimizer).step))
    if known is optim.Muon and parameter.dim() != 2:
        return (
            f"Muon takes matrices, and it has {parameter.dim()} dimension(s); give the manager a second "
            f"optimizer beside it, with a parameter of the host that has as many"
        )
    if is_fused_sgd(optimizer, group) and group["dampening"]:
        return (
            f"SGD(fused=True) with momentum and dampening begins all parameters of a group in one step, and "
            f"takes none later; make it with foreach=True. {INSTEAD}"
        )
    if known in _REAL_ONLY and parameter.is_complex():
        return f"{known.__name__} takes real parameters, and it is complex. {INSTEAD}"
    if known is not None or not tries or parameter.is_meta:
        return None
    return _tried(optimizer, group, parameter)


def is_fused_sgd(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Whether that is a group of the fused SGD with momentum, in which all have a momentum buffer or none."""
    if not (group.get("fused") and group.get("momentum")):
        return False
    return _STEPS.get(inspect.unwrap(type(optimizer).step)) is optim.SGD


def begin_in_step(optimizer: Optimizer, group: Mapping[str, Any], parameters: Iterable[nn.Parameter]) -> None:
    """Make new ``parameters`` of a group that has begun take part in its next step.

    The fused SGD takes all parameters of a group at their first step, or none. Where others have a momentum
    buffer, one of zeros is added: from it SGD makes the step that it makes without, as there is no dampening.
    """
    if not is_fused_sgd(optimizer, group) or not any(_has_begun(optimizer, p) for p in group["params"]):
        return
    for parameter in parameters:
        if not _has_begun(optimizer, parameter):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _has_begun(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    # By `get`: looking a parameter up in `optimizer.state` adds it.
    return optimizer.state.get(parameter, {}).get("momentum_buffer") is not None


def _tried(optimizer: Optimizer, group: Mapping[str, Any], parameter: nn.Parameter) -> str | None:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        if type(optimizer) not in _untried:
            _untried.add(type(optimizer))
            logger.warning(
                "%s is not known, and on several ranks it is not tried out: expected an optimizer that "
                "updates each parameter separately. Another one lets isolated seeds affect the host",
                type(optimizer).__name__,
            )
        return None
    why = _trial.why_not(optimizer, group, parameter)
    return None if why is None else f"{why}. {INSTEAD}"
