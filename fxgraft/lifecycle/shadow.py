"""The shadow pass: a second forward and backward in which isolated seeds run at alpha 1.

    with manager.shadow():
        criterion(host(x), y).backward()

Only seeds in TRAINING get gradients. The host's parameters, buffers, gradients and random streams
are afterwards what they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from fxgraft.host import engine
from fxgraft.host.host import Host
from fxgraft.util.interrupts import delay_interrupts
from fxgraft_passes import Phase


@contextmanager
def shadow_pass(host: Host, learners: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let ``host`` run its shadow phase inside; gradients go to ``learners`` only."""
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
