"""Compiled code is compared with eager mode before it is trusted.

Each piece of code runs beside eager mode in the first real call that it serves, on the call's own
arguments: both runs leave no trace, and random ones begin with the same streams. The first call compares
what comes out, and runs eager; where gradients are on, the second compares gradients as well. So a first step
costs one forward more, and the second a step and a half. A difference is an error in the log, and the calls
go on in eager mode; so is what the code raises where eager mode does not. A call that cannot be compared (in
inference mode, in another thread) does not count: the next one that can be is.
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
from fxgraft.compiling._artifacts import Artifact, Entry
from fxgraft.compiling._calls import CallKind
from fxgraft.compiling._comparison import UnitCall, is_checkpointed
from fxgraft.compiling.variants import Variant, enter, touch
from fxgraft.util.hooks import has_hooks
from fxgraft_passes import devices

logger = logging.getLogger("fxgraft")

MAX_TRIALS = 64
"""How many a variant remembers."""

_EXACT = ("eager", "aot_eager")
"""The backends that may not round otherwise than eager mode."""


@dataclass
class Trial:
    """What is known of a piece of code.

    Attributes:
        forward: whether what comes out was compared.
        backward: whether gradients were.
    """

    forward: bool = False
    backward: bool = False

    def is_done(self, grad: bool) -> bool:
        """Whether all was compared that calls with gradients on (or off) show."""
        return self.forward and (self.backward or not grad)


class Trials:
    """Compares the code of a host's variants.

    Args:
        options: of ``torch.compile``.
    """

    def __init__(self, options: Mapping[str, Any]):
        self._is_exact = options.get("backend", "inductor") in _EXACT

    def pending(
        self, variant: Variant, source: Artifact | None, kind: CallKind, call: tuple[nn.Module, Any, Any]
    ) -> Trial | None:
        """The trial that a call is to be; None if the code that runs it was compared.

        Args:
            variant: whose code it is.
            source: what the code is of; None: of dynamo.
            kind: of the call.
            call: module, positional and keyword arguments.
        """
        key = (source, kind.family)
        trial = variant.trials.get(key) or Trial()
        touch(variant.trials, key, trial, MAX_TRIALS)
        is_made_now = source is None and not variant.at_limit and not variant.has_graph_for(*call)
        if is_made_now and trial.is_done(kind.grad):
            trial.forward = trial.backward = False  # dynamo compiles again, for other sizes, say
        return None if trial.is_done(kind.grad) else trial

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
            try:
                difference = UnitCall(modules, args, kwargs, backward, self._is_exact).difference(entry)
            except _torch.compile_errors():
                raise
            except Exception as error:  # anything that a module, or a compiler of the user's own, may raise
                if _torch.is_refused_compilation(error):
                    raise
                return _uncompared(variant, trial, error, entry, (module, args, kwargs))
            trial.forward, trial.backward = True, backward
            if difference is not None:
                _distrust(variant, f"compiled it differs from eager mode: {difference}")
                logger.error("%s: %s; it runs uncompiled from now on", variant.label, variant.distrusted)
            if difference is not None or (grad and not backward):
                return enter(module, *args, **kwargs)
            return entry(module, *args, **kwargs)

        return call


def _distrust(variant: Variant, reason: str) -> None:
    variant.distrusted = reason
    variant.look_again()


def _uncompared(
    variant: Variant, trial: Trial, error: Exception, entry: Entry, call: tuple[nn.Module, Any, Any]
) -> Any:
    """Run a call whose comparison raised ``error``: which eager mode does as well, or the comparison only."""
    module, args, kwargs = call
    if devices.is_out_of_memory(error):
        trial.forward = trial.backward = True
        out = entry(module, *args, **kwargs)
        logger.warning(
            "%s: not compared with eager mode, as memory does not suffice: %s", variant.label, error
        )
        return out
    out = enter(module, *args, **kwargs)  # the caller's own mistake is raised here, and nothing else is done
    _distrust(variant, f"running it for a comparison raises {type(error).__name__}: {error}")
    logger.warning("%s: %s; it runs uncompiled from now on", variant.label, variant.distrusted)
    return out


def can_compare() -> bool:
    """Whether calls can be run twice now, without a trace."""
    return (
        threading.current_thread() is threading.main_thread()  # whose random streams they are
        and not torch.is_inference_mode_enabled()
        and not _torch.is_inside_transform()
    )


def have_hooks(modules: Sequence[nn.Module]) -> bool:
    """Whether hooks would see the calls: one that counts calls must not see those that are undone."""
    parts = (part for module in modules for part in module.modules())
    return any(map(has_hooks, parts))
