"""Controller -> commands -> manager -> trainer, on real data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fxgraft import SeedManager, Stage
from fxgraft.commands import BLEND, CULL, FOSSILIZE, SEED
from fxgraft.controllers import Controller, Recorder, Replay, read_log
from fxgraft.manager.settings import ENABLED_VARIABLE
from fxgraft.telemetry import Event, JsonLines, Memory
from fxgraft.training import EpochReport, Trainer, TrainingConfig
from tests.harness import assert_same_bits
from tests.integration.digits import CANDIDATES, PACE, Digits, adamw, fresh_host, plain_losses
from tests.side_by_side import SideBySide

EPOCHS = 5


class Loop:
    """One run of the loop, and what it left to see."""

    def __init__(
        self,
        digits: Digits,
        controller: Controller | None = None,
        recorder: Recorder | None = None,
        compiled: bool = False,
        **options: Any,
    ):
        self.digits = digits
        self.memory = Memory()
        host = fresh_host(digits)
        if compiled:
            host.compile(backend="aot_eager", dynamic=False)
        sinks = (self.memory, *options.pop("sinks", ()))
        options = {"metrics_every": 1, "check_every": 10, "strict": True, **options}
        self.trainer = Trainer(
            host,
            adamw(host),
            F.cross_entropy,
            TrainingConfig(epochs=EPOCHS),
            validation=digits.validation,
            controller=controller,
            recorder=recorder,
            sinks=sinks,
            **options,
        )
        self.reports: list[EpochReport] = self.trainer.fit(digits.batches)

    @property
    def losses(self) -> list[float]:
        return self.trainer.losses

    @property
    def manager(self) -> SeedManager:
        return self.trainer.manager

    def series(self, metric: str, seed: str = "") -> list[float]:
        """A metric over the steps at which it was there."""
        found = [event.data[metric].get(seed) for event in self.memory.of_kind("metrics")]
        return [value for value in found if value is not None]


def growth() -> SideBySide:
    return SideBySide(CANDIDATES, PACE)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loop") / "commands.jsonl"


@pytest.fixture(scope="module")
def grown(digits: Digits, log: Path) -> Loop:
    with Recorder(log) as recorder:
        return Loop(digits, growth(), recorder)


@pytest.fixture(scope="module")
def bare(digits: Digits) -> Loop:
    """The trainer with a manager that is never told anything."""
    return Loop(digits)


def test_the_controller_leads_a_seed_through_its_life(grown: Loop, log: Path):
    said = [type(entry.command) for entry in read_log(log) if entry.command is not None]
    assert set(said) >= {SEED, BLEND, FOSSILIZE, CULL}
    assert all(entry.reply is None or entry.reply.accepted for entry in read_log(log))
    fossils = [s for s in grown.manager.seeds.values() if s.stage is Stage.FOSSILIZED]
    assert fossils
    stages = [e.data["stage"] for e in grown.memory.of_kind("seed_stage") if e.seed == fossils[0].name]
    assert stages == ["TRAINING", "BLENDING", "HOLDING", "FOSSILIZED"]


def test_the_output_of_a_seed_changes_the_loss(grown: Loop, bare: Loop):
    began = next(e.step for e in grown.memory.of_kind("blend_config"))
    # Up to the first step that a blended seed was in, the host does not feel any of it.
    assert_same_bits(grown.losses[: began + 1], bare.losses[: began + 1], "losses before the blend")
    assert grown.losses[began + 1] != bare.losses[began + 1]
    measured = [e.data["contribution"] for e in grown.memory.of_kind("contribution")]
    assert max(measured) > 0.01
    assert grown.reports[-1].validation < bare.reports[-1].validation


def test_the_metrics_of_a_seed_arrive(grown: Loop):
    seed = next(s.name for s in grown.manager.seeds.values() if s.stage is Stage.FOSSILIZED)
    alphas = grown.series("fxgraft/seed/alpha", seed)
    ramp = alphas[: alphas.index(1.0) + 1]
    assert ramp[0] == 0.0
    assert ramp == sorted(ramp)
    assert len(set(ramp)) == PACE.blend + 1
    stages = grown.series("fxgraft/seed/stage", seed)
    assert stages == sorted(stages)
    assert {Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED} == {
        list(Stage)[int(index)] for index in stages
    }
    assert max(grown.series("fxgraft/seed/alpha_steps", seed)) == PACE.blend
    assert max(grown.series("fxgraft/seeds/active")) == len(CANDIDATES)
    norms = grown.series("fxgraft/seed/gradient_norm", seed)
    assert norms.index(0.0) == PACE.isolate  # the first step of the blend: it ran at alpha 0
    assert norms.count(0.0) == 1
    assert min(grown.series("fxgraft/seed/host_gradient_norm", seed)) > 0
    assert grown.series("fxgraft/seed/contribution", seed)[-1] > 0


def test_isolation_was_looked_at_and_never_violated(grown: Loop):
    assert grown.manager.monitor.checks >= 4
    assert grown.manager.monitor.violations == 0
    assert set(grown.series("fxgraft/isolation/violations")) == {0.0}
    assert not grown.memory.of_kind("violation_recorded")


def test_a_run_without_seeds_reports_what_it_always_did(digits: Digits, bare: Loop, grown: Loop):
    def events(loop: Loop) -> list[Event]:
        return [e for e in loop.memory.events if e.kind not in ("run_began", "steps", "metrics")]

    assert events(bare) == []
    assert events(grown) != []
    disabled = Loop(digits, enabled=False)
    assert disabled.memory.of_kind("metrics") == bare.memory.of_kind("metrics")
    assert events(disabled) == []
    assert disabled.losses == bare.losses
    metrics = bare.memory.of_kind("metrics")
    assert len(metrics) == len(bare.losses)
    assert set(metrics[0].data) == set(grown.memory.of_kind("metrics")[0].data)
    assert all(
        not values
        for name, values in metrics[-1].data.items()
        if name.startswith(("fxgraft/seed/", "kasmina.seed."))
    )
    assert set(bare.series("fxgraft/seeds/active")) == {0.0}


@pytest.mark.parametrize("how", ["variable", "argument"])
def test_disabled_seeds_give_the_losses_of_plain_pytorch(
    digits: Digits, monkeypatch: pytest.MonkeyPatch, how: str
):
    options = {"enabled": False} if how == "argument" else {}
    monkeypatch.setenv(ENABLED_VARIABLE, "0" if how == "variable" else "1")
    loop = Loop(digits, growth(), **options)
    assert_same_bits(loop.losses, plain_losses(digits, EPOCHS), "losses")
    operations = loop.memory.of_kind("seed_operation")
    assert Counter((e.data["operation"], e.data["disabled"]) for e in operations) == {
        ("germinate", True): len(CANDIDATES)
    }
    assert not loop.memory.of_kind("seed_stage")
    assert {s.stage for s in loop.manager.seeds.values()} == {Stage.DORMANT}
    assert not list(loop.manager.seed_parameters())


def test_a_run_without_commands_gives_the_losses_of_plain_pytorch(digits: Digits, bare: Loop):
    assert_same_bits(bare.losses, plain_losses(digits, EPOCHS), "losses")


def test_the_log_makes_the_run_again(digits: Digits, grown: Loop, log: Path, tmp_path: Path):
    with JsonLines(tmp_path / "events") as sink:
        again = Loop(digits, Replay.from_file(log), sinks=(sink,))
    assert_same_bits(again.losses, grown.losses, "losses")
    assert_same_bits(dict(again.trainer.model.state_dict()), dict(grown.trainer.model.state_dict()))
    assert again.reports == grown.reports
    lines = (tmp_path / "events").read_text().splitlines()
    assert len(lines) == len(again.memory.events)


def test_a_compiled_host_is_led_in_the_same_way(
    digits: Digits, grown: Loop, log: Path, tmp_path: Path, fresh_compiler: None
):
    with Recorder(tmp_path / "log") as recorder:
        compiled = Loop(digits, growth(), recorder, compiled=True)
    assert_same_bits(compiled.losses, grown.losses, "losses under aot_eager")
    assert (tmp_path / "log").read_text() == log.read_text()
    assert torch._dynamo.utils.counters["graph_break"] == {}
