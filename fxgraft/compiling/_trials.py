"""Compiled code is compared with eager mode before it is trusted.

Each piece of code runs beside eager mode in the first real call that it serves, on the call's own
arguments: both runs leave no trace, and random ones begin with the same streams. The first call compares
what comes out, and runs eager; where gradients are on, the second compares gradients as well. So a first step
costs one forward more, and the second a step and a half. A difference is an error in the log, and the calls
go on in eager mode.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxgraft import _torch
from fxgraft.compiling._artifacts import Entry
from fxgraft.compiling._calls import CallKind
from fxgraft.compiling._comparison import UnitCall, is_checkpointed
from fxgraft.compiling.variants import Variant, enter, touch

logger = logging.getLogger("fxgraft")

MAX_TRIALS = 64
"""How many a variant remembers."""

MAX_OF_A_FAMILY = 3
"""How often code of dynamo is compared for one family of calls, as it compiles again for other sizes."""

_EXACT = ("eager", "aot_eager")
"""The backends that may not round otherwise than eager mode."""


@dataclass
class Trial:
    """What is known of a piece of code.

    Attributes:
        forward: whether what comes out was compared.
        backward: whether gradients were.
        graphs: how many graphs dynamo had compiled at that time.
        times: how often it was tried anew.
    """

    forward: bool = False
    backward: bool = False
    graphs: int = 0
    times: int = 0


class Trials:
    """Compares the code of a host's variants.

    Args:
        options: of ``torch.compile``.
    """

    def __init__(self, options: Mapping[str, Any]):
        self._is_exact = options.get("backend", "inductor") in _EXACT

    def pending(
        self, variant: Variant, source: object, kind: CallKind | None, modules: Sequence[nn.Module]
    ) -> Trial | None:
        """The trial that a call of ``kind``, which ``source`` runs, is to be; None if there is none."""
        if kind is None or threading.current_thread() is not threading.main_thread():
            return None  # the random streams are the main thread's
        if torch.is_inference_mode_enabled() or _torch.is_inside_transform():
            return None
        key = (source, kind.family)
        trial = variant.trials.get(key) or Trial()
        touch(variant.trials, key, trial, MAX_TRIALS)
        if trial.forward and (trial.backward or not kind.grad):
            if source is not None or trial.times >= MAX_OF_A_FAMILY or trial.graphs == variant.graphs:
                return None
            trial.forward = trial.backward = False  # there is new code, for other sizes
        return None if _have_hooks(modules) else trial

    def on_trial(self, variant: Variant, trial: Trial, entry: Entry, modules: Sequence[nn.Module]) -> Entry:
        """What runs a call in which ``entry`` is on trial.

        Args:
            variant: whose code it is.
            trial: what is known.
            entry: the code.
            modules: the unit, and the grafts that it runs.
        """

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            grad = torch.is_grad_enabled()
            # A checkpoint runs the call again, by the same code: then all is compared at once.
            at_once = is_checkpointed()
            backward = grad and (trial.forward or at_once)
            difference = UnitCall(modules, args, kwargs, backward, self._is_exact).difference(entry)
            trial.forward, trial.backward = True, backward
            trial.graphs, trial.times = variant.graphs, trial.times + backward
            if difference is not None:
                variant.distrusted = f"compiled it differs from eager mode: {difference}"
                variant.look_again()
                logger.error("%s: %s; it runs uncompiled from now on", variant.label, variant.distrusted)
            if difference is not None or (grad and not backward):
                return enter(module, *args, **kwargs)
            return entry(module, *args, **kwargs)

        return call


def _have_hooks(modules: Sequence[nn.Module]) -> bool:
    """Whether somebody looks on: who counts calls must not see those that are undone."""
    parts = (part for module in modules for part in module.modules())
    return any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in parts)
