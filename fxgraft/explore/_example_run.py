"""What the example call shows of blocks: their FLOPs, and how they are called. The run leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxgraft.host.channels import example_of
from fxgraft.host.host import Host
from fxgraft.host.insertions import path_of
from fxgraft.util.flops import flop_counter

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a call."""


class BlockFlops:
    """FLOPs of blocks in the example call, counted once, at the first question.

    A block counts without the seeds in it, which a copy of it does not have.

    Args:
        host: of the blocks.
    """

    def __init__(self, host: Host):
        self._host = host
        self._found: dict[str, int] | None = None

    def of(self, block: str) -> int | None:
        """Of the block with that qualified name; None where the example call is not known or does not run."""
        if self._found is None:
            self._found = self._counted()
        return self._found.get(block)

    def _counted(self) -> dict[str, int]:
        host = self._host
        blocks = [block for stack in host.stacks.values() for block in stack.blocks]
        seeds = [path_of(placement.seed) for placement in host.structure.placements]
        with flop_counter() as counter:
            total = _Total(counter.get_total_flops)
            hooks = {name: total.hooks(name, name in seeds) for name in dict.fromkeys((*blocks, *seeds))}
            return total.found if _ran(host, hooks) else {}


@dataclass
class _Total:
    """Adds up the FLOPs of modules by themselves: of those inside, seeds do not count."""

    now: Callable[[], int]
    found: dict[str, int] = field(default_factory=dict)
    _open: list[list[int]] = field(default_factory=list)
    """Of each module that runs: the FLOPs when it began, and those of seeds in it."""

    def hooks(self, name: str, is_seed: bool) -> tuple[Callable[..., None], Callable[..., None]]:
        return self._enter, partial(self._leave, name, is_seed)

    def _enter(self, *_: object) -> None:
        self._open.append([self.now(), 0])

    def _leave(self, name: str, is_seed: bool, *_: object) -> None:
        began, of_seeds = self._open.pop()
        spent = self.now() - began
        self.found[name] = self.found.get(name, 0) + spent - of_seeds
        if self._open:
            self._open[-1][1] += spent if is_seed else of_seeds


def block_calls(host: Host, blocks: Iterable[str]) -> dict[str, Call]:
    """Copies of the arguments of each of these blocks in the example call; without those that do not run.

    Args:
        host: of the blocks.
        blocks: their qualified names.
    """
    found: dict[str, Call] = {}

    def keep(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.setdefault(name, pytree.tree_map(own, (args, kwargs)))

    def nothing(*_: object) -> None:
        pass

    _ran(host, {name: (partial(keep, name), nothing) for name in blocks})
    return found


def own(value: Any) -> Any:
    """A copy: a block may write into what it is given, as attention into a cache."""
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _ran(host: Host, hooks: dict[str, tuple[Callable[..., None], Callable[..., None]]]) -> bool:
    """Run the example call in eval mode with hooks before and after modules; whether it could run."""
    if (subject := example_of(host)) is None:
        return False
    with ExitStack() as stack:
        stack.enter_context(subject.session())  # first: what hooks reach would be as before at its end
        stack.enter_context(subject.in_mode(False))
        stack.enter_context(torch.no_grad())
        for name, (before, after) in hooks.items():
            module = host.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        try:
            subject.run(*subject.args, **subject.kwargs)
        except Exception:  # an operation that torch cannot count, or a model that does not run so
            if host.compiled is None:
                torch.compiler.reset()  # as for evaluate, see `measuring`
            return False
    return True
