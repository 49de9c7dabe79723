"""Gradients that belong to one owner: finite for a seed or dropped, and clipped apart.

An overflow in a seed must not make ``GradScaler`` skip the host's step, nor a seed's large gradient
shrink the host's through a common norm.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxgraft import _torch
from fxgraft.optimizers.wrapped import inner
from fxgraft.util.tensors import full_tensor, local_tensor


class SeedGradients:
    """Watches the gradients of seeds and drops those of a seed that has a NaN or an inf among them.

    The check runs once at the end of each backward pass, before anything reads the gradients: one
    operation over all parameters of all seeds. A seed whose gradients were dropped keeps its weights and
    its optimizer state as they are in that training step, as ``GradScaler`` would have it: what further
    backward passes give it in the same step (accumulation, two losses) is a part of what it should be,
    and is dropped as well.

    Compiled autograd runs nothing at the end of a backward pass. There a gradient that is not finite becomes
    zero as it arrives, inside the compiled graph, so that ``GradScaler`` sees no inf of a seed's; and the
    check runs when an optimizer begins its step. It does so too for gradients that no backward pass of ours
    has brought (``p.grad = ...``).

    Args:
        on_dropped: called with the seed's name, once in a training step.
        optimizers: what reads the gradients.

    Attributes:
        average: called first, at the end of each backward pass; returns whether the gradients are whole.
            (Those of several ranks are, when they are averaged.)
        is_shared: whether a gradient may come from another rank, by `average`.
        learned: the seeds whose gradients arrived in the training step that has ended, and were kept.
        ever_dropped: the seeds whose gradients were ever dropped.
    """

    def __init__(self, on_dropped: Callable[[str], None], optimizers: Sequence[Optimizer] = ()):
        self._on_dropped = on_dropped
        self._optimizers = optimizers
        self._before_steps: list[torch.utils.hooks.RemovableHandle] = []
        self.average: Callable[[], bool] = lambda: True
        self.is_shared = False
        self.learned: set[str] = set()
        self.ever_dropped: set[str] = set()
        self._learning: set[str] = set()
        self._watched: dict[str, list[nn.Parameter]] = {}
        self._all: list[nn.Parameter] = []  # that are watched
        self._finite = Finite()
        self._hooks: dict[str, list[torch.utils.hooks.RemovableHandle]] = {}
        self._paused: set[str] = set()
        self._dropped: set[str] = set()  # in this training step
        self._overflowed: dict[str, dict[torch.device, Tensor]] = {}  # set inside of compiled backward passes
        self._has_looked = False  # at the end of a backward pass of this training step
        # The backward passes at whose end a look is asked for. One that raised never calls back.
        self._queued: set[int] = set()

    def watch(self, seed: str, parameters: Sequence[nn.Parameter]) -> None:
        """Begin to watch the parameters of ``seed``."""
        trainable = [p for p in parameters if p.requires_grad]
        self._watched[seed] = trainable
        self._all = [p for parameters in self._watched.values() for p in parameters]
        flags = {p.device: torch.zeros((), dtype=torch.bool, device=p.device) for p in trainable}
        self._overflowed[seed] = flags
        hook = self._hook(seed, flags)
        self._hooks[seed] = [p.register_post_accumulate_grad_hook(hook) for p in trainable]  # type: ignore[no-untyped-call]

        if not self._before_steps:
            self._watch_steps()

    def unwatch(self, seed: str) -> None:
        """Stop watching ``seed`` and remove its hooks."""
        self._watched.pop(seed, None)
        self._all = [p for parameters in self._watched.values() for p in parameters]
        self._paused.discard(seed)
        self._dropped.discard(seed)
        self._overflowed.pop(seed, None)
        self._learning.discard(seed)
        self.ever_dropped.discard(seed)
        for hook in self._hooks.pop(seed, ()):
            hook.remove()
        if not self._watched:
            while self._before_steps:
                self._before_steps.pop().remove()

    def pause(self, seed: str, paused: bool) -> None:
        """Drop every gradient of ``seed`` from now on, so that no optimizer moves it; or no longer."""
        (self._paused.add if paused else self._paused.discard)(seed)
        if paused:
            _drop(self._watched.get(seed, ()))

    def step_done(self) -> None:
        """A training step is over."""
        self._queued.clear()
        self.learned = self._learning - self._dropped
        self._learning.clear()  # in place: the hooks hold it
        self._dropped.clear()
        self._has_looked = False

    def arrived(self) -> None:
        """A gradient has arrived: look at all at the end of this backward pass."""
        if (number := _torch.backward_pass()) not in self._queued:
            self._queued.add(number)
            check = partial(self._check, number)
            torch.autograd.Variable._execution_engine.queue_callback(check)  # type: ignore[attr-defined]

    def _hook(self, seed: str, overflowed: Mapping[torch.device, Tensor]) -> Callable[[Tensor], None]:
        """What is called as a gradient of a seed's arrives: for each parameter, in each backward pass."""
        # It holds us weakly: the garbage collector sees no cycle that goes through a parameter's hooks.
        queued, learning, owner = self._queued, self._learning, weakref.ref(self)

        def hook(parameter: Tensor) -> None:
            if torch.compiler.is_compiling():
                _make_finite(parameter, overflowed)
                return
            # None: after a backward pass that has nothing for the seed.
            if seed not in learning and parameter.grad is not None:
                learning.add(seed)
            if _torch.backward_pass() not in queued and (gradients := owner()) is not None:
                gradients.arrived()

        return hook

    def _watch_steps(self) -> None:
        """Look before an optimizer reads gradients, where the end of a backward pass did not."""
        owner = weakref.ref(self)

        def hook(*_: object) -> None:
            gradients = owner()
            if gradients is not None and not gradients._has_looked:
                gradients._look()

        self._before_steps = [inner(optimizer).register_step_pre_hook(hook) for optimizer in self._optimizers]

    def _check(self, number: int) -> None:
        self._queued.discard(number)
        self._has_looked = True
        self._look()

    def _look(self) -> None:
        if not self.average():
            return
        if self.is_shared:
            self._learning |= {seed for seed, given in self._watched.items() if _grads(given)}
        for seed in (*self._paused, *self._dropped):
            _drop(self._watched[seed])
        overflowed = () if self._has_looked else self._compiled_overflows()
        # All at once first: in nearly every step that is all there is to do.
        if not overflowed and self._finite(_grads(self._all)):
            return
        for seed, parameters in self._watched.items():
            if seed in overflowed or not self._finite(_grads(parameters)):
                _drop(parameters)
                self._dropped.add(seed)
                self.ever_dropped.add(seed)
                self._on_dropped(seed)

    def _compiled_overflows(self) -> list[str]:
        found = []
        for seed, flags in self._overflowed.items():
            if any(flag.item() for flag in flags.values()):
                found.append(seed)
                for flag in flags.values():
                    flag.fill_(False)
        return found


def _make_finite(parameter: Tensor, overflowed: Mapping[torch.device, Tensor]) -> None:
    """Zero a gradient that has a NaN or an inf, and say so: in tensors only, for a compiled graph."""
    grad = parameter.grad
    if grad is not None:
        is_finite = torch.isfinite(grad).all()
        overflowed[parameter.device].logical_or_(~is_finite)
        grad.copy_(torch.where(is_finite, grad, torch.zeros_like(grad)))


def _drop(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def norm_of(parameters: Iterable[nn.Parameter]) -> float:
    """The Frobenius norm of all gradients together; 0 where there are none.

    Of parameters that are sharded every rank calls it, and they are gathered.
    """
    grads = [full_tensor(p.grad) for p in parameters if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0


def norms(tensors: list[Tensor]) -> Tensor:
    """The Frobenius norm of each, in float32 or wider, on the device of the first; at least one."""
    tensors = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors]
    wide = reduce(torch.promote_types, {tensor.dtype for tensor in tensors}, torch.float32)
    found = _torch.norms(tensors, wide)
    if len({tensor.device for tensor in tensors}) > 1:
        found = [norm.to(found[0].device) for norm in found]
    return torch.stack(found)


class Finite:
    """Whether gradients are finite: one operation for each device, and one wait for it."""

    def __init__(self) -> None:
        self._scalars: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, gradients: Sequence[Tensor]) -> bool:
        """Whether all of ``gradients`` are."""
        if not gradients:
            return True
        on: dict[torch.device, list[Tensor]] = {}
        for gradient in gradients:
            on.setdefault(gradient.device, []).append(gradient)
        return all(self._are_finite(device, found) for device, found in on.items())

    def _are_finite(self, device: torch.device, gradients: list[Tensor]) -> bool:
        scalars = self._scalars.get(device)
        if scalars is None:
            numbers = torch.tensor([0.0, 1.0], dtype=torch.float32, device=device)
            scalars = self._scalars[device] = (numbers[0], numbers[1])
        try:
            return _torch.are_finite(gradients, *scalars)
        except RuntimeError:  # it is for dense, real ones, with memory for each element
            return all(bool(_parts(gradient).isfinite().all()) for gradient in gradients)


def _parts(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


def _grads(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    found = [grad for parameter in parameters if (grad := parameter.grad) is not None]
    return [grad if type(grad) is Tensor else local_tensor(grad) for grad in found]
