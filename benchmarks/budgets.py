"""The budgets that the design sets (ratios of medians, both sides in one run), each named once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """One line of the design's table.

    Attributes:
        what: is limited.
        against: what it is measured against.
        limit: the most that is allowed.
        words: the limit in words, where the number does not say all.
    """

    what: str
    against: str
    limit: float
    words: str = ""

    @property
    def text(self) -> str:
        """The limit as a table has it."""
        return self.words or f"≤ {self.limit:g}"


DORMANT = Budget("compiled step, all slots empty", "the bare model compiled", 0.01, "≤ A/A of the run + 0.01")
SEEDS_COMPILED = Budget("compiled step, seeds live", "the same network by hand, compiled", 1.02)
SEEDS_EAGER = Budget("eager step, seeds live", "the same network by hand, eager", 1.05)
CONVEX_EAGER = Budget("eager step, convex seeds blending", "torch.lerp by hand, eager", 1.05)
RECOMPILES = Budget("recompiles on alpha, stage, target, and known combinations", "", 0)
PER_STRUCTURE = Budget("compiles per new structure", "", 2)
LONGEST = Budget("longest step during a background germination", "the recompile by hand", 0.01, "≤ 1/100")
LIVE = Budget("a background change until live, one core free", "the recompile by hand", 1.2)
AT_ONCE = Budget("a change that is waited for", "the recompile by hand", 1.1)
PREPARING = Budget("median step while preparing, one core free", "the median step", 1.3)
FIRST = Budget("first step after the swap", "the median step", 3)
EDIT = Budget("germination in a modular host of 10,000 nodes", "in one of 100", 2)
CYCLES = Budget("growth in 200 germinate-cull cycles after cycle 20", "", 0)
PEAK = Budget("peak memory with seeds", "the same network by hand", 1.02)
PEFT = Budget(
    "12 LoRA seeds: germinate, change alpha, step", "PEFT, same ranks and targets", 1, "faster at each"
)
GROWN = Budget("step of a grown and fused network", "the same network by hand", 1.0, "≤ 1.00 within noise")
GROWN_BLOCKS = Budget("graphs compiled for 8 blocks inserted in one act", "", 2)
LONGEST_GROWTH = Budget(
    "longest step while blocks or channels grow in the background", "the recompile by hand", 0.01, "≤ 1/100"
)

ALL = (
    DORMANT,
    SEEDS_COMPILED,
    SEEDS_EAGER,
    CONVEX_EAGER,
    RECOMPILES,
    PER_STRUCTURE,
    LONGEST,
    LIVE,
    AT_ONCE,
    PREPARING,
    FIRST,
    EDIT,
    CYCLES,
    PEAK,
    PEFT,
    GROWN,
    GROWN_BLOCKS,
    LONGEST_GROWTH,
)
