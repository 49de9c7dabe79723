"""Random calls in one `manager.together()`, growth of the host's own layers among them: as one by one.

An act makes its changes in an order of its own: first all that adds, blends, culls and fossilizes, in the
order of the calls, then `widen` and `fuse`, in theirs. One by one in this order, all is the same to the bit,
also after further training: streams of random numbers are keyed by the names of seeds and by how often
channels have grown, and not by when something is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import nn

import fxgraft
from fxgraft.errors import FxGraftError
from tests.harness import assert_same_bits, frozen, snapshot, traced_once
from tests.resizing.models import Mlp
from tests.resizing.test_fusing_in_acts import BATCH, Deep

GROUPS = ("net.part.up", "blocks.0.up", "blocks.1.up", "_seeds.s1.module.up", "net.part.down")
GROWTHS = ("widen", "fuse")


@traced_once
def traced() -> fxgraft.Host:
    return fxgraft.trace(Deep(), (BATCH,))


def branch(hidden: int, seed: int) -> Mlp:
    """Of the form of the part that it is tried beside, and of another size."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Mlp()
        made.up, made.down = nn.Linear(4, hidden), nn.Linear(hidden, 3)
    return made


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a manager.

    Attributes:
        kind: the method, or what is germinated.
        one, two: numbers that say where, and how.
        name: of the seed that it makes, or that it is about.
    """

    kind: str
    one: int
    two: int
    name: str

    def do(self, run: Run) -> None:
        manager, name = run.manager, self.name
        match self.kind:
            case "branch":
                module = branch(1 + self.two % 4, self.one)
                manager.germinate("net.part", module, source="net.inner", name=name, isolated=False)
            case "linear":
                manager.germinate("net.inner", "low_rank", rank=1, name=name, isolated=bool(self.two % 2))
            case "seed":
                slot = ("blocks.0", "blocks.1", "blocks.0.up", "net.part.up")[self.one % 4]
                manager.germinate(slot, "mlp", hidden=2, name=name, isolated=bool(self.two % 3))
            case "deepen":
                places = run.host.stacks["blocks"].blocks
                at = [places.index(f"blocks.{self.one % 2}")]
                init, state = ("zero", "copy", "random")[self.two % 3], ("fresh", "copy")[self.two % 2]
                options: dict[str, Any] = (
                    {"isolated": True} if self.two % 5 == 4 else {"blend": self.two % 5 // 2}
                )
                manager.deepen("blocks", at=at, init=init, optimizer_state=state, name=name, **options)
            case "blend":
                manager.blend(name, to=(1.0, 1.0, 0.5)[self.two % 3], steps=self.two % 2)
            case "cull":
                manager.cull(name)
            case "fossilize":
                manager.fossilize(name, force=bool(self.two % 2))
            case "widen":
                manager.widen(GROUPS[self.one % len(GROUPS)], 1 + self.two % 2)
            case "fuse":
                manager.fuse(*([name] if self.two % 3 else []))


MAKES = ("branch", "linear", "seed", "deepen")
MOVES = ("blend", "cull", "fossilize")


@st.composite
def programs(draw: st.DrawFn) -> list[Call]:
    """What is made, made permanent (or else), and what grows then: in most orders, and some of it wrong."""
    made = ["nobody"]
    program = []

    def add(kind: str, name: str, one: int, two: int) -> None:
        program.append(Call(kind, one, two, name))

    numbers = st.tuples(st.integers(0, 11), st.integers(0, 11), st.integers(0, 11))
    for kind, one, two in draw(st.lists(numbers, min_size=3, max_size=7)):
        if kind < 7:
            made.append(f"s{len(made)}")
            add(MAKES[kind % 4], made[-1], one, two)
            if one % 3:
                add("fossilize", made[-1], one, 1)
        elif kind < 9:
            add(MOVES[one % 3], made[-1 - two % len(made)], one, two)
        if kind > 4:
            add(GROWTHS[kind % 2], made[-1 - one % len(made)], one, two)
    return program


class Run:
    def __init__(self) -> None:
        self.host = traced()
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)
        self.manager = fxgraft.SeedManager(self.host, self.optimizer, check_every=0)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.host(BATCH).square().mean().backward()
            self.optimizer.step()
            self.manager.step()

    def one_by_one(self, these: list[Call]) -> dict[Call, str]:
        """Make calls; what is refused, and why."""
        refused = {}
        for call in these:
            try:
                call.do(self)
            except FxGraftError as error:
                refused[call] = f"{type(error).__name__}: {error}"
        return refused

    def seen(self) -> dict[str, Any]:
        """Everything, with the identities of the parameters."""
        return {
            **snapshot(self.host, BATCH, [self.optimizer]),
            "widenings": str(self.host.widenings),
            "memory": (
                dict(self.manager._memory.names.next_numbers),
                dict(self.manager._memory.refuses_until),
            ),
            **self.settled(),
        }

    def settled(self) -> dict[str, Any]:
        """What is the same however it came about: parameters by their names."""
        names = {id(p): n for n, p in self.host.named_parameters()}
        groups = [sorted(names[id(p)] for p in group["params"]) for group in self.optimizer.param_groups]
        state = {names[id(p)]: dict(state) for p, state in self.optimizer.state.items()}
        seeds = [(n, s.stage, s.alphas, s.paused, s.steps) for n, s in self.manager.seeds.items()]
        return {
            "value": self.host(BATCH).detach(),
            "state": frozen(dict(self.host.state_dict())),
            "names": list(self.host.state_dict()),
            "moments": frozen(state),
            "groups": groups,
            "seeds": seeds,
            "order": [placement.seed for placement in self.host.structure.placements],
            "code": {name: self.host.regions[name].code for name in sorted(self.host.regions)},
            "channels": {n: (g.size, g.fixed) for n, g in sorted(self.host.channels.items())},
            "blocks": self.host.stacks["blocks"].blocks,
        }


@settings(max_examples=max(24, settings().max_examples))
@given(programs(), st.integers(0, 3))
def test_an_act_is_its_calls_one_by_one(program: list[Call], start: int) -> None:
    """What is refused inside is refused one by one; an act that fails does so as the first of those calls."""
    first, then = program[:start], program[start:]
    together, apart, as_written = Run(), Run(), Run()
    for run in (together, apart, as_written):
        run.one_by_one(first)
        run.train(1)
    before, failed, refused = together.seen(), "", {}
    try:
        with together.manager.together():
            refused.update(together.one_by_one(then))
    except FxGraftError as error:
        failed = f"{type(error).__name__}: {error}"
    planned = [call for call in then if call not in refused]
    growths = [call for call in planned if call.kind in GROWTHS]
    found = apart.one_by_one([*(call for call in planned if call.kind not in GROWTHS), *growths])
    assert refused.keys() <= as_written.one_by_one(then).keys()
    event("failed" if failed else f"{len(growths)} growths of {len(planned)}")
    if failed:
        assert_same_bits(together.seen(), before)
        assert failed == next(iter(found.values()), "")
        return
    assert not found
    assert_same_bits(together.settled(), apart.settled())
    for run in (together, apart):
        run.train(2)
    assert_same_bits(together.settled(), apart.settled())
