"""Run a host temporarily in another form: with another alpha of one seed, or with seeds that alone learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from numbers import Real

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fxgraft.errors import StageError
from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.lifecycle.generators import generators_of
from fxgraft.lifecycle.inactivity import InactivityWatch
from fxgraft.seeds.seed import Seed, amend
from fxgraft.seeds.stage import Stage
from fxgraft.telemetry.events import logger
from fxgraft.util import validate
from fxgraft.util.interrupts import delay_interrupts, interruptible
from fxgraft_passes import Phase


@contextmanager
def at_alpha(host: Host, seed: Seed, alpha: float) -> Iterator[None]:
    """A context in which ``seed`` runs at ``alpha``. Nothing recompiles: the forward that blends exists."""
    alpha = validate.number("alpha", alpha, 0, 1)
    if not seed.is_live:
        raise StageError(
            f"seed {seed.name!r} is {seed.stage.name}: it has no alpha to change. "
            f"Measure a seed that is TRAINING, BLENDING or HOLDING"
        )
    before, phase, stage = seed.alphas, host.phase, seed.stage
    learning = host.graft(seed.name).learning
    with ExitStack() as stack:
        try:
            with delay_interrupts():
                stack.enter_context(engine.borrowing(host, "at_alpha() or measure()"))
                if stage is Stage.TRAINING:
                    learning.fill_(False)  # units of a compiled host that have no other seed go by it
                    engine.set_structure(host, host.structure, _blending(host), host.grafts())
                seed.set_alpha(alpha)
            yield
        finally:
            with delay_interrupts():
                seed.set_alpha(*before)
                if stage is Stage.TRAINING:
                    learning.fill_(True)
                    engine.set_structure(host, host.structure, phase, host.grafts())
                stack.close()


def _blending(host: Host) -> Phase:
    if host.phase is not Phase.ISOLATED:
        return host.phase
    return host.structure.phases[-1]


def measure(
    host: Host,
    seed: Seed,
    evaluate: Callable[[], float | Tensor],
    alpha: float,
    mean: Callable[[float], float],
    inactivity: InactivityWatch,
) -> float:
    """The loss at alpha 0 minus the loss at ``alpha``, remembered by the seed for its gates.

    Both begin with the same random streams and the same state of the host, and leave both as they were.

    Args:
        host: where the seed is.
        seed: a live one.
        evaluate: computes a loss.
        alpha: the other alpha.
        mean: makes one number of those of several ranks.
        inactivity: knows why a seed does not run.

    Raises:
        StageError: the seed is not live; or ``evaluate`` does not run it (on any rank), as its calls fall
            back, or the losses are the same.
    """
    losses, runs, fallbacks = [], [], 0
    draws = generators_of(evaluate)
    for share in (0.0, alpha):
        reshard(host)
        with (
            engine.untouched(host, also=draws),
            at_alpha(host, seed, share),
            mode_kept(host),
            gradients_kept(host),
            steps_refused(host),
        ):
            before = seed.runs, inactivity.fallbacks(seed)
            with interruptible(), torch.no_grad():
                losses.append(_number(evaluate()))
                reshard(host)
            runs.append(seed.runs - before[0])
            fallbacks += inactivity.fallbacks(seed) - before[1]
    losses = [mean(loss) for loss in losses]
    if not mean(min(runs)):
        if mean(fallbacks) or losses[0] == losses[1] or math.isnan(losses[0] - losses[1]):
            why = inactivity.cause(seed, fallbacks)
            raise StageError(f"cannot measure seed {seed.name!r}: evaluate did not run it: {why}")
        logger.warning(
            "seed %r: evaluate gives different losses with it and without it, but does not call the host: "
            "its losses are used as they are",
            seed.name,
        )
    amend(seed, loss_without=losses[0], loss_with=losses[1])
    return losses[0] - losses[1]


def reshard(host: Host) -> None:
    """``fully_shard`` leaves the host's own parameters whole after a forward pass; not across a restore."""
    if (reshard := getattr(type(host), "reshard", None)) is not None:
        reshard(host)


def _number(loss: object) -> float:
    if isinstance(loss, Real) or (isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex()):
        return float(loss)
    got = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
    raise TypeError(f"evaluate: expected it to return a loss, one number; got {got}")


@contextmanager
def steps_refused(host: Host) -> Iterator[None]:
    """Raise `StageError` where an optimizer that trains the host steps: its state would not be put back."""
    ours = {id(parameter) for parameter in host.parameters()}

    def refuse(optimizer: Optimizer, args: object, kwargs: object) -> None:
        if any(id(parameter) in ours for group in optimizer.param_groups for parameter in group["params"]):
            raise StageError(
                f"cannot step an optimizer inside evaluate: expected an evaluation that leaves the host as "
                f"it is; {type(optimizer).__name__} trains parameters of the host. Step it in the training "
                f"loop, or train a copy in evaluate (copy.deepcopy(host), with an optimizer of its own)"
            )

    handle = register_optimizer_step_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def gradients_kept(host: Host) -> Iterator[None]:
    """Put gradients that wait for a step back: an evaluation may run a backward pass, or ``zero_grad``.

    They are out of sight inside, so that nothing is added to them and none has to be copied.
    """
    waiting = [(parameter, parameter.grad) for parameter in host.parameters()]
    for parameter, _ in waiting:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in waiting:
            parameter.grad = gradient


@contextmanager
def mode_kept(model: nn.Module) -> Iterator[None]:
    """Put the train or eval mode of each module back: an evaluation sets its own."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def shadow_pass(host: Host, learners: Iterable[nn.Parameter]) -> Iterator[None]:
    """A context in which ``host`` runs its shadow phase; gradients go to ``learners`` only."""
    structure, phase, grafts = host.structure, host.phase, host.grafts()
    learning = {id(p) for p in learners}
    others = [p for p in host.parameters() if p.requires_grad and id(p) not in learning]
    stack = ExitStack()
    try:
        with delay_interrupts():
            stack.enter_context(engine.borrowing(host, "shadow()"))
            stack.enter_context(engine.untouched(host))
            stack.callback(engine.set_structure, host, structure, phase, grafts)
            engine.prepare(host, structure, (Phase.SHADOW,))
            engine.set_structure(host, structure, Phase.SHADOW, grafts)
            for parameter in others:
                parameter.requires_grad_(False)
                stack.callback(parameter.requires_grad_, True)
        yield
    finally:
        with delay_interrupts():
            stack.close()
