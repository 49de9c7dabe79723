"""What an exploration found, as rows: ranked, and as text, JSON or a rich table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fxgraft import commands
from fxgraft.commands import DEEPEN, SEED, WIDEN
from fxgraft.util.tables import text_table
from fxgraft.util.text import pluralize

LEARNING, MEASURED, FAILED, LEFT_OUT = "learning", "measured", "failed", "left out"
"""What became of a candidate."""


@dataclass(frozen=True)
class Row:
    """One candidate. ``row["slot"]`` is ``row.slot``.

    Attributes:
        slot: the name of the slot at which it would grow.
        blueprint: the name of its blueprint; ``"widen"`` or ``"deepen"`` where ``widens`` or ``deepens`` say
            what would grow.
        parameters: its number of trainable parameters; None if it could not be built.
        flops: of a forward pass at the shape of the example call, as torch's ``FlopCounterMode`` counts; of a
            block those of the block that it is a copy of; None where they are not known: of channels that no
            branch stands for, and of blocks of a host that does not know its example call (a copy) or cannot
            run it in eval mode.
        memory: bytes that learning takes: weights with gradients and two moments, and values kept for the
            backward pass, estimated as three of the slot's; None if it could not be built.
        contribution: the loss without it minus the loss with it alone, the mean over what ``evaluate``
            returned; None before it was measured.
        standard_error: the standard error of that mean; None if ``evaluate`` returned one number.
        loss: the mean loss without it; None before it was measured.
        score: the rows are ranked by it; higher is better.
        step_cost: milliseconds of a forward and a backward pass of the candidate alone at the shape of the
            example call, the median of five; of a block with what the block in front of it is given there;
            None before it was measured, and for a block that does not run by itself.
        expected: the expected decrease of the loss per unit of learning rate, to first order, from its
            gradients at its initial values; None if there were none.
        gradient: the norm of its gradient in its first step; None if there was none.
        trained_steps: the number of steps in which it ran and was updated, after that.
        status: ``"learning"``, ``"measured"``, ``"failed"`` or ``"left out"``.
        reason: why it failed or was left out; empty otherwise.
        seed: the name of its seed; None where there was none.
        command: the command that grows it: ``manager.handle(row.command)``.
        widens: the group of channels that would grow, and by how many; None for other candidates.
        deepens: the stack that would get one more block, and the index of the block in front of it,
            for ``manager.deepen(stack, at=[index])``; None for other candidates.
    """

    slot: str
    blueprint: str
    parameters: int | None
    flops: int | None
    contribution: float | None
    standard_error: float | None
    score: float | None
    step_cost: float | None
    expected: float | None
    gradient: float | None
    trained_steps: int
    status: str
    reason: str
    seed: str | None
    command: SEED | WIDEN | DEEPEN
    widens: tuple[str, int] | None = None
    deepens: tuple[str, int] | None = None
    loss: float | None = None
    memory: int | None = None

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]

    @property
    def helps(self) -> bool:
        """Whether what it has learned in isolation lowers the loss, beyond two standard errors."""
        return self.contribution is not None and self.contribution > 2 * (self.standard_error or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**plain, "command": commands.to_dict(self.command)}


def text_of(rows: Sequence[Row], most: int = 20) -> str:
    """The rows as text: a table, and below it what has no numbers, a line for each reason.

    Of each kind (with numbers, failed, left out) the first ``most``, or what there is room for within that.
    """
    # On demand, as pictures are: what shows a run stands above what grows it.
    from fxgraft.report.exploration_columns import COLUMNS, HEADERS, NUMBERS, place_of, remark

    kinds = ((LEARNING, MEASURED), (FAILED,), (LEFT_OUT,))
    table, failed, left_out = ([row.to_dict() for row in rows if row.status in kind] for kind in kinds)
    shown = table[:most]
    rest = _by_reason(failed, remark)[: max(most - len(shown), 3)]
    rest += _by_reason(left_out, remark)[: max(most - len(shown) - len(rest), 3)]
    cells = [[column.cell(row) for column in COLUMNS] for row in shown]
    lines = [text_table(HEADERS, cells, right=NUMBERS)]
    for row, *others in rest:
        more = f" and {pluralize(len(others), 'other')}" if others else ""
        lines.append(f"{place_of(row)}{more}: {remark(row)}")
    if hidden := len(rows) - len(shown) - sum(map(len, rest)):
        lines.append(f"... and {hidden} more (exploration.table has all)")
    return "\n".join(lines)


def _by_reason(
    rows: Sequence[dict[str, Any]], remark: Callable[[dict[str, Any]], str]
) -> list[list[dict[str, Any]]]:
    """The rows, those with the same reason together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(remark(row), []).append(row)
    return list(found.values())
