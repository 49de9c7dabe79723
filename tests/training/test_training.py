"""The example training loop: it is a plain loop to the bit, and each thing it carries does its work."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.commands import SEED
from fxgraft.controllers import Recorder
from fxgraft.errors import CheckpointError
from fxgraft.telemetry import Memory
from fxgraft.training import (
    Checkpoints,
    DivergedError,
    Trainer,
    TrainingConfig,
    Watchdog,
    WatchdogConfig,
    clip_per_owner,
    evaluate,
    rewind,
)
from tests.harness import assert_same_bits, frozen, snapshot, traced_once
from tests.networks import NormNet
from tests.seed_modules import Scale
from tests.side_by_side import Pace, SideBySide

Batch = tuple[Tensor, Tensor]


def batches(epoch: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(10):
        x = torch.randn(8, 4, generator=generator)
        yield x, x.abs().argmax(1) % 3


def held_out() -> list[Batch]:
    return list(batches(1000))[:2]


@traced_once
def traced() -> fxgraft.Host:
    return fxgraft.trace(NormNet(4, 6, 3), (torch.randn(8, 4),))


def fresh(kind: str = "adamw") -> tuple[fxgraft.Host, torch.optim.Optimizer]:
    host = traced()
    torch.manual_seed(1)
    kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return host, kinds[kind](host.parameters(), 1e-2)


def cosine(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)


def trainer(config: TrainingConfig | None = None, **options: Any) -> Trainer:
    host, optimizer = fresh()
    options.setdefault("check_every", 0)
    return Trainer(
        host,
        optimizer,
        F.cross_entropy,
        config,
        schedulers=[cosine(optimizer)],
        validation=held_out,
        **options,
    )


CANDIDATES = [
    SEED(slot="norm", blueprint="mlp", config={"hidden": 4}), SEED(slot="head", blueprint="low_rank"),
]  # fmt: skip


def controller() -> SideBySide:
    return SideBySide(CANDIDATES, Pace(begin=4, isolate=4, blend=4, hold=2, rounds=3))


def plain(epochs: int, clip: float | None = None, autocast: torch.dtype | None = None) -> list[float]:
    """The same training as a plain PyTorch loop."""
    torch.manual_seed(0)
    model = NormNet(4, 6, 3)
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    scheduler = cosine(optimizer)
    losses = []
    for epoch in range(epochs):
        for x, y in batches(epoch):
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
    return losses


# A plain loop


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_without_seeds_it_is_a_plain_loop_to_the_bit(clip: float | None, autocast: torch.dtype | None):
    ours = trainer(TrainingConfig(epochs=2, clip_norm=clip, autocast=autocast))
    reports = ours.fit(batches)
    assert ours.losses == plain(2, clip, autocast)
    assert [report.steps for report in reports] == [10, 10]
    assert reports[1].loss == pytest.approx(sum(ours.losses[10:]) / 10)


def test_isolated_seeds_are_not_felt_clipped_and_in_bfloat16():
    ours = trainer(TrainingConfig(epochs=2, clip_norm=0.1, autocast=torch.bfloat16))
    ours.manager.germinate("norm", "mlp")
    ours.manager.germinate("head", Scale())
    ours.fit(batches)
    assert ours.losses == plain(2, 0.1, torch.bfloat16)
    assert {seed.trained_steps for seed in ours.manager.seeds.values()} == {20}


def test_several_optimizers_and_schedulers_are_stepped():
    host, _ = fresh()
    parameters = list(host.parameters())
    optimizers = [torch.optim.SGD(parameters[:2], 0.1), torch.optim.AdamW(parameters[2:], 1e-2)]
    before = frozen(dict(host.named_parameters()))
    schedulers = [cosine(optimizer) for optimizer in optimizers]
    Trainer(host, optimizers, F.cross_entropy, schedulers=schedulers).fit(batches)
    weights = {n: p for n, p in host.named_parameters() if n.endswith("weight")}
    assert all(not torch.equal(p, before[name]) for name, p in weights.items())
    assert [scheduler.last_epoch for scheduler in schedulers] == [10, 10]


def test_validation_is_in_eval_mode_and_leaves_no_trace():
    ours = trainer()
    ours.model.train()
    before = frozen(dict(ours.model.state_dict()))
    first, second = ours.validate(), ours.validate()
    assert first == second
    assert ours.model.training
    assert_same_bits(frozen(dict(ours.model.state_dict())), before)
    ours.model.eval()
    assert evaluate(ours.model, held_out(), F.cross_entropy) == first
    assert not ours.model.training
    assert math.isnan(evaluate(ours.model, [], F.cross_entropy))


def test_a_controller_needs_something_to_measure_on():
    host, optimizer = fresh()
    with pytest.raises(ValueError, match="validation"):
        Trainer(host, optimizer, F.cross_entropy, controller=controller())
    with pytest.raises(ValueError, match="validation"):
        Trainer(host, optimizer, F.cross_entropy, grow={"budget": 2.0})
    ours = Trainer(host, optimizer, F.cross_entropy, grow={"evaluate": lambda: host(torch.ones(2, 4)).mean()})
    assert ours.growth is not None


# Clipping and loss scaling


def test_each_owner_is_clipped_by_its_own_norm():
    host, optimizer = fresh()
    manager = SeedManager(host, optimizer)
    manager.germinate("head", Scale(), name="loud", objective="straight_through")
    manager.germinate("norm", Scale(), name="quiet")
    for number, (_, parameter) in enumerate(host.named_parameters()):
        parameter.grad = torch.full_like(parameter, 0.5 + number)
    for parameter in manager.registry.parameters("loud"):
        parameter.grad = torch.full_like(parameter, 1e6)
    for parameter in manager.registry.parameters("quiet"):
        parameter.grad = torch.full_like(parameter, 1e-3)
    twin = [torch.nn.Parameter(p.detach().clone()) for p in host.host_parameters()]
    for ours, theirs in zip(twin, host.host_parameters(), strict=True):
        ours.grad = None if theirs.grad is None else theirs.grad.clone()
    clip_grad_norm_(twin, 1.0)
    clip_per_owner(manager, 1.0)
    assert_same_bits([p.grad for p in host.host_parameters()], [p.grad for p in twin])
    loud = torch.stack([p.grad for p in manager.registry.parameters("loud") if p.grad is not None])
    assert loud.norm().item() == pytest.approx(1.0)
    assert [p.grad.item() for p in manager.registry.parameters("quiet") if p.grad is not None] == [
        pytest.approx(1e-3)
    ] * 2


def test_half_precision_scales_the_loss_and_skips_an_overflow():
    ours = trainer(TrainingConfig(autocast=torch.float16, clip_norm=1.0))
    scales, weights = [], []
    ours._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**21)
    for x, y in batches(0):
        ours.step(x, y)
        scales.append(ours._scaler.get_scale())
        weights.append(ours.model.first.weight.detach().clone())
    assert scales[0] < 2.0**21
    assert torch.equal(weights[0], weights[1])  # both overflowed
    assert not torch.equal(weights[-1], weights[-2])
    assert ours.schedulers[0].last_epoch < 10
    assert all(map(math.isfinite, ours.losses))


def test_an_overflow_in_a_seed_does_not_skip_the_step_of_the_host():
    without = trainer(TrainingConfig(autocast=torch.float16))
    without.fit(batches)
    with_seed = trainer(TrainingConfig(autocast=torch.float16))
    with_seed.manager.germinate("norm", Scale(), name="huge")
    for parameter in with_seed.manager.registry.parameters("huge"):
        parameter.register_hook(lambda grad: grad * math.inf)
    with_seed.fit(batches)
    assert with_seed.losses == without.losses
    assert with_seed._scaler.get_scale() == without._scaler.get_scale()


# Checkpoints


def test_checkpoints_are_named_by_step_and_pruned(tmp_path: Path):
    config = TrainingConfig(epochs=2, folder=tmp_path / "run", checkpoint_every=4, keep=2)
    trainer(config).fit(batches)
    assert [f.name for f in Checkpoints(tmp_path / "run").latest_first()] == [
        "step-000000020.fxgraft",
        "step-000000016.fxgraft",
    ]


@pytest.mark.parametrize("killed_after", [4, 11, 13, 17, 23, 26])
def test_a_killed_run_goes_on_bit_for_bit_controller_and_all(tmp_path: Path, killed_after: int):
    class KilledError(Exception):
        pass

    def killing(epoch: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches(epoch)):
            if 10 * epoch + number == killed_after:
                raise KilledError
            yield batch

    whole = trainer(TrainingConfig(epochs=3), controller=controller())
    reports = whole.fit(batches)
    config = TrainingConfig(epochs=3, folder=tmp_path, checkpoint_every=3)
    killed = trainer(config, controller=controller())
    with pytest.raises(KilledError):
        killed.fit(killing)
    torch.manual_seed(99)
    resumed = trainer(config, controller=controller(), resume=True)
    kept = resumed.progress.step
    assert kept == killed_after // 3 * 3
    assert resumed.fit(batches)[-1].validation == reports[-1].validation
    assert killed.losses[:kept] + resumed.losses == whole.losses
    assert_same_bits(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    assert repr(resumed.manager.seeds) == repr(whole.manager.seeds)
    assert whole.manager.seeds


def test_the_loss_scale_is_resumed(tmp_path: Path):
    config = TrainingConfig(epochs=1, autocast=torch.float16, folder=tmp_path, checkpoint_every=10)
    first = trainer(config)
    first._scaler.load_state_dict({**first._scaler.state_dict(), "scale": 64.0, "growth_interval": 3})
    first.fit(batches)
    assert first._scaler.get_scale() == 512.0
    second = trainer(config, resume=True)
    assert second._scaler.state_dict() == first._scaler.state_dict()
    assert [report.steps for report in second.fit(batches)] == [0]  # nothing left to train


def test_a_damaged_checkpoint_is_refused_at_a_resume(tmp_path: Path):
    config = TrainingConfig(folder=tmp_path, checkpoint_every=5)
    trainer(config).fit(batches)
    newest = Checkpoints(tmp_path).latest_first()[0]
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.raises(CheckpointError):
        trainer(config, resume=True)


# Rewinding a live run


def test_rewinding_brings_live_objects_back_fossils_and_all(tmp_path: Path):
    ours = trainer(TrainingConfig())
    manager = ours.manager
    manager.germinate("norm", "mlp", name="fossil")
    manager.blend("fossil", steps=1)
    ours.step(*next(batches(5)))
    manager.fossilize("fossil")
    manager.germinate("head", "low_rank", name="live")
    manager.blend("live", steps=10)
    for x, y in batches(6):
        ours.step(x, y)
    manager.blend("live", to=0.25, steps=10)
    for x, y in list(batches(7))[:4]:
        ours.step(x, y)
    manager.save(tmp_path / "good")
    alpha = manager.seeds["live"].alpha
    random_state = torch.get_rng_state()
    following = [ours.step(x, y) for x, y in batches(8)]
    manager.germinate("first", "mlp", name="late")
    manager.fossilize("live")
    ours.step(*next(batches(9)))

    ours.manager = rewind(manager, tmp_path / "good", ours.model, ours.optimizers, check_every=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    seeds = ours.manager.seeds
    assert {name: seed.stage for name, seed in seeds.items()} == {
        "fossil": Stage.FOSSILIZED,
        "live": Stage.BLENDING,
    }
    assert seeds["live"].alpha == alpha
    grouped = [p for group in ours.optimizers[0].param_groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in ours.model.parameters()}
    assert len(grouped) == len(set(map(id, grouped)))
    assert set(map(id, ours.optimizers[0].state)) <= set(map(id, grouped))
    assert [ours.step(x, y) for x, y in batches(8)] == following


# The watchdog


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_one_loss_that_is_no_number_is_a_divergence(loss: float):
    assert str(loss) in (Watchdog().judge(loss) or "")


def test_far_above_the_median_must_last():
    watchdog = Watchdog(WatchdogConfig(least=5, factor=4.0, patience=2))
    assert [watchdog.judge(1.0) for _ in range(6)] == [None] * 6
    assert watchdog.judge(5.1) is None
    assert watchdog.judge(4.9) is None
    assert watchdog.judge(5.1) is None
    assert "in a row" in (watchdog.judge(6.0) or "")


def test_a_negative_loss_has_a_median_as_well():
    watchdog = Watchdog(WatchdogConfig(least=5, factor=2.0, patience=1))
    assert [watchdog.judge(-1.0) for _ in range(6)] == [None] * 6
    assert watchdog.judge(0.9) is None
    assert watchdog.judge(1.1) is not None


def test_a_young_run_may_jump():
    watchdog = Watchdog(WatchdogConfig(least=10, patience=1))
    assert [watchdog.judge(loss) for loss in (1.0, 100.0, 1e6)] == [None] * 3


WATCH = WatchdogConfig(window=8, least=3, patience=2, confirm=2, attempts=2)


def poisoned(epoch: int, at: tuple[int, ...] = (17,), value: float = math.nan) -> Iterator[Batch]:
    for number, (x, y) in enumerate(batches(epoch)):
        yield (x * value if 10 * epoch + number in at else x), y


def test_a_divergence_rolls_back_to_the_last_good_state_and_goes_on(tmp_path: Path):
    config = TrainingConfig(epochs=3, folder=tmp_path, checkpoint_every=3, watchdog=WATCH)
    memory = Memory()
    ours = trainer(config, sinks=(memory,))
    ours.manager.germinate("norm", "mlp", name="s")
    seen: list[dict[str, Any]] = []
    save = ours._checkpoints.save
    ours._checkpoints.save = lambda *a: (seen.append(frozen(dict(ours.model.state_dict()))), save(*a))[1]
    roll_back = ours._roll_back
    restored: list[dict[str, Any]] = []
    ours._roll_back = lambda why: (roll_back(why), restored.append(frozen(dict(ours.model.state_dict()))))[0]
    ours.fit(poisoned)
    assert [step for step, _ in ours.rollbacks] == [18]
    assert_same_bits(restored[0], seen[4])  # of step 15: that of 18 would be too late
    assert ours.progress.step == 30
    assert all(map(math.isfinite, ours.losses[18:]))
    assert all(torch.isfinite(t).all() for t in ours.model.state_dict().values())
    assert ours.manager.seeds["s"].stage is Stage.TRAINING
    assert len(memory.of_kind("rollback")) == 1
    assert_same_bits(ours.losses[:17], trainer_losses(17))


def trainer_losses(steps: int) -> list[float]:
    ours = trainer(TrainingConfig(epochs=3))
    ours.manager.germinate("norm", "mlp", name="s")
    ours.fit(batches)
    return ours.losses[:steps]


def test_if_that_does_not_help_the_seeds_are_culled_then_it_gives_up(tmp_path: Path):
    config = TrainingConfig(epochs=3, folder=tmp_path, checkpoint_every=3, watchdog=WATCH)
    ours = trainer(config)
    ours.manager.germinate("norm", "mlp", name="s")
    live: list[list[str]] = []
    roll_back = ours._roll_back
    ours._roll_back = lambda why: (roll_back(why), live.append(list(ours.manager.seeds)))[0]
    with pytest.raises(DivergedError, match="2 rollbacks"):
        ours.fit(lambda epoch: poisoned(epoch, at=(17, 19, 21, 23)))
    assert live == [["s"], []]
    assert len(ours.rollbacks) == 3


def test_without_checkpoints_the_seeds_are_culled_at_once():
    """A seed that blows the host up at alpha 1 is taken out, and the host is well again."""
    ours = trainer(TrainingConfig(epochs=3, watchdog=WATCH))
    ours.optimizers[0].param_groups[0]["lr"] = 1e-3
    ours.manager.germinate("head", Blower(), name="s")
    ours.manager.blend("s", steps=1)
    reports = ours.fit(batches)
    assert ours.rollbacks
    assert "s" not in ours.manager.seeds
    assert math.isfinite(reports[-1].validation or math.nan)


class Blower(nn.Module):
    """Finite until it has been called often."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return (self.weight + 1e3 * (self.calls > 12)) * x.detach().abs()


def test_a_damaged_good_state_gives_way_to_an_older_one(tmp_path: Path):
    config = TrainingConfig(epochs=2, folder=tmp_path, checkpoint_every=3, watchdog=WATCH)
    ours = trainer(config)
    save = ours._checkpoints.save

    def saving(manager: SeedManager, step: int) -> Path:
        path = save(manager, step)
        if step == 15:
            path.write_bytes(b"damaged")
        return path

    ours._checkpoints.save = saving
    ours.fit(poisoned)
    assert [f.name[-10:-8] for f in Checkpoints(tmp_path).latest_first()] == ["12", "09"]
    assert math.isfinite(ours.losses[-1])


def test_a_controller_goes_on_after_a_rollback(tmp_path: Path):
    folder = tmp_path / "run"
    config = TrainingConfig(epochs=6, folder=folder, checkpoint_every=3, watchdog=WATCH)
    with Recorder(tmp_path / "log") as recorder:
        ours = trainer(config, controller=controller(), recorder=recorder)
        ours.fit(poisoned)
    assert len(ours.rollbacks) == 1
    assert all(map(math.isfinite, ours.losses[18:]))
    steps = [
        int(line.split('"step": ')[1].split(",")[0]) for line in (tmp_path / "log").read_text().splitlines()
    ]
    assert max(steps) > 18


GROW = {
    "candidates": CANDIDATES, "when": [0.1, 0.5], "total_steps": 60, "steps": 4, "blend": 4, "hold": 3,
    "budget": 9.0, "gain": -9.0,
}  # fmt: skip


def test_automatic_growth_goes_on_after_a_rollback(tmp_path: Path):
    config = TrainingConfig(epochs=6, folder=tmp_path, checkpoint_every=3, watchdog=WATCH)
    ours = trainer(config, grow=GROW)
    first = ours.growth
    ours.fit(poisoned)
    assert len(ours.rollbacks) == 1
    assert ours.growth is not None
    assert ours.growth is not first
    assert ours.growth.done
    explored = [entry["step"] for entry in ours.growth.history if entry["what"] == "exploring"]
    assert min(explored) < 18 < max(explored), ours.growth


@pytest.mark.parametrize("killed_after", [5, 8, 13, 34])
def test_a_killed_run_that_grows_automatically_goes_on_bit_for_bit(tmp_path: Path, killed_after: int):
    whole = trainer(TrainingConfig(epochs=6), grow=GROW)
    whole.fit(batches)
    config = TrainingConfig(epochs=6, folder=tmp_path, checkpoint_every=1)
    killed = trainer(config, grow=GROW)
    for i, (x, y) in enumerate(batch for epoch in range(6) for batch in batches(epoch)):
        if i % 10 == 0:
            killed.progress.epoch, killed.progress.batch = i // 10, 0
        if i == killed_after:
            break
        killed.step(x, y)
    resumed = trainer(config, grow=GROW, resume=True)
    resumed.fit(batches)
    assert killed.losses + resumed.losses == whole.losses
    assert resumed.growth is not None
    assert whole.growth is not None
    assert resumed.growth.history == whole.growth.history
    # What it cost is counted on from the checkpoint; seconds are those since then.
    ours, theirs = ({**growth.cost, "seconds": None} for growth in (resumed.growth, whole.growth))
    assert ours == theirs


def test_snapshots_agree_after_a_rewind_to_a_state_without_seeds(tmp_path: Path):
    ours = trainer(TrainingConfig())
    for x, y in batches(0):
        ours.step(x, y)
    ours.manager.save(tmp_path / "bare")
    batch = next(batches(3))[0]
    before = snapshot(ours.model, batch, ours.optimizers, ours.schedulers)
    ours.manager.germinate("norm", "mlp")
    for x, y in batches(1):
        ours.step(x, y)
    ours.manager = rewind(ours.manager, tmp_path / "bare", ours.model, ours.optimizers, check_every=0)
    after = snapshot(ours.model, batch, ours.optimizers, ours.schedulers)
    for record in (before, after):
        record.pop("grads")
    assert_same_bits(after, before)


def test_a_host_of_which_nothing_is_trained() -> None:
    frozen_layer = nn.Linear(4, 3)
    for name, parameter in list(frozen_layer.named_parameters()):
        delattr(frozen_layer, name)
        frozen_layer.register_buffer(name, parameter.detach())  # as weights that are stored quantised
    host = fxgraft.trace(nn.Sequential(frozen_layer, nn.ReLU()), (torch.randn(8, 4),))
    only = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    run = Trainer(host, only, F.cross_entropy)
    seed = run.manager.germinate("0", "mlp", hidden=4, isolated=False)
    run.manager.blend(seed, to=1.0, steps=1)
    before = frozen(seed.module.state_dict())
    for x, y in batches(0):
        run.step(x, y)
    assert any(not torch.equal(t, before[n]) for n, t in seed.module.state_dict().items())


# What an earlier run has left, and what a resumed one remembers


def test_the_checkpoints_of_an_earlier_run_are_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = TrainingConfig(epochs=2, folder=tmp_path, checkpoint_every=5)
    trainer(config).fit(batches)
    left = {file.name: file.read_bytes() for file in tmp_path.glob("step-*")}
    assert not caplog.records
    again = trainer(TrainingConfig(folder=tmp_path, checkpoint_every=3))
    (record,) = caplog.records
    assert "checkpoints of an earlier run, up to step-000000020.fxgraft" in record.getMessage()
    assert {file.name: file.read_bytes() for file in (tmp_path / "earlier-1").iterdir()} == left
    again.fit(batches)
    assert [f.name[-10:-8] for f in Checkpoints(tmp_path).latest_first()] == ["09", "06", "03"]
    caplog.clear()
    resumed = trainer(TrainingConfig(folder=tmp_path), resume=True)
    assert resumed.progress.step == 9
    assert not caplog.records
    trainer(config)
    assert (tmp_path / "earlier-2").is_dir()


def test_a_resumed_watchdog_has_seen_what_the_run_has_seen(tmp_path: Path):
    watch = WatchdogConfig(window=50, least=10, factor=1.0, patience=2, confirm=1)
    x, y = next(batches(0))

    def drive(ours: Trainer, first: int, last: int) -> None:
        for i in range(first, last):
            ours.step(x * (1000.0 if i in (13, 14) else 1.0), y)

    def make(name: str, resume: bool = False) -> Trainer:
        torch.manual_seed(0)
        host = fxgraft.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (x,))
        config = TrainingConfig(folder=tmp_path / name, checkpoint_every=6, watchdog=watch)
        optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
        return Trainer(host, optimizer, F.cross_entropy, config, resume=resume)

    whole = make("whole")
    drive(whole, 0, 18)
    assert whole.rollbacks, "or this test says nothing"
    drive(make("parts"), 0, 12)
    resumed = make("parts", resume=True)
    drive(resumed, 12, 18)
    assert resumed.rollbacks == whole.rollbacks
    assert_same_bits(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))


def test_the_rollbacks_in_a_row_are_counted_over_a_resume():
    first, second = Watchdog(WatchdogConfig(window=10)), Watchdog(WatchdogConfig(window=10))
    assert [first.rolls_back(5), first.rolls_back(9)] == [1, 2]
    second.load_state_dict(first.state_dict())
    assert [second.rolls_back(12), second.rolls_back(30)] == [3, 1]
