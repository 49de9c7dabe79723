"""The acceptance criteria of WP-101, the source document: one test each, by its words.

Each fails when the feature behind it is broken: it compares with what is to be seen without it.
"""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.commands import SEED
from fxgraft.controllers import Controller
from fxgraft.errors import IsolationError
from fxgraft.manager.settings import ENABLED_VARIABLE
from fxgraft.telemetry import METRICS, Memory
from fxgraft.training import Trainer, TrainingConfig
from tests.harness import assert_same_bits, frozen, snapshot
from tests.integration.digits import (
    BATCH,
    CANDIDATES,
    Digits,
    adamw,
    fresh_host,
    fresh_model,
    plain_losses,
)
from tests.seed_modules import Scale
from tests.side_by_side import SideBySide

DOCS = Path(__file__).parents[2] / "docs"
PACKAGE = Path(fxgraft.__file__).parent


def train(
    host: nn.Module,
    optimizer: torch.optim.Optimizer,
    manager: SeedManager | None,
    digits: Digits,
    epoch: int = 0,
) -> list[float]:
    """An epoch of a plain loop."""
    losses = []
    for images, labels in digits.batches(epoch):
        optimizer.zero_grad()
        loss = F.cross_entropy(host(images), labels)
        loss.backward()
        optimizer.step()
        if manager is not None:
            manager.step(loss)
        losses.append(loss.item())
    return losses


class Recording(Scale):
    """Remembers what it was given and what it returned."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach().clone()
        self.made = super().forward(x)
        return self.made


def test_a_seed_command_splices_the_blueprint_into_the_forward_path(digits: Digits):
    """Criterion 1: the blueprint's module is instantiated and spliced in at its slot."""
    host = fresh_host(digits).eval()
    manager = SeedManager(host, adamw(host), check_every=0)
    images = digits.images[:BATCH]
    without, code = host(images), host.regions[""].code

    reply = manager.handle({"type": "SEED", "slot": "act", "blueprint": "mlp", "config": {"hidden": 5}})
    assert reply.accepted
    module = manager.seeds[reply.seed].module
    assert [p.shape[0] for p in module.parameters() if p.dim() == 2] == [5, 6]
    assert host.get_submodule(f"_seeds.{reply.seed}.module") is module
    assert host.regions[""].code != code
    assert_same_bits(host(images), without, "the output of an isolated seed's host")

    spy = Recording()
    manager.germinate("body", spy, name="spy")
    manager.blend("spy", steps=1)
    manager.step()
    with_seed = host(images)
    body = host.get_submodule("body")(images)
    assert_same_bits(spy.seen, body.detach(), "what the seed was given")
    by_hand = host.head(torch.relu(body + spy.made))
    assert torch.equal(with_seed, by_hand)
    assert not torch.equal(with_seed, without)


def test_seed_parameters_are_registered_and_updated_and_no_gradient_leaks_to_the_host(digits: Digits):
    """Criterion 2: registry, optimizer updates, and isolation under the monitor's eyes."""
    host = fresh_host(digits)
    optimizer = adamw(host)
    memory = Memory()
    manager = SeedManager(host, optimizer, sinks=(memory,), check_every=5, strict=True)
    manager.handle(SEED(slot="act", blueprint="mlp", name="s"))
    owned = manager.registry.parameters("s")
    assert {id(p) for p in owned} == {id(p) for p in manager.seeds["s"].module.parameters()}
    groups = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert all(groups.count(id(p)) == 1 for p in owned)
    before = frozen([p.detach() for p in owned])

    losses = train(host, optimizer, manager, digits)
    assert all(not torch.equal(p, b) for p, b in zip(owned, before, strict=True))
    assert all(p in optimizer.state for p in owned)
    # Nothing leaks: the host is, in every bit, the one that was trained without a seed.
    alone = fresh_model()
    torch.manual_seed(0)
    assert losses == train(alone, adamw(alone), None, digits)
    assert_same_bits(
        {n: t for n, t in host.state_dict().items() if "_seeds" not in n}, dict(alone.state_dict())
    )
    assert manager.monitor.checks >= 3
    assert manager.monitor.violations == 0


def test_a_leak_is_reported_and_stops_a_strict_run(digits: Digits):
    """Criterion 2, the other half: the monitor finds what it is there to find."""

    class Sharing(nn.Module):
        """Feels a parameter of the host's that it keeps out of sight of the registry."""

        def __init__(self, borrowed: nn.Parameter):
            super().__init__()
            self.own = nn.Linear(6, 6)
            self.borrowed = [borrowed]

        def forward(self, x: Tensor) -> Tensor:
            return self.own(x) + self.borrowed[0].sum()

    for strict in (False, True):
        host = fresh_host(digits)
        memory = Memory()
        manager = SeedManager(host, adamw(host), sinks=(memory,), strict=strict, check_every=1)
        manager.germinate("act", Sharing(host.head.weight), name="leak", objective="straight_through")
        if strict:
            with pytest.raises(IsolationError, match=r"head\.weight"):
                train(host, adamw(host), manager, digits)
        else:
            train(host, adamw(host), manager, digits)
            found = memory.of_kind("violation_recorded")
            assert {e.data["name"] for e in found} >= {"head.weight"}
            assert all(e.data["magnitude"] > 0 for e in found if e.data["name"] == "head.weight")
            assert manager.metrics()["kasmina.seed.isolation_violations"]["leak"] == len(found)


def test_seed_blend_cull_contributes_blends_to_its_target_and_is_removed_cleanly(digits: Digits):
    """Criterion 3: the lifecycle SEED -> BLEND -> CULL on a real model."""
    host = fresh_host(digits)
    optimizer = adamw(host)
    manager = SeedManager(host, optimizer, check_every=0)
    images, labels = digits.images[:BATCH], digits.labels[:BATCH]
    train(host, optimizer, manager, digits)
    bare = snapshot(host, images, [optimizer])

    assert manager.handle({"type": "SEED", "slot": "act", "blueprint": "mlp", "name": "s"})
    train(host, optimizer, manager, digits, 1)
    assert manager.handle({"type": "BLEND", "seed": "s", "to": 0.75, "steps": 10, "schedule": "linear"})
    alphas = []
    for _ in range(12):
        manager.step()
        alphas.append(manager.seeds["s"].alpha)
    assert alphas == pytest.approx([min(0.075 * i, 0.75) for i in range(1, 13)])
    assert alphas[-1] == 0.75  # on the target, not near it
    assert manager.seeds["s"].stage is Stage.HOLDING

    host.eval()
    with_seed = F.cross_entropy(host(images), labels).item()
    with manager.at_alpha("s", 0.0):
        without_seed = F.cross_entropy(host(images), labels).item()
    assert with_seed != without_seed
    host.train()
    optimizer.zero_grad()
    F.cross_entropy(host(images), labels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in manager.registry.parameters("s"))
    optimizer.zero_grad()

    refs = [weakref.ref(manager.seeds["s"].module), *map(weakref.ref, manager.registry.parameters("s"))]
    assert manager.handle({"type": "CULL", "seed": "s"})
    gc.collect()
    assert all(ref() is None for ref in refs)
    after = snapshot(host, images, [optimizer])
    for part in ("graphs", "code", "parameters", "modules", "hooks", "parameter hooks", "slots", "installed"):
        assert after[part] == bare[part], part
    groups = [[g["ids"] for g in s["optimizers"][0]["groups"]] for s in (after, bare)]
    assert groups[0] == groups[1]
    assert set(after["optimizers"][0]["state"]) == set(bare["optimizers"][0]["state"])
    assert list(after["state"]) == list(bare["state"])


def test_commands_reach_seeds_that_run_in_training_and_telemetry_does_not_regress(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
):
    """Criterion 4: controller -> manager while the trainer trains; and without seeds, as ever."""

    def run(controller: Controller | None) -> tuple[Trainer, Memory]:
        host, memory = fresh_host(digits), Memory()
        trainer = Trainer(
            host, adamw(host), F.cross_entropy, TrainingConfig(epochs=3), validation=digits.validation,
            controller=controller, sinks=(memory,), metrics_every=1, strict=True,
        )  # fmt: skip
        trainer.fit(digits.batches)
        return trainer, memory

    grown, seen = run(SideBySide(CANDIDATES))
    bare, silent = run(None)
    assert bare.losses == plain_losses(digits, 3)
    assert grown.losses != bare.losses
    assert {"seed_stage", "blend_config", "gate_event", "metrics"} <= {e.kind for e in seen.events}
    assert any(0 < a < 1 for e in seen.of_kind("metrics") for a in e.data["kasmina.seed.alpha"].values())
    assert grown.manager.metrics()["kasmina.isolation.violations"] == {"": 0.0}

    assert {e.kind for e in silent.events} == {"run_began", "steps", "metrics"}
    monkeypatch.setenv(ENABLED_VARIABLE, "0")
    disabled, recorded = run(SideBySide(CANDIDATES))
    assert disabled.losses == bare.losses
    assert {e.kind for e in recorded.events} == {"run_began", "steps", "metrics", "seed_operation", "command"}
    active = [e.data["kasmina.seeds.active"] for e in recorded.of_kind("metrics")]
    assert active == [e.data["kasmina.seeds.active"] for e in silent.of_kind("metrics")]


def test_the_documents_say_what_telemetry_to_expect_and_how_to_roll_back():
    """Criterion 5: telemetry.md has every metric and event, the runbook every way back."""
    telemetry, runbook = (
        (DOCS / name).read_text(encoding="utf-8") for name in ("telemetry.md", "runbook.md")
    )
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    events = set(re.findall(r"\bemit\(\s*\"(\w+)\"", source))
    assert events >= {"seed_stage", "seed_operation", "blend_config", "gate_event", "rollback"}
    assert [name for name in [*METRICS, *sorted(events)] if f"| `{name}` |" not in telemetry] == []
    assert [w for w in (ENABLED_VARIABLE, "enabled=False", "cull_all()", "rewind") if w not in runbook] == []
