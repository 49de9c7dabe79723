"""How the models of the zoo grow: the columns of the table that tell of depth and width.

* ``stacks``: the number of blocks in each container of alike blocks that was found;
* ``deepened, to the bit``: one more block in each stack; the outputs are those of before, bit by bit;
* ``channel groups``: how many of the groups of channels can grow;
* ``widened``: one group of each kind grows by its grain, one after the other; the function is kept, and
  the host runs forward and backward;
* ``transplanted``: a host with one more block is put into a larger model of the class that was made by itself
  (transformers: by its configuration; else the model with one more block in its container), and computes
  the same there.

``deepened`` and ``transplanted`` each have a host of their own. Where something did not hold, the reason is
told.
"""

from __future__ import annotations

import copy
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxgraft
from benchmarks.zoo_models import Sample
from fxgraft.util.bits import same_bits

COLUMNS = ("stacks", "deepened, to the bit", "channel groups", "widened", "transplanted")
SECONDS = 240
"""How much processor time a column may take."""

KINDS = 4
"""How many groups of channels are widened, at most: one of each kind."""


@dataclass
class Cell:
    """What became of one model in one column.

    Attributes:
        says: a number or ``"yes"``, or how many of how many; empty where there was nothing to do it with.
        reason: why not, or not all.
        seconds: how much processor time it took.
    """

    says: str = ""
    reason: str = ""
    seconds: float = 0.0


def grow(make: Callable[[], Sample]) -> dict[str, Cell]:
    """The columns of a model; never raises.

    Args:
        make: makes the model, the same one at each call, with an example call.
    """
    found = {}
    shared = _Shared(make)
    acts = {
        "stacks": lambda cell: _stacks(cell, *shared.get()),
        "deepened, to the bit": lambda cell: _deepened(cell, make()),
        "channel groups": lambda cell: _groups(cell, *shared.get()),
        "widened": lambda cell: _widened(cell, *shared.get()),
        "transplanted": lambda cell: _transplanted(cell, make()),
    }
    for column in COLUMNS:
        began, cell = time.process_time(), Cell()
        try:
            with _limited(SECONDS):
                torch.manual_seed(0)
                acts[column](cell)
        except Exception as error:
            cell.reason = told(error)
        cell.seconds = round(time.process_time() - began, 1)
        found[column] = cell
    return found


class _Shared:
    """The host of the columns that leave it as it is, and of the last one, which widens it."""

    def __init__(self, make: Callable[[], Sample]):
        self._make = make
        self._made: tuple[Sample, fxgraft.Host] | None = None

    def get(self) -> tuple[Sample, fxgraft.Host]:
        if self._made is None:
            sample = self._make()
            self._made = sample, _host(sample)
        return self._made


def told(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:240] if lines else ''}"


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:g} s of the processor")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _host(sample: Sample) -> fxgraft.Host:
    return fxgraft.trace(sample.model.train(), sample.args, sample.kwargs)


def _outputs(module: nn.Module, sample: Sample) -> list[Tensor]:
    """Of a call in eval mode."""
    was = module.training
    module.eval()
    torch.manual_seed(7)
    with torch.no_grad():
        found = pytree.tree_leaves(module(*sample.args, **sample.kwargs))
    module.train(was)
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


def _trains(host: nn.Module, sample: Sample) -> None:
    """Forward and backward, in train mode."""
    found = pytree.tree_leaves(host.train()(*sample.args, **sample.kwargs))
    learned = [t.float().square().mean() for t in found if isinstance(t, Tensor) and t.requires_grad]
    torch.stack(learned).sum().backward()


def _stacks(cell: Cell, sample: Sample, host: fxgraft.Host) -> None:
    stacks = host.stacks
    if stacks:
        cell.says = ", ".join(str(len(stack)) for stack in stacks.values())
        return
    cell.says = "no"
    why = Counter(stacks.rejected.values()).most_common(2)
    cell.reason = "; ".join(f"a container {reason}" for reason, _ in why) or "has no container of modules"


def _deepened(cell: Cell, sample: Sample) -> None:
    host = _host(sample)
    if not host.stacks:
        cell.says = "no"
        cell.reason = "no stacks"
        return
    before, failed, names = _outputs(host, sample), [], list(host.stacks)
    manager = fxgraft.SeedManager(host, check_every=0)
    for name in names:
        try:
            manager.deepen(name)
        except fxgraft.errors.FxGraftError as error:
            failed.append(told(error))
    done = len(names) - len(failed)
    same = done and same_bits(_outputs(host, sample), before)
    _trains(host, sample)
    cell.says = "no" if not same else "yes" if not failed else f"{done} of {len(names)}"
    cell.reason = "other outputs" if done and not same else "; ".join(dict.fromkeys(failed))


def _groups(cell: Cell, sample: Sample, host: fxgraft.Host) -> None:
    groups = host.channels
    free = [group for group in groups.values() if group.fixed is None]
    cell.says = f"{len(free)} of {len(groups)}"
    is_ends = ("is a size of the output", "is a size of the input", "no layer reads it")
    why = Counter(g.fixed for g in groups.values() if g.fixed is not None and g.fixed not in is_ends)
    cell.reason = "; ".join(f"{n} x {reason}" for reason, n in why.most_common(2))


def _kind(group: Any) -> object:
    """Equal for groups that grow by the same rules."""
    roles = Counter((member.parameter, member.dimension, member.role) for member in group.members)
    return group.normalised, group.grain == 1, frozenset(roles)


def _widened(cell: Cell, sample: Sample, host: fxgraft.Host) -> None:
    manager = fxgraft.SeedManager(host, check_every=0)
    kinds: dict[object, str] = {}
    for name, group in host.channels.items():
        if group.fixed is None:
            kinds.setdefault(_kind(group), name)
    chosen = list(kinds.values())[:KINDS]
    grains = {name: host.channels[name].grain for name in chosen}
    if not chosen:
        cell.says, cell.reason = "no", "no group can grow"
        return
    failed = []
    for name in chosen:
        try:
            manager.widen(name, grains[name])
        except fxgraft.errors.FxGraftError as error:
            failed.append(told(error))
    if len(failed) < len(chosen):
        _trains(host, sample)
    cell.says = f"{len(chosen) - len(failed)} of {len(chosen)}"
    cell.reason = "; ".join(failed)


def _transplanted(cell: Cell, sample: Sample) -> None:
    host = _host(sample)
    if not host.stacks:
        cell.says, cell.reason = "no", "no stacks"
        return
    reasons = []
    for name, stack in host.stacks.items():
        try:
            target = _larger(sample, name, stack.blocks)
            fxgraft.SeedManager(host, check_every=0).deepen(name, at="end", init="copy")
            done = fxgraft.transplant(host, target)
        except fxgraft.errors.FxGraftError as error:
            reasons.append(told(error))
            host.clear()
            continue
        cell.says = "yes, to the bit" if done.max_abs == 0 else f"yes, within {done.max_abs:.1g}"
        return
    cell.says, cell.reason = "no", "; ".join(dict.fromkeys(reasons))


def _larger(sample: Sample, stack: str, blocks: Sequence[str]) -> nn.Module:
    """A model of the class with one more block behind the last one, with weights of its own."""
    config = getattr(sample.model, "config", None)
    for name in ("num_hidden_layers", "n_layer", "num_layers"):
        if config is not None and getattr(config, name, None) == len(blocks):
            larger = copy.deepcopy(config)
            setattr(larger, name, len(blocks) + 1)
            if getattr(larger, "layer_types", None) is not None and len(larger.layer_types) == len(blocks):
                larger.layer_types = [*larger.layer_types, larger.layer_types[-1]]
            return type(sample.model)(larger)
    model = copy.deepcopy(sample.model)
    container, last = model.get_submodule(stack), blocks[-1].rpartition(".")[2]
    behind = list(dict(container.named_children())).index(last) + 1
    new = copy.deepcopy(model.get_submodule(blocks[-1]))
    if behind < len(container) and last.isdigit():  # type: ignore[arg-type]
        container.insert(behind, new)  # type: ignore[operator]
    else:
        container.append(new)  # type: ignore[operator]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model
