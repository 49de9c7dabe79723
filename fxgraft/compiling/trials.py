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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft.compiling.artifacts import Entry
from fxgraft.compiling.calls import CallKind
from fxgraft.compiling.variants import Variant, enter, touch
from fxgraft.util import _torch
from fxgraft.util.bits import same_bits
from fxgraft_passes import Graft
from fxgraft_passes.untouched import untouched

logger = logging.getLogger("fxgraft")

MAX_TRIALS = 64
"""How many a variant remembers."""

MAX_OF_A_FAMILY = 3
"""How often code of dynamo is compared for one family of calls, as it compiles again for other sizes."""

_EXACT = ("eager", "aot_eager")
_ERROR = {torch.float64: 1e-7, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The relative error (2-norm) up to which values that are summed in another order pass."""


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
            at_once = _is_checkpointed()
            backward = grad and (trial.forward or at_once)
            difference = self._difference(entry, modules, args, kwargs, backward)
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

    def _difference(
        self,
        entry: Entry,
        modules: Sequence[nn.Module],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        backward: bool,
    ) -> str | None:
        """How the code differs from eager mode in such a call, in words; None if it does not."""
        eager = _run(enter, modules, args, kwargs, backward)
        ours = _run(entry, modules, args, kwargs, backward)
        drawn = [found.pop("random streams") for found in (ours, eager)]
        if drawn[0] != drawn[1]:
            # Inductor has a random stream of its own: its masks are others, and cannot be compared.
            return "random numbers drawn" if self._is_exact else _form(ours, eager)
        differ = [what for what in eager if not same_bits(ours[what], eager[what])]
        if self._is_exact and differ:
            again = _run(enter, modules, args, kwargs, backward)
            differ = [what for what in differ if same_bits(again[what], eager[what])] or [
                what for what in differ if _distance(ours[what], eager[what], modules) is not None
            ]
            return f"{', '.join(differ)}" if differ else None
        told = [(what, _distance(ours[what], eager[what], modules)) for what in differ]
        return "; ".join(f"{what} by {distance}" for what, distance in told if distance) or None


def _have_hooks(modules: Sequence[nn.Module]) -> bool:
    """Whether somebody looks on: who counts calls must not see those that are undone."""
    parts = (part for module in modules for part in module.modules())
    return any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in parts)


def _run(
    entry: Entry, modules: Sequence[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any], backward: bool
) -> dict[str, Any]:
    """What a call shows, with all of it undone."""
    module, *_ = modules
    with (
        untouched(*modules),
        _own_attributes(modules),
        _hidden_from_checkpoints(),
        _own_arguments(args, kwargs) as (own_args, own_kwargs, leaves),
    ):
        out = entry(module, *own_args, **own_kwargs)
        for part in (part for m in modules for part in m.modules()):
            if isinstance(part, Graft):
                part.settle()  # compiled code counts in a buffer, eager mode does not
        outputs = [o for o in pytree.tree_leaves(out) if isinstance(o, Tensor)]
        found: dict[str, Any] = {
            "outputs": [o.detach().clone() if isinstance(o, Tensor) else o for o in pytree.tree_leaves(out)],
            "buffers": [b.detach().clone() for m in modules for b in m.buffers()],
            "arguments": [a for a in pytree.tree_leaves((own_args, own_kwargs)) if isinstance(a, Tensor)],
            "random streams": _streams(),
        }
        if backward:
            found["gradients"] = _gradients(outputs, modules, leaves)
        found["arguments"] = [a.detach() for a in found["arguments"]]
    return found


def _gradients(
    outputs: Sequence[Tensor], modules: Sequence[nn.Module], leaves: Sequence[Tensor]
) -> list[Tensor | None]:
    outputs = [o for o in outputs if o.requires_grad]
    learned = list(dict.fromkeys(p for m in modules for p in m.parameters() if p.requires_grad))
    inputs = [*learned, *leaves]
    if not outputs or not inputs:
        return []
    with torch.autocast(outputs[0].device.type, enabled=False):
        weights = [_weights(o) for o in outputs]
        return list(torch.autograd.grad(outputs, inputs, weights, allow_unused=True))


def _weights(output: Tensor) -> Tensor:
    """A gradient that differs from element to element, of numbers that every dtype has."""
    steps = torch.arange(output.numel(), device=output.device) % 7 - 3
    return (steps.to(output.dtype) / 4).reshape(output.shape)


@contextmanager
def _own_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], list[Tensor]]]:
    """Copies of the arguments, and the tensors that gradients of them go to."""
    leaves: dict[Tensor, Tensor] = {}
    copies: dict[Tensor, Tensor] = {}

    def own(value: Any) -> Any:
        if type(value) is not Tensor or _overlaps(value):
            return value
        if value not in copies:
            source = value.detach()
            if value.requires_grad:
                source = leaves[value] = source.requires_grad_()
            with torch.enable_grad():
                copies[value] = source.clone()
            marks = {name: mark for name, mark in value.__dict__.items() if name.startswith("_dynamo")}
            copies[value].__dict__.update(marks)
        return copies[value]

    own_args, own_kwargs = pytree.tree_map(own, (args, kwargs))
    yield own_args, own_kwargs, list(leaves.values())


def _overlaps(tensor: Tensor) -> bool:
    """Whether elements share memory, as an expanded tensor's do: nothing can write into that."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape))


def _is_checkpointed() -> bool:
    return _torch.has_saved_tensor_hooks()


def _hidden_from_checkpoints() -> AbstractContextManager[Any]:
    """Where tensors are packed for a checkpoint, those of the runs inside are not."""
    if not _is_checkpointed():
        return nullcontext()
    # What is packed must not be the tensor itself: it could hold its own graph, in a cycle.
    return torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda packed: packed)


@contextmanager
def _own_attributes(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let plain tensors in attributes (counters, say) be written to inside: they are copies."""
    for part in (part for module in modules for part in module.modules()):
        held = {name: value for name, value in part.__dict__.items() if type(value) is Tensor}
        part.__dict__.update({name: value.detach().clone() for name, value in held.items()})
    yield  # `untouched`, around this, puts attributes back


def _streams() -> list[bytes]:
    """The state of the global random streams."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states.append(torch.cuda.get_rng_state())
    return [bytes(state.numpy().data) for state in states]


def _form(ours: dict[str, Any], eager: dict[str, Any]) -> str | None:
    """Whether shapes and dtypes are other ones."""
    forms = [pytree.tree_map_only(Tensor, lambda t: (t.shape, t.dtype), found) for found in (ours, eager)]
    return None if forms[0] == forms[1] else "shapes or dtypes"


def _distance(ours: Any, eager: Any, modules: Sequence[nn.Module]) -> str | None:
    """How far values are from each other, where that is more than rounding."""
    own, theirs = pytree.tree_leaves(ours), pytree.tree_leaves(eager)
    if len(own) != len(theirs):
        return "another number of tensors"
    dtypes = {p.dtype for m in modules for p in m.parameters()} | {
        t.dtype for t in theirs if isinstance(t, Tensor)
    }
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        dtypes.add(torch.bfloat16)
    most = max((_ERROR.get(dtype, 0.0) for dtype in dtypes), default=0.0)
    return next((told for a, b in zip(own, theirs) if (told := _apart(a, b, most)) is not None), None)


def _apart(ours: Any, eager: Any, most: float) -> str | None:
    if same_bits(ours, eager):
        return None
    if not (isinstance(ours, Tensor) and isinstance(eager, Tensor)):
        return f"{type(ours).__name__} for {type(eager).__name__}"
    try:
        torch.testing.assert_close(ours, eager, equal_nan=True, check_stride=False)
    except AssertionError as error:
        if (ours.shape, ours.dtype) != (eager.shape, eager.dtype) or not eager.is_floating_point():
            return str(error).partition("\n")[0]
        a, b = ours.double(), eager.double()
        apart = float((a - b).norm() / b.norm().clamp_min(1e-12))
        return None if apart <= most else f"a relative error of {apart:.2g}"
    return None
