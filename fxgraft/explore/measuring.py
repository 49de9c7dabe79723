"""What each of many isolated seeds contributes, from one evaluation for each and one without any.

All evaluations begin with the same random streams and the same state of the host, and leave both as they
were. Where the host runs uncompiled, the other candidates do not even run while one is measured.
"""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.lifecycle.generators import generators_of
from fxgraft.lifecycle.inactivity import InactivityWatch
from fxgraft.lifecycle.probing import at_alpha, gradients_kept, mode_kept, reshard, steps_refused
from fxgraft.seeds.seed import Seed, amend
from fxgraft.slots.structure import Structure
from fxgraft.telemetry import logger
from fxgraft.util.flops import flop_counter
from fxgraft.util.interrupts import delay_interrupts, interruptible
from fxgraft_passes.metadata import metadata

Evaluate = Callable[[], float | Tensor | Sequence[float]]
"""Computes a loss of the host, or several, of one batch each; best on held-out data. Lower is better."""

EVALUATION = "the evaluation of explore() or autogrow()"


@dataclass(frozen=True)
class Measured:
    """What was found of one seed.

    Attributes:
        contribution: the mean loss without it minus that with it; None where it could not be measured.
        standard_error: of that mean; None for a single loss.
        loss: the mean loss without it; None where it could not be measured.
        reason: why it could not be measured.
    """

    contribution: float | None = None
    standard_error: float | None = None
    loss: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Checked:
    """The host by itself.

    Attributes:
        losses: what ``evaluate`` returned.
        flops: of a forward pass at the shape of the example call; None where it is unknown.
        evaluation: FLOPs of the evaluation; None where they are unknown.
    """

    losses: list[float]
    flops: int | None
    evaluation: int | None = None


def finite(looked: Checked) -> Checked:
    """The same, where the losses are finite. Raises `ValueError` where one is not."""
    for loss in looked.losses:
        if not math.isfinite(loss):
            raise ValueError(f"evaluate: expected finite losses; got {loss}")
    return looked


def evaluate_host(host: Host, evaluate: Evaluate) -> Checked:
    """Evaluate the host as it is. Leaves it, and the random streams, as they were.

    Raises:
        TypeError: ``evaluate`` cannot be called, or returns no numbers.
    """
    if not callable(evaluate):
        raise TypeError(f"evaluate: expected a function that returns a loss; got {type(evaluate).__name__}")
    _refuse_arguments(evaluate)
    sizes: list[int] = []
    before = host._links.on_call

    def seen(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sizes.append(next((x.numel() for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), 0))
        if before is not None:
            before(args, kwargs)

    with _untouched(host, evaluate):
        host._links.on_call = seen
        try:
            if host.compiled is None:
                losses, flops, own = _counted(host, evaluate)
            else:
                losses, flops, own = _losses(evaluate, 1), 0, 0
        finally:
            host._links.on_call = before
    example = example_size(host)
    if not own or not example or not sum(sizes):
        return Checked(losses, None, flops or None)
    return Checked(losses, round(own * example / sum(sizes)), flops)


def _refuse_arguments(evaluate: Evaluate) -> None:
    try:
        inspect.signature(evaluate).bind()
    except TypeError as error:
        raise TypeError(
            f"evaluate: expected a function that is called without arguments, as lambda: loss_of(host(x)); "
            f"this one is not: {error}"
        ) from None
    except ValueError:  # of C, of which there is no signature
        pass


def _counted(host: Host, evaluate: Evaluate) -> tuple[list[float], int, int]:
    """The losses, the FLOPs of all that, and those of the host in it; 0 where they cannot be counted."""
    losses: list[float] = []
    inside, began = 0, 0

    def begins(*_: object) -> None:
        nonlocal began
        began = counting.get_total_flops()

    def ends(*_: object) -> None:
        nonlocal inside
        inside += counting.get_total_flops() - began

    try:
        with flop_counter() as counting, ExitStack() as hooks:
            hooks.callback(host.register_forward_pre_hook(begins).remove)
            hooks.callback(host.register_forward_hook(ends).remove)
            losses.extend(_losses(evaluate, 1))
    except Exception as error:  # an operation that does not run where torch counts; or it always fails
        # flex_attention compiles itself, and does not run any more after it has failed there.
        torch.compiler.reset()
        losses = _losses(evaluate, 1)
        logger.warning(
            "the FLOPs of the host are not known, as evaluate does not run while torch counts them: %s: %s",
            type(error).__name__,
            error,
        )
        return losses, 0, 0
    flops = counting.get_total_flops()
    return losses, flops, inside or flops  # none where evaluate calls host.forward, or a part of it


def contributions(
    host: Host,
    seeds: Sequence[Seed],
    evaluate: Evaluate,
    *,
    at: float,
    repeats: int,
    alone: bool,
    mean: Callable[[float], float],
    inactivity: InactivityWatch,
) -> dict[str, Measured]:
    """The contribution of each of these seeds alone, by the names of the seeds.

    Args:
        host: where they are.
        seeds: isolated ones in TRAINING.
        evaluate: as for `evaluate_host`.
        at: the alpha to measure at.
        repeats: how often each evaluation is repeated, with other random numbers each time.
        alone: whether the others may be taken out meanwhile: not on a host that is sharded.
        mean: makes one number of those of several ranks.
        inactivity: knows why a seed does not run.
    """
    names = [seed.name for seed in seeds]
    found: dict[str, Measured] = {}
    without: list[float] | None = None
    for seed in seeds:
        fallbacks = inactivity.fallbacks(seed)
        if without is None:
            without = [mean(loss) for loss in _run(host, seed, names, evaluate, 0.0, repeats, alone)[0]]
            if not all(map(math.isfinite, without)):
                return dict.fromkeys(names, Measured(reason=_NOT_FINITE.format(statistics.fmean(without))))
        losses, ran = _run(host, seed, names, evaluate, at, repeats, alone)
        losses = [mean(loss) for loss in losses]
        if len(losses) != len(without):
            raise TypeError(
                f"evaluate: expected as many losses each time; got {len(without)}, then {len(losses)}"
            )
        if not mean(ran) and losses == without:
            cause = inactivity.cause(seed, inactivity.fallbacks(seed) - fallbacks)
            found[seed.name] = Measured(reason=f"evaluate did not run it: {cause}")
            continue
        amend(seed, loss_without=statistics.fmean(without), loss_with=statistics.fmean(losses))
        gains = [before - after for before, after in zip(without, losses, strict=True)]
        if not all(map(math.isfinite, gains)):
            found[seed.name] = Measured(reason=f"the loss with it is {statistics.fmean(losses):g}")
            continue
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
        found[seed.name] = Measured(statistics.fmean(gains), error, statistics.fmean(without))
    return found


_NOT_FINITE = (
    "the loss of the host is {:g} without any candidate. Expected a finite one: look at the training, or at "
    "evaluate"
)


def _run(
    host: Host, seed: Seed, names: Iterable[str], evaluate: Evaluate, at: float, repeats: int, alone: bool
) -> tuple[list[float], int]:
    """The losses with ``seed`` at that alpha, and in how many calls it ran."""
    is_alone = alone and host.compiled is None
    with _untouched(host, evaluate), _alone(host, seed, names, at) if is_alone else at_alpha(host, seed, at):
        runs = seed.runs
        losses = _losses(evaluate, repeats)
        reshard(host)
        return losses, seed.runs - runs


@contextmanager
def _untouched(host: Host, evaluate: Evaluate) -> Iterator[None]:
    reshard(host)
    with (
        engine.borrowing(host, EVALUATION),
        engine.untouched(host, also=generators_of(evaluate)),
        mode_kept(host),
        gradients_kept(host),
        steps_refused(host),
    ):
        yield


@contextmanager
def _alone(host: Host, seed: Seed, names: Iterable[str], alpha: float) -> Iterator[None]:
    """The host without these seeds, but for ``seed``, which runs at ``alpha``."""
    others = set(names) - {seed.name}
    structure = Structure(tuple(p for p in host.structure.placements if p.seed not in others))
    before, learning = seed.alphas, host.graft(seed.name).learning
    with ExitStack() as stack:
        try:
            with delay_interrupts():
                stack.enter_context(engine.probing(host, structure, structure.phases[-1]))
                learning.fill_(False)
                seed.set_alpha(alpha)
            yield
        finally:
            with delay_interrupts():
                seed.set_alpha(*before)
                learning.fill_(True)
                stack.close()


def _losses(evaluate: Evaluate, repeats: int) -> list[float]:
    with interruptible(), torch.no_grad():
        return [loss for _ in range(repeats) for loss in numbers(evaluate())]


def numbers(losses: object) -> list[float]:
    """The losses that ``evaluate`` returned. Raises `TypeError` where there are none."""
    if not isinstance(losses, bool) and isinstance(losses, Real):
        return [float(losses)]
    if isinstance(losses, Tensor) and losses.dim() <= 1 and losses.numel() and _is_real(losses):
        return [float(loss) for loss in losses.reshape(-1).tolist()]
    if isinstance(losses, (list, tuple)) and losses:
        return [number for loss in losses for number in numbers(loss)]
    got = repr(losses)
    if isinstance(losses, Tensor):
        got = f"a tensor {tuple(losses.shape)} of {str(losses.dtype).removeprefix('torch.')}"
    raise TypeError(
        f"evaluate: expected it to return a loss, or several, of one batch each: a number, a tensor with at "
        f"most one dimension, or a list of these; got {got}"
    )


def _is_real(losses: Tensor) -> bool:
    return losses.dtype is not torch.bool and not losses.is_complex()


def example_size(host: Host) -> int:
    """The elements of the first tensor of the example call; 0 where the host's own code has no graph."""
    root = host.regions.get("")
    for node in root.base.find_nodes(op="placeholder") if root is not None else ():
        seen = metadata(node).get("observation")
        if seen is not None and seen.kind == "Tensor":
            return int(seen.shape.numel())
    return 0
