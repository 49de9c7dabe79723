"""Whether compiled code computes what eager mode does: both run on a call's own arguments, without a trace.

Inductor rounds otherwise than eager mode. Small differences are its right, and a large one may be, where a
number lies so close to a kink of the function (of a ReLU, say) that rounding carries it across: then the
gradient there is another one. Whether that is so is tried out: eager mode runs again with weights and
arguments that differ by rounding, until it differs from itself as much, or does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft import _torch
from fxgraft.compiling._artifacts import Entry
from fxgraft.compiling._distance import apart, relative_error
from fxgraft.compiling.variants import enter
from fxgraft.util.bits import overlaps, same_bits
from fxgraft_passes import Graft, devices
from fxgraft_passes.snapshot import Snapshot
from fxgraft_passes.untouched import untouched

_ERROR = {torch.float64: 1e-7, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The relative error (2-norm) up to which values that are summed in another order pass."""

_NOISE = (4, 4, 8, 8, 16, 16, 32, 32, 32, 32, 32, 32)
"""By how many roundings weights and arguments differ, in each run that tells what rounding can do."""

_OF_AUTOCAST = 1 / 16
"""By how much of autocast's roundings: then these runs go from a quarter of one to two."""

_AT_MOST = 4.0
"""How many times what such runs show a difference may be."""

Found = dict[str, Any]
"""What a call shows: outputs, buffers, arguments that it wrote to, gradients, random streams."""


@dataclass(frozen=True)
class UnitCall:
    """A call of a unit, to be run several times.

    Attributes:
        modules: the unit, and the grafts that it runs.
        args: positional arguments.
        kwargs: keyword arguments.
        backward: whether gradients are of interest.
        is_exact: whether the compiler may not round otherwise than eager mode, in float32 and float64. In
            reduced precision any may: the steps of a decomposed operation (of a dropout, say) round there.
    """

    modules: Sequence[nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    backward: bool
    is_exact: bool

    def difference(self, entry: Entry) -> str | None:
        """How ``entry`` differs from eager mode, in words; None if it does not.

        Raises:
            Exception: what eager mode raises, also where only a run that is undone does; that ``entry``
                cannot be, or is not to be, compiled; that memory does not suffice.
        """
        before = Snapshot(self.modules)  # which takes longer than a run of a small model: one for all runs
        eager = self._run(enter, before)
        try:
            ours = self._run(entry, before)
        except _torch.compile_errors():
            raise
        except Exception as error:  # whatever compiled code may raise where eager mode does not
            if devices.is_out_of_memory(error) or _torch.is_refused_compilation(error):
                raise
            return f"it raises {type(error).__name__}: {error}"
        drawn = [found.pop("random streams") for found in (ours, eager)]
        if drawn[0] != drawn[1]:
            # Inductor has a random stream of its own: its masks are others, and cannot be compared.
            return "random numbers drawn" if self.is_exact else _form(ours, eager)
        differ = [what for what in eager if not same_bits(ours[what], eager[what])]
        if self.is_exact and differ and not self._is_reduced(eager):
            again = self._run(enter, before)
            differ = [what for what in differ if same_bits(again[what], eager[what])] or [
                what for what in differ if self._distance(ours[what], eager[what]) is not None
            ]
            return f"{', '.join(differ)}" if differ else None
        distances = {what: found for what in differ if (found := self._distance(ours[what], eager[what]))}
        if not distances or self._is_rounding(
            {what: (ours[what], eager[what]) for what in distances}, before
        ):
            return None
        return "; ".join(f"{what} by {distance}" for what, distance in distances.items())

    def _run(self, entry: Entry, before: Snapshot, noise: float = 0.0, seed: int = 0) -> Found:
        """What a call shows, with all of it undone.

        Args:
            entry: what runs it.
            before: what the modules hold.
            noise: by how much weights and arguments differ from what they are, relative to it.
            seed: of the noise.
        """
        module, *_ = self.modules
        with (
            untouched(*self.modules, before=before),
            _own_attributes(self.modules),
            _hidden_from_checkpoints(),
            _own_arguments(self.args, self.kwargs) as (args, kwargs, leaves),
            _shaken(self.modules, (args, kwargs), noise, seed),
        ):
            out = entry(module, *args, **kwargs)
            for part in (part for m in self.modules for part in m.modules()):
                if isinstance(part, Graft):
                    part.settle()  # compiled code counts in a buffer, eager mode does not
            results = pytree.tree_leaves(out)
            outputs = [o for o in results if isinstance(o, Tensor)]
            found: Found = {
                "outputs": [o.detach().clone() if isinstance(o, Tensor) else o for o in results],
                "buffers": [b.detach().clone() for m in self.modules for b in m.buffers()],
                "arguments": [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor)],
                "random streams": [bytes(state.numpy().data) for state in devices.global_streams()],
            }
            if self.backward:
                found["gradients"] = _gradients(outputs, self.modules, leaves)
            found["arguments"] = [a.detach() for a in found["arguments"]]
        return found

    def _distance(self, ours: Any, eager: Any) -> str | None:
        """How far values are from each other, where that is more than rounding."""
        own, theirs = pytree.tree_leaves(ours), pytree.tree_leaves(eager)
        if len(own) != len(theirs):
            return "another number of tensors"
        most = self._most(theirs)
        return next((reason for a, b in zip(own, theirs) if (reason := apart(a, b, most)) is not None), None)

    def _is_reduced(self, found: Found) -> bool:
        """Whether what was found was computed in reduced precision."""
        return self._most(pytree.tree_leaves(found)) > _ERROR[torch.float32]

    def _most(self, values: Sequence[Any]) -> float:
        dtypes = {p.dtype for m in self.modules for p in m.parameters()}
        dtypes |= {value.dtype for value in values if isinstance(value, Tensor)}
        if devices.is_autocast():
            dtypes.add(torch.bfloat16)
        return max((_ERROR.get(dtype, 0.0) for dtype in dtypes), default=0.0)

    def _is_rounding(self, differ: Mapping[str, tuple[Any, Any]], before: Snapshot) -> bool:
        """Whether eager mode differs from itself as much where weights and arguments differ by rounding."""
        left: list[tuple[str, int, float]] = []
        for what, (ours, eager) in differ.items():
            own, theirs = pytree.tree_leaves(ours), pytree.tree_leaves(eager)
            if len(own) != len(theirs):
                return False
            most = self._most(theirs)
            for i, (a, b) in enumerate(zip(own, theirs, strict=True)):
                if apart(a, b, most) is None:
                    continue
                if (distance := relative_error(a, b)) is None:
                    return False
                left.append((what, i, distance))
        for seed, roundings in enumerate(_NOISE):
            shaken = self._run(enter, before, noise=float(roundings), seed=seed)
            left = [
                (what, i, distance)
                for what, i, distance in left
                if not _covers(
                    pytree.tree_leaves(shaken[what]), pytree.tree_leaves(differ[what][1]), i, distance
                )
            ]
            if not left:
                return True
        return False


def _covers(shaken: Sequence[Any], eager: Sequence[Any], i: int, distance: float) -> bool:
    if len(shaken) != len(eager):
        return False
    seen = relative_error(shaken[i], eager[i])
    return seen is not None and distance <= _AT_MOST * seen


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


# What a run begins with


@contextmanager
def _own_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], list[Tensor]]]:
    """Copies of the arguments, and the tensors that gradients of them go to."""
    leaves: dict[Tensor, Tensor] = {}
    copies: dict[Tensor, Tensor] = {}

    def own(value: Any) -> Any:
        if type(value) is not Tensor or overlaps(value):
            return value
        if value not in copies:
            source = value.detach()
            if value.requires_grad:
                source = leaves[value] = source.requires_grad_()
            with torch.enable_grad():
                copies[value] = source.clone()
            copies[value].__dict__.update(_torch.marks_of(value))
        return copies[value]

    own_args, own_kwargs = pytree.tree_map(own, (args, kwargs))
    yield own_args, own_kwargs, list(leaves.values())


@contextmanager
def _shaken(modules: Sequence[nn.Module], arguments: Any, roundings: float, seed: int) -> Iterator[None]:
    """A context in which weights and (copies of) arguments are changed by so many roundings."""
    if not roundings:
        yield
        return
    generators: dict[torch.device, torch.Generator] = {}

    def noisy(value: Tensor) -> Tensor:
        device = value.device
        if device not in generators:  # of its own: the global streams are the call's
            generators[device] = devices.generator(device).manual_seed(seed)
        sign = torch.randint(0, 2, value.shape, generator=generators[device], device=device) * 2 - 1
        return value * (1 + sign * roundings * _eps(value)).to(value.dtype)

    parameters = [p for p in dict.fromkeys(p for m in modules for p in m.parameters()) if _can_shake(p)]
    before = [p.data for p in parameters]
    with torch.no_grad():
        for copy in dict.fromkeys(filter(_can_shake, pytree.tree_leaves(arguments))):
            if type(copy) is Tensor and not overlaps(copy):
                copy.copy_(noisy(copy))
        for parameter in parameters:
            parameter.data = noisy(parameter)
    try:
        yield
    finally:
        for parameter, data in zip(parameters, before, strict=True):
            parameter.data = data  # the very memory: nothing was written to it


def _eps(value: Tensor) -> float:
    """A rounding of ``value``. Under autocast it is computed with in less precision than it has itself."""
    own, cast = torch.finfo(value.dtype).eps, devices.autocast(value.device.type)
    return own if cast is None else max(own, torch.finfo(cast).eps * _OF_AUTOCAST)


def _can_shake(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and devices.has_data(value)


def is_checkpointed() -> bool:
    """Whether tensors are packed for a checkpoint, which runs the call again."""
    return _torch.has_saved_tensor_hooks()


def _hidden_from_checkpoints() -> AbstractContextManager[Any]:
    """Where tensors are packed for a checkpoint, those of the runs inside are not."""
    if not is_checkpointed():
        return nullcontext()
    # What is packed must not be the tensor itself: it could hold its own graph, in a cycle.
    return torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda packed: packed)


@contextmanager
def _own_attributes(modules: Sequence[nn.Module]) -> Iterator[None]:
    """A context in which plain tensors in attributes (counters, say) are copies, which may be written to."""
    for part in (part for module in modules for part in module.modules()):
        held = {name: value for name, value in part.__dict__.items() if type(value) is Tensor}
        part.__dict__.update({name: value.detach().clone() for name, value in held.items()})
    yield  # `untouched`, around this, puts attributes back


def _form(ours: Found, eager: Found) -> str | None:
    """Whether shapes and dtypes are other ones."""
    forms = [pytree.tree_map_only(Tensor, lambda t: (t.shape, t.dtype), found) for found in (ours, eager)]
    return None if forms[0] == forms[1] else "shapes or dtypes"
