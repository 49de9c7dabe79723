"""The same seeds by other means: forward hooks, and torch.fx by hand. Eager.

Neither isolates, goes back, or keeps compiled code: under ``torch.compile`` a hook that is put on after
compiling is ignored, and a graph that is edited by hand compiles as a whole again
(``bench_germination`` has that figure). What is compared is a step with blended seeds, and an edit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

from torch import Tensor, fx, nn

import fxgraft
from benchmarks.bench_seeds import FEW, RAMP, Ramp
from benchmarks.by_hand import BlendedByHand
from benchmarks.modes import MODES
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import median_ms, ratio
from benchmarks.workloads import Trainer, Workload

Put = Callable[[nn.Module, str, nn.Module], nn.Module]
"""Puts a seed behind a submodule; returns the model to call."""


def rows(settings: Settings) -> Iterator[Row]:
    """One for each of the other means."""
    for workload, mode in settings.pairs(("MLP-12", "eager")):
        sides = {"fxgraft": grown(workload)} | {name: other(workload, put) for name, put in PUTS.items()}
        samples = settings.meter.interleaved({name: trainer.step for name, trainer in sides.items()})
        ours = samples.pop("fxgraft")
        for name, theirs in samples.items():
            figures = (median_ms(ours), median_ms(theirs))
            what = f"step, {FEW[0]} blending seeds"
            where = ("alternatives", workload.name, mode.name)
            yield Row(*where, what, name, ratio(ours, theirs), "x", None, figures)


def grown(workload: Workload) -> Trainer:
    """With seeds of fxgraft."""
    host = workload.host()
    trainer = Trainer(workload, host, MODES["eager"].apply(host))
    manager = fxgraft.SeedManager(host, trainer.optimizer)
    trainer.after = manager.step
    for i in range(FEW[0]):
        seed = manager.germinate(workload.place(i), workload.blueprint, name=f"s{i}", **workload.config)
        manager.blend(seed, steps=RAMP, schedule="linear")
    return trainer


def other(workload: Workload, put: Put) -> Trainer:
    """With the same seeds by other means."""
    model = workload.model()
    host, seeds = workload.host(), []
    manager = fxgraft.SeedManager(host)
    for i in range(FEW[0]):
        place = workload.place(i)
        made = manager.germinate(place, workload.blueprint, name=f"s{i}", **workload.config)
        seeds.append(BlendedByHand(copy.deepcopy(made.module)))  # type: ignore[arg-type]
        model = put(model, place, seeds[-1])
    trainer = Trainer(workload, nn.ModuleList([model, *seeds]), model)
    trainer.after = Ramp(list(seeds))
    return trainer


def by_hook(model: nn.Module, place: str, seed: nn.Module) -> nn.Module:
    """What the module gives goes through the seed."""

    def through(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return seed(out)  # type: ignore[no-any-return]

    model.get_submodule(place).register_forward_hook(through)
    return model


def by_fx(model: nn.Module, place: str, seed: nn.Module) -> nn.Module:
    """The graph of the whole model, with one more call in it."""
    graph = model if isinstance(model, fx.GraphModule) else fx.symbolic_trace(model)
    node = next(n for n in graph.graph.nodes if n.op == "call_module" and n.target == place)
    name = f"seed_{place.replace('.', '_')}"
    graph.add_submodule(name, seed)
    with graph.graph.inserting_after(node):
        call = graph.graph.call_module(name, (node,))
    node.replace_all_uses_with(call, lambda user: user is not call)
    graph.recompile()
    return graph


PUTS: dict[str, Put] = {"forward hooks": by_hook, "torch.fx by hand": by_fx}
