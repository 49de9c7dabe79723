"""Whatever a Trainer is set up to do: a resumed run is the whole run, and the best model is what it was."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import TrainerCallback

import fxgraft
from fxgraft import SeedManager, Stage
from tests.harness import assert_same_bits
from tests.integrations.trainers import MODELS, host, plain, trainer

STEPS = 6
ACTS = ("nothing", "germinate", "germinate with its own lr", "blend", "fossilize", "cull")


@dataclass(frozen=True)
class Plan:
    """A model, what a Trainer is set up to do with it, and what grows when."""

    name: str
    acts: tuple[str, ...]
    every: int
    scores: tuple[float, ...]
    best: bool
    resume_at: int
    options: tuple[tuple[str, Any], ...]


OPTIONS = {
    "gradient_accumulation_steps": [1, 2],
    "per_device_train_batch_size": [1, 4],
    "label_smoothing_factor": [0.0, 0.1],
    "lr_scheduler_type": ["linear", "cosine", "constant"],
    "max_grad_norm": [1.0, 0.0, 0.05],
    "eval_on_start": [False, True],
    "optim": ["adamw_torch", "adafactor", "sgd"],
}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    every = draw(st.sampled_from([1, 2, 3]))
    return Plan(
        draw(st.sampled_from(sorted(MODELS))),
        tuple(draw(st.lists(st.sampled_from(ACTS), min_size=STEPS, max_size=STEPS))),
        every,
        tuple(draw(st.permutations(range(STEPS)))),
        draw(st.booleans()),
        draw(st.sampled_from(range(every, STEPS, every))),
        tuple((name, draw(st.sampled_from(values))) for name, values in OPTIONS.items()),
    )


class Growing:
    """Grows as a plan says, as far as that can be."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def __call__(self, manager: SeedManager) -> None:
        step = manager.steps
        act = self._plan.acts[step - 1]
        live = [seed for seed in manager.seeds.values() if seed.is_live]
        if act.startswith("germinate"):
            hyper = {"lr": 3e-2} if act.endswith("lr") else None
            slot = MODELS[self._plan.name][1]
            seed = manager.germinate(slot, "mlp", name=f"s{step}", hidden=3, hyper=hyper)
            for parameter in seed.module.parameters():
                nn.init.constant_(parameter, 0.05)
        elif act == "blend" and live:
            manager.blend(live[-1], steps=1)
        elif act == "fossilize" and live and live[-1].stage is Stage.HOLDING:
            manager.fossilize(live[-1])
        elif act == "cull" and live:
            manager.cull(live[0])


class Watching(TrainerCallback):
    """Gives each evaluation the score of its step, and keeps what each checkpoint is of."""

    def __init__(self, plan: Plan, net: fxgraft.Host):
        self._plan, self._net = plan, net
        self._step = 0
        self.saved: dict[int, dict[str, torch.Tensor]] = {}

    def score(self, predictions: Any) -> dict[str, float]:
        return {"score": self._plan.scores[self._step - 1] if self._step else -1.0}

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._step = state.global_step

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.saved[state.global_step] = {n: t.clone() for n, t in self._net.state_dict().items()}


def run(plan: Plan, folder: Path, resume: bool) -> tuple[dict[str, torch.Tensor], list[str], Watching]:
    net = host(plan.name)
    watching = Watching(plan, net)
    found, callback = trainer(
        plan.name,
        folder,
        net,
        Growing(plan),
        also={"compute_metrics": watching.score},
        eval_strategy="steps",
        eval_steps=plan.every,
        save_steps=plan.every,
        load_best_model_at_end=plan.best,
        metric_for_best_model="score",
        greater_is_better=True,
        max_steps=STEPS,
        **dict(plan.options),
    )
    found.add_callback(watching)
    found.train(resume_from_checkpoint=str(folder / f"checkpoint-{plan.resume_at}") if resume else None)
    assert callback.manager is not None
    assert set(callback.manager.seeds) == {p.seed for p in net.structure.placements}
    if plan.best:
        best = max(range(plan.every, STEPS + 1, plan.every), key=lambda step: plan.scores[step - 1])
        assert callback.manager.steps == best
        if best in watching.saved:
            assert_same_bits(dict(net.state_dict()), watching.saved[best], "the best checkpoint")
    assert {region.fallbacks for region in net.regions.values()} == {0}
    told = [f"step {callback.manager.steps}", *map(repr, callback.manager.seeds.values())]
    return {n: t.clone() for n, t in net.state_dict().items()}, told, watching


@given(plans())
@settings(max_examples=settings.default.max_examples if settings.default.max_examples >= 100 else 2)
def test_resumed_is_whole_and_best_is_best(plan: Plan) -> None:
    with tempfile.TemporaryDirectory() as name:
        expected, told, whole = run(plan, Path(name), resume=False)
        found, again, resumed = run(plan, Path(name), resume=True)
    assert again == told
    assert_same_bits(found, expected, "resumed and whole")
    for step, state in resumed.saved.items():
        assert_same_bits(state, whole.saved[step], f"checkpoint {step}")


@given(plans())
@settings(max_examples=settings.default.max_examples if settings.default.max_examples >= 100 else 2)
def test_the_host_of_isolated_seeds_is_trained_as_the_model_is(plan: Plan) -> None:
    isolated = tuple(act if act in ("germinate", "cull") else "nothing" for act in plan.acts)
    plan = Plan(plan.name, isolated, plan.every, plan.scores, False, plan.resume_at, plan.options)
    model = plain(plan.name)
    with tempfile.TemporaryDirectory() as name:
        found, _, _ = run(plan, Path(name) / "host", resume=False)
        options = {"eval_strategy": "steps", "eval_steps": plan.every, **dict(plan.options)}
        trainer(plan.name, Path(name) / "plain", model, max_steps=STEPS, **options)[0].train()
    weights = dict(model.state_dict())
    assert_same_bits({n: found[n] for n in weights}, weights, "trained as the plain model")
