"""The five arms: the same batches and initial weights, each with or without growth.

==============  ====================================================================
``baseline``    plain PyTorch, no fxgraft
``disabled``    the traced host under the grown arm's commands, seeds disabled
``grown``       the controller grows it
``scratch``     the final grown architecture, from the first step on
``no_isolation``  the grown arm's germinations, not isolated and blended from their first step on
==============  ====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

from fxgraft import Stage
from fxgraft.demo.controller import Action, Germinate
from fxgraft.demo.model import BLUEPRINTS
from fxgraft.demo.records import Record
from fxgraft.demo.training import Bench, Run
from fxgraft.telemetry import Sink


def baseline(bench: Bench, random_seed: int) -> Record:
    """(a) No fxgraft at all."""
    run = Run(bench, "baseline", random_seed, bench.model)
    run.train(bench.run_model, lambda step, loss: None)
    return run.finish()


def disabled(bench: Bench, random_seed: int, script: Sequence[tuple[int, Action]]) -> Record:
    """(b) The traced host, given the grown arm's commands with seeds disabled."""
    run = Run(bench, "disabled", random_seed, bench.empty_host(), enabled=False)
    run.replay(script)
    return run.finish()


def grown(bench: Bench, random_seed: int, sinks: Sequence[Sink] = ()) -> Record:
    """(c) The controller at work."""
    run = Run(bench, "grown", random_seed, bench.empty_host(), sinks=sinks)
    run.grow()
    return run.finish()


def scratch(bench: Bench, random_seed: int, grown: Record) -> Record:
    """(d) What the grown arm ended up with, from fresh weights and for the same steps."""
    host = bench.fresh_host()
    run = Run(bench, "scratch", random_seed, host)
    kept = {seed.name for seed in grown.seeds if seed.stage == Stage.FOSSILIZED.name}
    germinations = [a for _, a in grown.script if isinstance(a, Germinate) and a.seed in kept]
    for action in germinations:
        seed = run.manager.germinate(action.slot, BLUEPRINTS[action.blueprint], name=action.seed)
        run.manager.blend(seed, steps=1)
        run.manager.step()
        run.manager.fossilize(seed)
    if bench.compiled:
        host.compile(backend=bench.backend, dynamic=False)
    run.train(host, lambda step, loss: None)
    return run.finish()


def no_isolation(bench: Bench, random_seed: int, script: Sequence[tuple[int, Action]]) -> Record:
    """(e) The same germinations, culls and fossils at the same steps, but nothing is isolated (eager)."""
    run = Run(bench, "no_isolation", random_seed, bench.fresh_host())
    run.replay(script, isolated=False)
    return run.finish()
