"""What is compared. An arm is a network's sizes over the run and how it gets from one to the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.worth.arm import TRIED_AS_COPIES, Arm
from benchmarks.worth.guesses_arms import GUESSES
from benchmarks.worth.measured_arms import MEASURED_ARMS
from benchmarks.worth.protocols import LARGE, Protocol

PRIMARY = "deepen-1-8"
GROW = "grow"
"""The primary arm of the second experiment."""
SEVERAL = "grow-several"
"""The same with a block judged by several measurements, and the next one tried soon after one that stayed."""
ANYTHING = "autogrow-anything"
"""`autogrow` with its defaults, within a budget of FLOPs."""


def fixed(depth: int, ends: tuple[float, ...], inside: bool = False) -> Arm:
    """A network of ``depth`` blocks from scratch."""
    name = f"fixed-{depth}"
    return Arm(name, depth, "fixed", name, ends, inside=inside)


def _variant(name: str, at: float = 0.5, **options: Any) -> Arm:
    options = {"init": "zero", "optimizer_state": "fresh", "at": "end"} | options
    return Arm(f"{PRIMARY}-{name}", 1, "deepen", PRIMARY, (1.0, 1.3), ((at, LARGE),), options)


CONTROL = "deepen-1-2"
"""What the arms of the protocol "tried" change one thing of."""


def _tried(name: str, **options: Any) -> Arm:
    """1 block to 2 at 0.4 N, as `CONTROL`, with one thing changed."""
    options = {"init": "zero", "optimizer_state": "fresh", "at": "end"} | options
    return Arm(
        f"{CONTROL}-{name}", 1, "tried", PRIMARY, (1.0,), ((0.4, 2),), options, seeds="all", like=2,
        protocols=("tried",), workloads=("gpt",),
    )  # fmt: skip


TRIED = (
    replace(_tried(""), name=CONTROL),
    _tried("copy", init="copy"),
    _tried("copy-state", init="copy", optimizer_state="copy"),
    _tried("random", init="random"),
    _tried("start", at="start"),
    _tried("blend", blend=200),
    _tried("isolated", isolated=200, blend=200),
    _tried("slow-new", new_rate=0.0, during=100),
    _tried("fast-new", new_rate=3.0, during=10**9),
    _tried("warm-up", all_rate=0.0, during=100),
    _tried("lower", all_rate=0.5**0.5, during=10**9),
)
HELPED = ("copy", "copy-state", "random", "lower")
"""What helped, in the protocol "tried": run once more in "tried_again"."""
AGAIN = tuple(
    replace(arm, protocols=("tried_again",))
    for arm in TRIED
    if arm.name == CONTROL or arm.name.removeprefix(f"{CONTROL}-") in HELPED
)

GROW_COPIES, COPIES, ZEROED, STEPPED = "grow-copies", "copies", "zeroed", "stepped"
"""Of the fourth experiment: the primary arm, growth to a size that is known, the same with zeroed output
layers, and that size from scratch with a learning rate that falls at the same times."""
SOONER = "grow-sooner"
"""Of the fifth: the primary arm, whose blocks have to give half as much."""
FEW, MANY = ((0.2, 2),), ((0.05, 2), (0.15, 4))
"""At which shares of the budget a size that is known is grown to: where two blocks are best, and four."""
LOWER = TRIED_AS_COPIES["lower"]
"""The power of the factor by which the depth grows that the learning rate is divided by."""


def _by_shares(name: str, protocol: str, workload: str, **options: Any) -> Arm:
    """Blocks come, if they do, at shares of the budget, and the learning rate falls there."""
    changes = MANY if workload in ("thin", "long") else FEW
    known = changes[-1][1] if name == STEPPED else 1
    options = {"init": "copy", "optimizer_state": "copy", "at": None, "factor": 0.5**LOWER} | options
    tuned_as = COPIES if name == ZEROED else name
    return Arm(
        name, known, "shares", tuned_as, (1.0,), changes, options, seeds="all", protocols=(protocol,),
        workloads=(workload,),
    )  # fmt: skip


def _copied(protocol: str, workload: str, ends: tuple[float, ...]) -> tuple[Arm, ...]:
    """The arms of the fourth and fifth experiments that are no fixed sizes; ``ends`` of the primary one."""
    primary = Arm(
        GROW_COPIES, 1, "grow", GROW_COPIES, ends, options=TRIED_AS_COPIES, seeds="all",
        protocols=(protocol,), workloads=(workload,),
    )  # fmt: skip
    fourth, long = protocol == "copies", protocol == "long"
    zeroed = _by_shares(ZEROED, protocol, workload, init="zero", optimizer_state="fresh")
    sooner = replace(primary, name=SOONER, ends=(1.0,), options={**TRIED_AS_COPIES, "price": 0.25})
    return (
        primary,
        _by_shares(COPIES, protocol, workload),
        *(() if long else (zeroed,)),
        _by_shares(STEPPED, protocol, workload),
        *(() if fourth else (sooner,)),
    )


def _adapted(blocks: int, host_rate: float, decays: bool = False) -> Arm:
    """A host of so many blocks, frozen at 0.4 of the budget, and LoRA on it."""
    options = {"rank": 16, "host_rate": host_rate, "host_decays": decays}
    name, frozen = f"lora-{blocks}", ((0.4, blocks),)
    return Arm(
        name + "-decayed" * decays, blocks, "adapt", name, (1.0,), frozen, options, seeds="all",
        protocols=("adapters",), workloads=("gpt",),
    )  # fmt: skip


ADAPTED = (_adapted(2, 0.003), _adapted(2, 0.003, decays=True), _adapted(1, 0.0021))
"""PEFT; the hosts have the learning rates that their sizes chose in the protocol "copies"."""

WIDER, GROMO, FREE, STEPPED_WIDTH = "widen-1-8", "gromo-1-8", "gromo-1-8-free", "stepped-8"
"""Growth in width by fxgraft and by gromo, the latter also with what it computes not charged, and the largest
width from the start with a learning rate that falls at the same times."""
DOUBLED = ((0.02, 2), (0.04, 4), (0.08, 8))


def _wider(name: str, how: str, depth: int = 1, tuned_as: str | None = None, **options: Any) -> Arm:
    """Widths come at shares of the budget, and the learning rate falls there."""
    return Arm(
        name, depth, how, tuned_as or name, (1.0,), DOUBLED, {"factor": 0.5**LOWER, **options}, seeds="all",
        protocols=("widths",), workloads=("mlp",),
    )  # fmt: skip


_GROMO = {"batches": 16, "delta": False, "state": False}
_WIDEN = {"init": "zero", "optimizer_state": "fresh"}
WIDTHS = (
    _wider(WIDER, "wider", **_WIDEN),
    _wider(GROMO, "gromo", **_GROMO, charged=True),
    _wider(FREE, "gromo", tuned_as=GROMO, **_GROMO, charged=False),
    _wider(STEPPED_WIDTH, "wider", depth=LARGE, **_WIDEN),
    Arm(ANYTHING, 1, "any width", "fixed-1", (1.0,), seeds="all", protocols=("widths",), workloads=("mlp",)),
)


SLOWER = 0.5**0.5
"""What a fixed size's learning rate is multiplied by once more; short runs choose rates that are too high."""


def _lower(size: Arm) -> Arm:
    """The fixed size with a lower learning rate than the one that was chosen."""
    return replace(size, name=f"{size.name}-lower", factor=SLOWER)


GROWTH = (
    Arm(
        PRIMARY, 1, "deepen", PRIMARY, (0.8, 1.0, 1.3), ((0.5, LARGE),),
        {"init": "zero", "optimizer_state": "fresh", "at": "end"}, seeds="finalist",
    ),
    Arm(
        "deepen-2-4-8", 2, "deepen", PRIMARY, (1.0, 1.3), ((0.3, 4), (0.6, LARGE)),
        {"init": "zero", "optimizer_state": "fresh", "at": None}, seeds="finalist",
    ),
    Arm("gstack-2-8", 2, "stack", PRIMARY, (1.0, 1.3), ((0.5, LARGE),), seeds="finalist"),
    Arm("net2net-1-8", 1, "net2net", PRIMARY, (1.0, 1.3), ((0.5, LARGE),)),
    Arm("stochastic-8", LARGE, "stochastic", f"fixed-{LARGE}", (1.0, 1.3)),
    Arm(
        "deepen-1-2", 1, "deepen", PRIMARY, (0.6, 1.0), ((0.4, 2),),
        {"init": "zero", "optimizer_state": "fresh", "at": "end"}, seeds="all", workloads=("gpt",), like=2,
        protocols=("short", "full", "quick", "unknown"),
    ),
    _variant("early", 0.3),
    _variant("copy", init="copy"),
    _variant("random", init="random"),
    _variant("state", init="copy", optimizer_state="copy"),
    _variant("late", 0.7),
    Arm(
        "widen", LARGE, "widen", PRIMARY, (1.0,), ((0.5, LARGE),), {"hidden": 64}, seeds="all",
        protocols=("short", "full", "quick"), workloads=("gpt",),
    ),
    Arm(
        "deepen-1-8-muon", 1, "deepen", "deepen-1-8-muon", (1.0,), ((0.5, LARGE),),
        {"init": "zero", "optimizer_state": "fresh", "at": "end", "optimizer": "muon"}, seeds="all",
        protocols=("short", "full", "quick"), workloads=("gpt",),
    ),
    Arm(
        "muon-2", 2, "plain", "muon-2", (0.6, 1.0), options={"optimizer": "muon"}, seeds="all", like=2,
        protocols=("short", "full", "quick"), workloads=("gpt",),
    ),
    Arm(
        GROW, 1, "grow", "fixed-1", (0.35, 1.0),
        options={"first": 0.1, "last": 0.5, "hold": 0.1, "init": "zero"},
        seeds="all", protocols=("unknown", "quick"),
    ),
    Arm(
        SEVERAL, 1, "grow", "fixed-1", (0.35, 1.0),
        options={"first": 0.1, "last": 0.5, "hold": 0.1, "init": "zero", "measurements": 8, "soon": 1.3},
        seeds="all", protocols=("unknown",), workloads=("cnn", "thin"),
    ),
    Arm(
        ANYTHING, 1, "anything", "fixed-1", (1.0,), seeds="all", protocols=("unknown", "quick"),
        workloads=("gpt",),
    ),
    Arm("autogrow", 1, "autogrow", PRIMARY, (1.0,), protocols=("full",)),
)  # fmt: skip


def arms(protocol: Protocol, workload: str) -> dict[str, Arm]:
    """The arms of a protocol on a workload, by name, in the order in which they are wanted."""
    scale = protocol.scales[workload]
    sizes = [fixed(depth, scale.fixed_ends, protocol.by_budget) for depth in scale.depths]
    if protocol.finalists is not None:
        sizes += [_lower(size) for size in sizes]
    known = {
        "tried": TRIED,
        "tried_again": AGAIN,
        "adapters": ADAPTED,
        "guesses": GUESSES,
        "measured": MEASURED_ARMS,
        "widths": WIDTHS,
        "copies": _copied(protocol.name, workload, (1.0,)),
        "brown": _copied(protocol.name, workload, scale.fixed_ends),
        "long": _copied(protocol.name, workload, scale.fixed_ends),
        "quick": (*GROWTH, *_copied(protocol.name, workload, (1.0,))),
    }.get(protocol.name, GROWTH)
    grown = [arm for arm in known if protocol.name in arm.protocols and workload in arm.workloads]
    return {arm.name: arm for arm in (*sizes, *grown)}
