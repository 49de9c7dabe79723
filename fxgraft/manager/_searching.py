"""Where to grow: `explore` measures candidates, `autogrow` grows by what it finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fxgraft import commands
from fxgraft.commands import DEEPEN, SEED, WIDEN
from fxgraft.errors import CommandError, StageError
from fxgraft.explore import scoring
from fxgraft.explore.autogrow import AutoGrowth
from fxgraft.explore.candidates import Choice, find
from fxgraft.explore.exploration import Exploration
from fxgraft.explore.exploration_settings import ExplorationSettings
from fxgraft.explore.growth_settings import GrowthSettings, When
from fxgraft.explore.measuring import Checked, Evaluate, evaluate_host, finite
from fxgraft.explore.scoring import Score
from fxgraft.util import validate
from fxgraft.util.interrupts import uninterruptible

if TYPE_CHECKING:
    from fxgraft.manager.manager import SeedManager


def explore(
    self: SeedManager,
    candidates: Choice = "auto",
    *,
    evaluate: Evaluate,
    steps: int = 100,
    keep: int = 0,
    blueprints: Sequence[str] | None = None,
    score: str | Score = scoring.DEFAULT,
    at: float = 1.0,
    repeats: int = 1,
    cap: Mapping[str, int] | None = None,
    most: Mapping[str, int] | None = None,
    exclude: Sequence[SEED | WIDEN | DEEPEN | Mapping[str, Any]] = (),
    wider: bool = True,
    state: Mapping[str, Any] | None = None,
) -> Exploration:
    """Train many candidates in isolation during the run, measure each alone, and rank them.

    They are germinated now (branches in one change, blocks in another), several at one slot if several fit
    there. After ``steps`` calls of ``manager.step()`` they are measured and culled. The host is not affected:
    its weights, its optimizer and the random streams are, to the bit, those of a run without an exploration.
    With several ranks each has to call it.

    Args:
        candidates: ``"auto"``: every slot, with every registered blueprint that fits; the channels between
            two layers, as many more as there are, which `widen` would add (fewer where ``most`` has no room),
            tried as a branch; and one more block behind each block of a stack, as `deepen` would; or a
            selection of slots (``host.slots.select(...)``, a name, several names), with every blueprint; or
            SEED commands (or dictionaries).
        evaluate: computes a loss of the host without arguments, best on held-out data and in eval mode: a
            number, or one for each of several batches (a sequence, a 1-D tensor), from which a standard
            error follows. It is called once now, and at the end once for each candidate that was trained,
            and once without any. Gradients are off inside; lower is better.
        steps: the number of training steps for which they train.
        keep: the number of best candidates that stay, in TRAINING; the others are culled.
        blueprints: the names of the blueprints to try; None: all. Not allowed with commands.
        score: what they are ranked by: one of ``fxgraft.explore.SCORES``, the mean of the ranks by two
            (``"expected_and_parameters"``, ``"expected_and_contribution"``), ``"layers_first"`` (see
            `autogrow`), or a function of a `Row`.
        at: the alpha at which they are measured.
        repeats: how often each evaluation is repeated; more than 1 is useful if it draws random numbers.
        cap: how much is tried at once: ``{"candidates": 64, "parameters": ..., "flops": ..., "memory":
            ...}``. What does not fit is in the table, with the reason. Commands have no cap by default.
        most: what one candidate may have: ``{"parameters": ..., "flops": ..., "memory": ...}``.
        exclude: what is not tried: the ``command`` of rows of an earlier exploration, or dictionaries.
        wider: whether ``"auto"`` tries wider layers.
        state: the ``state_dict()`` of an exploration of these candidates that was going on when this
            manager was saved: nothing is germinated, it continues.

    Returns:
        The exploration: ``done``, ``table``, ``best(n)``; print it.

    Raises:
        SlotError, BlueprintError, CommandError: a slot, blueprint or command is unknown, or does not fit.
        TypeError: ``candidates`` or ``evaluate`` is something else, or ``evaluate`` returns no numbers.
        ValueError: an invalid number, a loss that is not finite, or nothing that could grow.
        StageError: seeds cannot change now, or inside of ``torch.inference_mode``; or an optimizer of the
            host steps in ``evaluate``.
        CheckpointError: ``state`` is damaged, or one of other candidates.
    """
    return explore_from(
        self, None, candidates, evaluate, steps, keep, blueprints, score, at, repeats, cap, most, exclude,
        wider, state,
    )  # fmt: skip


@uninterruptible
def explore_from(
    self: SeedManager,
    bare: Checked | None,
    candidates: Choice,
    evaluate: Evaluate,
    steps: int,
    keep: int,
    blueprints: Sequence[str] | None,
    score: str | Score,
    at: float = 1.0,
    repeats: int = 1,
    cap: Mapping[str, int] | None = None,
    most: Mapping[str, int] | None = None,
    exclude: Sequence[SEED | WIDEN | DEEPEN | Mapping[str, Any]] = (),
    wider: bool = True,
    state: Mapping[str, Any] | None = None,
) -> Exploration:
    """As `explore`, also for the arguments; ``bare`` is what ``evaluate`` says of the host now, if known."""
    self._allow("explore")
    self._acts.refuse("explore")
    self._refuse_inference_mode("explore")
    settings = ExplorationSettings(
        validate.integer("steps", steps, 1),
        validate.integer("keep", keep),
        validate.number("at", at, 0, 1),
        validate.integer("repeats", repeats, 1),
    )
    by = scoring.resolve(score)
    flops = finite(bare or evaluate_host(self.host, evaluate)).flops
    alone = self.peers.size == 1 and self.peers.folder is None  # else the host cannot grow wider
    wider, without = validate.boolean("wider", wider), _excluded(exclude)
    found = find(self.host, candidates, blueprints, cap, flops, most, widens=alone and wider, exclude=without)
    exploration = Exploration(self, self._lifecycle, self._reporter, found, evaluate, by, settings)
    if state is None:
        exploration.begin()
    else:
        exploration.load_state_dict(state)
    self._routines.insert(0, exploration)  # before the growth that waits for it
    return exploration


def _excluded(given: object) -> list[SEED | WIDEN | DEEPEN]:
    """The commands of ``exclude``. Raises `TypeError` or `CommandError`."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(
            f"exclude: expected a list of commands, as [row.command, ...] of an earlier exploration; "
            f"got {given!r}"
        )
    return [_growing(command) for command in given]


def _growing(command: Any) -> SEED | WIDEN | DEEPEN:
    try:
        parsed = commands.parse(command)
    except CommandError as error:
        raise CommandError(f"exclude: {error}") from error
    if not isinstance(parsed, SEED | WIDEN | DEEPEN):
        raise CommandError(f"exclude: expected SEED, WIDEN or DEEPEN; got {type(parsed).__name__}")
    return replace(parsed, id=None)


def autogrow(
    self: SeedManager,
    evaluate: Evaluate,
    candidates: Choice | DEEPEN = "auto",
    budget: float | Mapping[str, float] = 2.0,
    when: When = "flat",
    *,
    total_steps: int | None = None,
    steps: int = 100,
    blend: int = 50,
    hold: float = 50,
    window: int = 50,
    flat: float = 0.02,
    gain: float | str = 0.001,
    price: float | None = None,
    patience: int = 1,
    measurements: int = 1,
    standard_errors: float = 0.0,
    blueprints: Sequence[str] | None = None,
    score: str | Score = scoring.LAYERS_FIRST,
) -> AutoGrowth:
    """Grow automatically: explore when it is time, keep what helps, and end when nothing helps any more.

    ``manager.step(loss)`` drives it. The best candidate of an exploration is blended in; if what it learned
    in isolation does not help, it is replaced by a new one that adds nothing at first and trains with the
    host. After ``hold`` steps it is measured, and fossilized or culled; a branch in the place of wider layers
    is then fused into them. Until the first blend the host is, to the bit, that of a run without growth. All
    changes are commands, which the sinks receive. `save` saves its state: after `load`, call it again with
    the same arguments. With several ranks each has to call it.

    Args:
        evaluate: as for `explore`.
        candidates: as for `explore`; or a `DEEPEN` command: one more such block is tried each time, at once,
            with nothing to explore. With ``init="copy"`` it is tried with zeroed output layers, as a copy is
            missed when it is taken out whether it is worth having or not; where it pays, a copy comes in
            its place. A block without such layers (one with a norm at its end) is tried as a copy. So, with
            a learning rate divided by the root of the depth, runs that had to find their size ended 0.002 to
            0.007 nats above the best size on three small tasks (``price=0.5``), and 0.006 and 0.023 above it
            on two others (0.25; with 0.5 it was 0.025 and 0.034; docs/growth.md).
        budget: the largest size of the host at the end, as a factor of its parameters at the beginning; or
            ``{"parameters": 2.0, "flops": 1.5, "memory": 1.5}``, one of them or several: FLOPs of a forward
            pass; memory of training at any time: each weight, its gradient and two moments of the optimizer,
            as AdamW keeps them, and what all candidates that learn side by side need beside: the same, and
            three values like that at their slot, for the backward pass. What stays of a candidate keeps
            these values. The host's own values and buffers are not counted.
        when: ``"flat"``: again and again when the loss is flat, by what `step` is given, or by
            ``evaluate`` where it is given nothing; a share of the run, or several (0.3, [0.3, 0.6]): once
            at each; or a function of the manager that says whether it is time.
        total_steps: the number of training steps of the run; needed for shares of it.
        steps: the number of steps for which candidates train in isolation.
        blend: the number of steps in which the best one is blended in.
        hold: the number of steps for which it is held before it is judged; below 1, a share of the steps
            before it.
        window: the loss is flat where its mean over so many steps fell by less than ``flat``,
        flat: a share of the mean over as many before.
        gain: what it has to contribute to stay, as a share of the loss; or ``"steps"``: a share of its price,
            which is what further steps for its FLOPs would bring, by how fast the loss given to `step`
            falls.
        price: that share, 0.25 by default. Below 1, as what it gives still rises when it is judged; less
            lets it grow sooner. With ``gain="steps"`` alone. Blocks that had to give 0.25 of their price
            and not 0.5 ended 0.0194 ± 0.0095 nats lower in long runs of a small GPT, and 0.012 ± 0.006
            lower on another text (docs/growth.md).
        patience: growth ends after so many rounds in a row without a gain (with ``"flat"`` or a function
            of the manager). What did not help is not tried again until something else has.
        measurements: how often it is measured in the second half of ``hold``, two evaluations each; the
            median decides. More where the loss varies much from step to step, as with a high learning
            rate; ``evaluate`` can use less data for each then, best other data in each step. With 8, and
            the next block tried sooner, the loss was lower by 0.015 ± 0.004 nats on a small CNN, and
            by 0.004 ± 0.006 on another task.
        standard_errors: how far the median has to be above what is needed, in standard errors of the
            measurements, of which there have to be 3 or more. Default 0. With 1, 8 measurements and
            ``price=0.1`` the loss was 0.002 ± 0.005 nats above that with one measurement on two small CNNs.
        blueprints: as for `explore`.
        score: as for `explore`. The default, ``"layers_first"``, tries what makes the model's own layers
            wider or deeper before branches, if it contributes anything; the rest by the default of `explore`.
            Chosen by a benchmark of whole runs, ``benchmarks/results/growing.md``.

    Returns:
        The growth: ``done``, ``history``, ``cost``, ``state_dict()``; print it.

    Raises:
        SlotError, BlueprintError, CommandError, TypeError, ValueError: as `explore`, at once.
        StageError: another growth is running, or seeds cannot change now; or inside of
            ``torch.inference_mode``; or an optimizer of the host steps in ``evaluate``.
        CheckpointError: the run that was loaded had a growth with other candidates.
    """
    self._allow("autogrow")
    self._acts.refuse("autogrow")
    self._refuse_inference_mode("autogrow")
    if any(isinstance(routine, AutoGrowth) for routine in self._routines):
        raise StageError(
            "cannot autogrow: another growth of this manager goes on. "
            "Call its stop(), or wait until it is done"
        )
    settings = GrowthSettings(
        steps,
        blend,
        hold,
        window=window,
        flat=flat,
        gain=gain,
        price=price,
        patience=patience,
        measurements=measurements,
        standard_errors=standard_errors,
    )
    growth = AutoGrowth(self, evaluate, candidates, budget, when, total_steps, blueprints, score, settings)
    if isinstance(self._memory.growth, dict):  # of the run that was loaded
        growth.load_state_dict(self._memory.growth)
    self._memory.growth = growth.state_dict
    if not growth.done:
        self._routines.append(growth)
    return growth
