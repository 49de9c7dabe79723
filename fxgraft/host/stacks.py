"""Stacks: containers of equal blocks that run one after the other, in which further blocks can be inserted.

    self.h = nn.ModuleList([Block() for _ in range(12)])      host.stacks["transformer.h"]

What the example run showed decides, so it does not matter whether the code that calls the blocks has a graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch.fx as fx
from torch import nn

from fxgraft.capture.data_flow import BLOCKS, ExampleRun
from fxgraft.capture.region import Region
from fxgraft.host.insertions import path_of
from fxgraft.slots.structure import Structure
from fxgraft.util.tables import TableMapping
from fxgraft_passes import Call
from fxgraft_passes.graft import SEEDS
from fxgraft_passes.metadata import metadata


@dataclass(frozen=True)
class Stack:
    """A container of equal blocks (of one class; each can read what the one before returns).

    Attributes:
        path: the qualified name of the container.
        blocks: the qualified names of its blocks in running order, inserted ones (``_seeds.<name>.module``)
            included. Other children of the container, in front of or behind these, are not included.
        cls: the class of the blocks.
        call: how one of its blocks is called.
    """

    path: str
    blocks: tuple[str, ...]
    cls: type[nn.Module]
    call: Call = field(repr=False)

    def __len__(self) -> int:
        return len(self.blocks)


class _NoStackError(Exception):
    """Why a container is no stack."""


class Stacks(TableMapping[Stack]):
    """The stacks of a host, by the names of their containers, as it is now; prints as a table.

    Attributes:
        rejected: containers that are none -> why.
    """

    headers = ("stack", "blocks", "class", "names")

    def __init__(
        self,
        root: nn.Module,
        regions: Mapping[str, Region],
        runs: Mapping[str, ExampleRun],
        opaque: Mapping[str, str],
        structure: Structure,
    ):
        super().__init__({})
        self.rejected: dict[str, str] = {}
        self._at: dict[str, tuple[str, bool]] = {}
        """Inserted block -> the block of the model that it is at, and whether in front of it."""
        names = {module: path for path, module in root.named_modules()}
        for module, path in names.items():
            if isinstance(module, (nn.ModuleList, nn.Sequential)):
                try:
                    self._items[path] = _stack(path, module, names, regions, runs, opaque)
                except _NoStackError as reason:
                    self.rejected[path] = str(reason)
            elif isinstance(module, nn.ModuleDict):
                self.rejected[path] = (
                    "is an nn.ModuleDict, whose blocks have names: expected an nn.ModuleList or nn.Sequential"
                )
        for placement in structure.placements:
            if placement.spec.call is not None:
                self._insert(placement.seed, placement.slot.region, placement.spec.call.before)

    def _insert(self, seed: str, block: str, before: bool) -> None:
        """A block runs behind (in front of) ``block``, and behind those that were inserted there before."""
        for path, stack in list(self._items.items()):
            if block in stack.blocks:
                self._items[path] = replace(stack, blocks=_with(stack.blocks, seed, block, before, self._at))
                self._at[path_of(seed)] = block, before
            elif path.startswith(f"{block}."):  # a stack in the block is one in its copy, too
                inner = tuple(path_of(seed) + b[len(block) :] for b in stack.blocks if b not in self._at)
                copied = path_of(seed) + path[len(block) :]
                self._items[copied] = replace(stack, path=copied, blocks=inner)

    def _row(self, path: str, stack: Stack) -> tuple[object, ...]:
        return path, len(stack), stack.cls.__name__, ", ".join(stack.blocks)

    def __repr__(self) -> str:
        lines = [
            f"{path!r}: {len(stack)} x {stack.cls.__name__} ({', '.join(stack.blocks)})"
            for path, stack in self.items()
        ]
        return "\n".join(lines) or "no stacks"


def _with(
    blocks: tuple[str, ...], seed: str, block: str, before: bool, at: Mapping[str, tuple[str, bool]]
) -> tuple[str, ...]:
    place = blocks.index(block)
    if not before:
        place += 1
        while place < len(blocks) and at.get(blocks[place]) == (block, False):
            place += 1
    return (*blocks[:place], path_of(seed), *blocks[place:])


def output_of(region: Region, call: Call) -> fx.Node | None:
    """The node whose value leaves a block: what a block behind it reads."""
    found: Any = region.base.output_node().args[0]
    if call.element is not None:
        found = (
            found[call.element] if isinstance(found, (tuple, list)) and len(found) > call.element else None
        )
    return found if isinstance(found, fx.Node) else None


def input_of(region: Region, call: Call) -> fx.Node | None:
    """The input of a block's graph that the block in front gives it."""
    name = next((known.name for known in region.form.inputs if known.expression == call.input), None)
    return next((n for n in region.base.nodes if n.op == "placeholder" and n.target == name), None)


def _stack(
    path: str,
    container: nn.Module,
    names: Mapping[nn.Module, str],
    regions: Mapping[str, Region],
    runs: Mapping[str, ExampleRun],
    opaque: Mapping[str, str],
) -> Stack:
    blocks = {f"{path}.{name}".lstrip("."): child for name, child in container.named_children()}
    if not blocks:
        raise _NoStackError("is empty")
    several_times = len(blocks) != sum(child is not None for child in container._modules.values())
    classes = {type(block) for block in blocks.values()}
    if len(classes) > 1:
        alike = _alike_among(blocks, regions, runs)
        if not alike or several_times:
            raise _NoStackError(
                f"has blocks of several classes ({', '.join(sorted(c.__name__ for c in classes))})"
            )
        blocks = alike
    elif several_times:
        raise _NoStackError("has one block several times")
    missing = next((name for name in blocks if name not in runs), None)
    if missing is not None and names.get(blocks[missing], missing) != missing:
        raise _NoStackError(
            f"has a block, {missing!r}, that is registered as {names[blocks[missing]]!r} as well: expected "
            f"one name for each block"
        )
    if missing is not None:
        why = "of torch's own" if type(blocks[missing]).__module__.startswith("torch.nn") else "not called"
        raise _NoStackError(
            f"has a block, {missing!r}, that is {why}, so that nothing is known of its inside"
        )
    several = next((name for name in blocks if runs[name].calls != 1), None)
    if several is not None:
        raise _NoStackError(f"has a block, {several!r}, that is called {runs[several].calls} times in a run")
    parts = list(_chains(list(blocks), regions, runs))
    longest = max(parts, key=len, default=[])
    if not longest or (len(longest) == 1 and len(blocks) > 1 and not _in_a_row(list(blocks), runs)):
        raise _NoStackError(_no_row(list(blocks), regions, runs))
    if (bare := next((name for name in longest if name not in regions), None)) is not None:
        raise _NoStackError(
            f"has a block, {bare!r}, that has no graph: it {opaque.get(bare, 'is not traced')}"
        )
    call = _call_of(longest, regions, runs)
    return Stack(path, tuple(longest), type(blocks[longest[0]]), call)


def _no_row(names: Sequence[str], regions: Mapping[str, Region], runs: Mapping[str, ExampleRun]) -> str:
    """Why blocks do not read what those in front return, or are not called so."""
    for name in names:
        if name in regions and regions[name].is_boundary and runs[name].returns != "Tensor":
            return (
                f"has a block without a graph, {name!r}, that returns a {runs[name].returns}, and no tensor"
            )
        try:
            if name in regions:
                _call_of([name], regions, runs)
        except _NoStackError as error:
            return str(error)
    for before, name in pairwise(names):
        if before not in runs[name].follows:
            return (
                f"has no alike blocks of which one reads what the other returns: {name!r} is not given a "
                f"tensor that {before!r} returns"
            )
    return "has no alike blocks of which one reads what the other returns"


def _alike_among(
    blocks: Mapping[str, nn.Module], regions: Mapping[str, Region], runs: Mapping[str, ExampleRun]
) -> dict[str, nn.Module]:
    """The longest row of blocks of one class, two at least, among others: an embedding, a last norm."""
    longest: list[str] = []
    for cls in dict.fromkeys(map(type, blocks.values())):
        if cls in BLOCKS or not cls.__module__.startswith(
            "torch.nn"
        ):  # one linear layer beside another is no row of blocks
            called = [n for n in blocks if type(blocks[n]) is cls and n in runs and runs[n].calls == 1]
            longest = max([longest, *_chains(called, regions, runs)], key=len)
    return {name: blocks[name] for name in longest} if len(longest) > 1 else {}


def _in_a_row(names: Sequence[str], runs: Mapping[str, ExampleRun]) -> bool:
    return all(a in runs[b].follows for a, b in pairwise(names))


def _chains(
    names: Sequence[str], regions: Mapping[str, Region], runs: Mapping[str, ExampleRun]
) -> Iterator[list[str]]:
    """The parts in which each block reads what the one in front returns, and returns what is of that form."""
    part: list[str] = []
    for name in names:
        keeps = _keeps_its_form(name, regions, runs)
        if part and not (keeps and part[-1] in runs[name].follows):
            yield part
            part = []
        if keeps:
            part.append(name)
    if part:
        yield part


def _call_of(names: Sequence[str], regions: Mapping[str, Region], runs: Mapping[str, ExampleRun]) -> Call:
    """How the blocks are called."""
    found = {_by(runs[b], a) for a, b in pairwise(names)}
    elements = {runs[name].element for name in names[:-1]}
    returns = {runs[name].returns for name in names}
    if len(found) > 1 or len(elements) > 1 or len(returns) > 1:
        raise _NoStackError("has blocks that are called in different ways")
    element = next(iter(elements), runs[names[0]].element)
    if returns == {"Tensor"}:
        element = None
    elif not returns <= {"tuple", "list"}:
        raise _NoStackError(f"has blocks that return a {min(returns)}, and no tensor")
    elif element is None:
        element = 0
    if None in found:
        raise _NoStackError("has blocks that read what the one in front returns as several arguments")
    region = regions[names[0]]
    candidates = [i.expression for i in region.form.inputs if i.expression.isidentifier()]
    wanted = [name for name in found if name is not None] or candidates
    for name in wanted:
        call = Call(name, element)
        if _same_form(input_of(region, call), output_of(region, call)):
            return call
    raise _NoStackError("has blocks whose results have not the form of what they read")


def _keeps_its_form(name: str, regions: Mapping[str, Region], runs: Mapping[str, ExampleRun]) -> bool:
    if name not in regions:
        return True  # which is said later
    try:
        return _call_of([name], regions, runs) is not None
    except _NoStackError:
        return False


def _by(run: ExampleRun, maker: str) -> str | None:
    parameters = run.follows.get(maker, ())
    return parameters[0] if len(set(parameters)) == 1 else None


def _same_form(a: fx.Node | None, b: fx.Node | None) -> bool:
    ours, theirs = (None if node is None else metadata(node).get("observation") for node in (a, b))
    if ours is None or theirs is None or ours.kind != "Tensor" or theirs.kind != "Tensor":
        return False
    return bool((ours.shape, ours.dtype) == (theirs.shape, theirs.dtype) and ours.dtype.is_floating_point)


def is_inserted(block: str) -> bool:
    """Whether a block of a stack was inserted itself; one inside of such a block was not."""
    return block.startswith(f"{SEEDS}.") and block.count(".") == 2
