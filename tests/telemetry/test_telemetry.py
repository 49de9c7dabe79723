"""Events, metrics and sinks: complete, right, and never felt by the training."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import fxgraft
from fxgraft import SeedManager
from fxgraft.telemetry import METRICS, Event, JsonLines, Logging, Memory, TensorBoard
from tests.harness import traced_plan, train
from tests.lifecycle.test_isolation_monitor import InPlace
from tests.seed_modules import Scale
from tests.strategies import Plan

PLAN = Plan(("linear", "batch_norm", "dropout_module"))
SLOT = "body.linear0"
ROOT = Path(__file__).parents[2]


def live(*sinks: Any, **options: Any) -> tuple[fxgraft.Host, Any, SeedManager]:
    """A whole life on a host: every event happens in it."""
    torch.manual_seed(0)
    host = traced_plan(PLAN)
    optimizer = torch.optim.SGD(host.parameters(), 0.05)
    manager = SeedManager(host, optimizer, sinks=sinks, metrics_every=1, check_every=1, **options)
    return host, optimizer, manager


def course(host: fxgraft.Host, optimizer: Any, manager: SeedManager) -> Any:
    def act(step: int) -> None:
        if step == 0:
            manager.germinate(SLOT, Scale(), name="a")
            manager.germinate("stem", Scale(), name="b")
        if step == 1:
            manager.blend("a", steps=2, schedule="linear")
            manager.pause("b")
            manager.resume("b")
        if step == 3:
            manager.measure("a", lambda: 1.0 if manager.seeds["a"].alpha == 0 else 0.75)
            manager.fossilize("a")
            manager.cull("b")
        if step == 4:
            manager.germinate(SLOT, "mlp", name="c", wait=False)
            manager._background.wait(30)
        if step == 5:
            manager.cull_all()
        manager.step()

    return train(host, optimizer, [PLAN.batch(i) for i in range(7)], act)


def test_every_operation_and_stage_is_an_event() -> None:
    sink = Memory()
    course(*live(sink))
    operations = [(e.seed, e.data["operation"]) for e in sink.of_kind("seed_operation")]
    expected = [
        ("a", "germinate"), ("b", "germinate"), ("a", "blend"), ("b", "pause"), ("b", "resume"),
        ("a", "fossilize"), ("b", "cull"), ("c", "germinate"), ("c", "cull"),
    ]  # fmt: skip
    assert operations == expected
    stages = [(e.step, e.seed, e.data["stage"]) for e in sink.of_kind("seed_stage")]
    assert stages == [
        (0, "a", "TRAINING"), (0, "b", "TRAINING"), (1, "a", "BLENDING"), (3, "a", "HOLDING"),
        (3, "a", "FOSSILIZED"), (3, "b", "CULLED"), (4, "c", "GERMINATED"), (5, "c", "TRAINING"),
        (5, "c", "CULLED"),
    ]  # fmt: skip
    (blend,) = sink.of_kind("blend_config")
    assert dict(blend.data) == {"target": 1.0, "steps": 2, "schedule": "linear"}
    (rollback,) = sink.of_kind("rollback")
    assert rollback.data["seeds"] == ["c"]
    assert rollback.data["latency_ms"] > 0
    assert [e.data["action"] for e in sink.of_kind("gate_event")] == ["blend", "fossilize"]
    assert sink.of_kind("contribution")[0].data["contribution"] == 0.25
    for event in sink.events:
        json.dumps([event.kind, event.step, event.seed, dict(event.data)], allow_nan=False)


def test_every_metric_has_its_value() -> None:
    host, optimizer, manager = live()
    assert set(manager.metrics()) == {*METRICS, *(metric.alias for metric in METRICS.values())}
    manager.germinate(SLOT, Scale(), name="a")
    manager.germinate("stem", InPlaceArmed(), name="bad")
    manager.germinate("stem", Scale(), name="late", wait=False)
    manager._background.wait(30)
    manager.blend("a", steps=4, schedule="linear")
    train(host, optimizer, [PLAN.batch(0)], lambda _: manager.step())
    manager.measure("a", lambda: 1.0 if manager.seeds["a"].alpha == 0 else 0.75)
    found = manager.metrics()
    assert all(found[name] == found[metric.alias] for name, metric in METRICS.items())
    stages = found["fxgraft/seed/stage"]
    assert (stages["a"], stages["bad"], stages["late"]) == (3, 2, 2)
    assert found["fxgraft/seed/alpha"]["a"] == 0.25
    assert found["fxgraft/seed/alpha_steps"]["a"] == 1
    assert found["fxgraft/seed/attached"]["a"] == 1
    assert found["fxgraft/seed/latency_ms"]["a"] > 0
    assert found["fxgraft/seed/contribution"] == {"a": 0.25}
    norm = sum(float(p.grad.double().square().sum()) for p in host.host_parameters() if p.grad is not None)
    assert found["fxgraft/seed/host_gradient_norm"]["a"] == pytest.approx(norm**0.5, rel=1e-5)
    own = sum(float(p.grad.double().square().sum()) for p in manager.seeds["a"].module.parameters())
    assert found["fxgraft/seed/gradient_norm"]["a"] == pytest.approx(own**0.5, rel=1e-5)
    assert found["fxgraft/isolation/violations"][""] > 0
    assert found["fxgraft/seed/violations"]["bad"] > 0
    assert found["fxgraft/seeds/active"] == {"": 3}
    assert found["fxgraft/prefetch/completed"] == {"": 1}
    assert found["fxgraft/prefetch/latency_ms"][""] > 0
    manager.germinate("stem", lambda slot: 3, name="fails", wait=False)
    assert manager.metrics()["fxgraft/prefetch/pending"] == {"": 1}
    manager._background.wait(30)
    manager.step()
    manager.cull_all()
    found = manager.metrics()
    assert found["fxgraft/prefetch/failed"] == {"": 1}
    assert found["fxgraft/rollback/latency_ms"][""] > 0
    assert found["fxgraft/seeds/active"] == {"": 0}
    assert found["fxgraft/seed/stage"] == {}


class InPlaceArmed(InPlace):
    """Leaks in training only, so that it gets past the door."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.armed = torch.is_grad_enabled()
        return super().forward(x)


def test_json_lines(tmp_path: Path) -> None:
    memory = Memory()
    with JsonLines(tmp_path / "x.jsonl") as sink:
        course(*live(memory, sink))
    with JsonLines(tmp_path / "x.jsonl") as sink:
        sink(Event("more", 9))
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert lines[-1] == {"kind": "more", "step": 9, "seed": None, "data": {}}
    assert [(x["kind"], x["step"], x["seed"]) for x in lines[:-1]] == [
        (e.kind, e.step, e.seed) for e in memory.events
    ]
    assert [x["data"] for x in lines[:-1]] == [json.loads(json.dumps(dict(e.data))) for e in memory.events]


def test_json_lines_go_on_after_a_torn_line_and_make_their_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.jsonl"
    with JsonLines(path) as sink:
        sink(Event("first", 1))
        sink(Event("torn", 2))
    path.write_bytes(path.read_bytes()[:-9])
    with JsonLines(path) as sink:
        sink(Event("next", 3))
    first, torn, following = path.read_text().splitlines()
    assert json.loads(first)["kind"] == "first"
    assert json.loads(following)["kind"] == "next"
    with pytest.raises(json.JSONDecodeError):
        json.loads(torn)


def test_json_lines_survive_a_kill(tmp_path: Path) -> None:
    program = f"""
        import os, signal
        from fxgraft.telemetry import Event, JsonLines
        sink = JsonLines({str(tmp_path / "x.jsonl")!r})
        for step in range(50):
            sink(Event("metrics", step, None, {{"a": {{"": step / 7}}}}))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(50))


def test_json_lines_hold_no_nan(tmp_path: Path) -> None:
    """NaN is no JSON: strict readers would refuse the line."""
    with JsonLines(tmp_path / "x.jsonl") as sink:
        sink(Event("contribution", 1, "a", {"contribution": float("nan"), "of": [float("-inf"), 1.5]}))

    def refuse(text: str) -> None:
        raise AssertionError(text)

    line = json.loads((tmp_path / "x.jsonl").read_text(), parse_constant=refuse)
    assert line["data"] == {"contribution": "nan", "of": ["-inf", 1.5]}


@pytest.mark.parametrize("aliases", [False, True])
def test_tensorboard_gets_aliases_on_request(aliases: bool) -> None:
    class Writer:
        def __init__(self) -> None:
            self.names: set[str] = set()

        def add_scalar(self, name: str, value: float, global_step: int) -> None:
            self.names.add(name)

    writer = Writer()
    data = {"fxgraft/seed/alpha": {"a": 1.0}, "kasmina.seed.alpha": {"a": 1.0}}
    TensorBoard(writer, aliases=aliases)(Event("metrics", 1, None, data))
    assert writer.names == {"fxgraft/seed/alpha/a", *(["kasmina.seed.alpha/a"] if aliases else [])}


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    memory, writer = Memory(), SummaryWriter(tmp_path)
    course(*live(memory, TensorBoard(writer)))
    writer.close()
    read = EventAccumulator(os.fspath(tmp_path))
    read.Reload()
    alphas = [(e.step, e.value) for e in read.Scalars("fxgraft/seed/alpha/a")]
    assert alphas == [
        (e.step, e.data["fxgraft/seed/alpha"]["a"])
        for e in memory.of_kind("metrics")
        if "a" in e.data["fxgraft/seed/alpha"]
    ]
    assert [e.value for e in read.Scalars("fxgraft/seeds/active")] == [2, 2, 2, 0, 1, 0, 0]
    kinds = {tag.removesuffix("/text_summary") for tag in read.Tags()["tensors"]}
    assert kinds >= {"seed_stage", "seed_operation", "blend_config", "gate_event", "rollback"}
    assert kinds.isdisjoint({"steps", "run_began"}), "the loss of every step is no text"


def test_logging(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "fxgraft.events")
    course(*live(Logging()))
    levels = {record.args[1]: record.levelno for record in caplog.records if record.name == "fxgraft.events"}
    assert levels["seed_stage"] == logging.INFO
    assert levels["metrics"] == logging.DEBUG
    assert levels["rollback"] == logging.WARNING
    assert "BLENDING" in caplog.text


def failing(event: Event) -> None:
    raise OSError("the disk is full")


def test_a_failing_sink_never_touches_training(caplog: pytest.LogCaptureFixture) -> None:
    memory = Memory()
    expected = course(*live())
    course(*live(failing, memory)).assert_same(expected)
    assert "the disk is full" in caplog.text
    assert memory.of_kind("rollback"), "a failing sink kept events from the next one"


def test_without_seeds_nothing_is_reported_but_that() -> None:
    sink = Memory()
    host, optimizer, manager = live(sink, enabled=False)
    manager.germinate(SLOT, "mlp", name="a")
    manager.blend("a")
    train(host, optimizer, [PLAN.batch(0)], lambda _: manager.step())
    manager.cull("a")
    operations = [(e.data["operation"], e.data["disabled"]) for e in sink.of_kind("seed_operation")]
    assert operations == [("germinate", True), ("blend", True), ("cull", True)]
    assert {e.kind for e in sink.events} == {"run_began", "seed_operation", "steps", "metrics"}


def test_a_run_begins_with_what_it_is() -> None:
    sink = Memory()
    host, _, manager = live(sink)
    assert sink.events == [], "a manager that does nothing says nothing"
    manager.germinate(SLOT, "mlp", name="a", hidden=3)
    (began,) = sink.of_kind("run_began")
    assert sink.events[0] is began
    assert began.data["parameters"] == sum(p.numel() for p in host.host_parameters())
    assert [slot["name"] for slot in began.data["slots"]] == list(host.slots)
    assert began.data["slots"][0]["shape"] == list(next(iter(host.slots.values())).shape)
    assert began.data["versions"]["torch"] == torch.__version__
    born = sink.of_kind("seed_stage")[0].data
    assert (born["slot"], born["blueprint"], born["mode"], born["source"]) == (SLOT, "mlp", "residual", None)
    assert born["parameters"] == sum(p.numel() for p in manager.seeds["a"].module.parameters())


def test_a_run_that_goes_on_begins_with_its_seeds(tmp_path: Path) -> None:
    host, optimizer, manager = live()
    manager.germinate(SLOT, "mlp", name="a")
    train(host, optimizer, [PLAN.batch(0)], lambda _: manager.step())
    manager.save(tmp_path / "run")
    sink = Memory()
    host = traced_plan(PLAN)
    loaded = SeedManager.load(tmp_path / "run", host, torch.optim.SGD(host.parameters(), 0.05), sinks=[sink])
    loaded.blend("a", steps=2)
    began = sink.events[0]
    assert (began.kind, began.step) == ("run_began", 1)
    assert [(s["name"], s["stage"]) for s in began.data["seeds"]] == [("a", "TRAINING")]


@pytest.mark.parametrize("given", ["tensor", "number", "nothing"])
def test_steps_tell_the_loss_and_time_of_each(given: str) -> None:
    sink = Memory()
    host = traced_plan(PLAN)
    manager = SeedManager(host, sinks=[sink], metrics_every=3)
    loss = torch.tensor(0.0)
    for step in range(7):
        loss.fill_(step)  # as a CUDA graph does: the tensor given last is overwritten
        manager.step({"tensor": loss, "number": float(step), "nothing": None}[given])
    told = sink.of_kind("steps")
    assert [event.step for event in told] == [3, 6], "a step that is not told yet is told with the next"
    expected = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] if given != "nothing" else [None] * 6
    assert [value for event in told for value in event.data["loss"]] == expected
    times = [value for event in told for value in event.data["ms"]]
    assert times[0] is None, "there was no step before the first"
    assert all(value > 0 for value in times[1:])


class Meanless(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.mean:
            raise RuntimeError("no mean")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_loss_that_is_none_never_touches_training(caplog: pytest.LogCaptureFixture) -> None:
    sink = Memory()
    manager = SeedManager(traced_plan(PLAN), sinks=[sink], metrics_every=4)
    manager.step(3)
    manager.step(torch.tensor([1.0, 2.0]).as_subclass(Meanless))
    manager.step(torch.tensor([1, 2]))
    manager.step()
    assert manager.steps == 4
    assert "the journal of step 2 failed" in caplog.text
    (told,) = sink.of_kind("steps")
    assert told.data["loss"] == [3.0, None, 1.5, None]
    assert len(told.data["ms"]) == 4


def test_without_an_interval_losses_are_not_kept() -> None:
    sink = Memory()
    manager = SeedManager(traced_plan(PLAN), sinks=[sink])
    for _ in range(3):
        manager.step(torch.tensor(1.0))
    assert manager._journal._pace.take() == {"loss": [], "ms": []}
    assert sink.events == []


def test_commands_are_events_with_their_replies() -> None:
    sink = Memory()
    manager = live(sink)[2]
    manager.handle({"type": "SEED", "slot": SLOT, "blueprint": "mlp", "name": "a", "id": "1"})
    manager.handle({"type": "SEED", "slot": SLOT, "blueprint": "mlp", "name": "a", "id": "1"})  # told once
    manager.handle({"type": "CULL", "seed": "nobody"})
    manager.handle("{")
    commands = sink.of_kind("command")
    told = [(e.seed, (e.data["command"] or {}).get("type"), e.data["accepted"]) for e in commands]
    assert told == [("a", "SEED", True), ("nobody", "CULL", False), (None, None, False)]
    assert "nobody" in commands[1].data["reason"]


def test_compilations_are_events(fresh_compiler: None) -> None:
    sink = Memory()
    host, optimizer, manager = live(sink)
    host.compile(backend="aot_eager")
    batches = [PLAN.batch(i) for i in range(2)]
    train(host, optimizer, batches, lambda _: manager.step())
    first = sink.of_kind("compiled")
    assert [(e.step, e.data["graphs"]) for e in first] == [(1, 1)], "told once, when it was compiled"
    assert first[0].data["seconds"] > 0
    manager.germinate(SLOT, "mlp", name="a")
    train(host, optimizer, batches, lambda _: manager.step())
    told = sink.of_kind("compiled")[1:]
    assert told
    assert all("a" in e.data["label"] for e in told)


def test_what_was_compiled_in_an_earlier_run_is_not_told_in_this_one() -> None:
    host = fxgraft.trace(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU()), (torch.randn(2, 3),))
    host.compile(backend="aot_eager")

    def run(*slots: str) -> set[str]:
        memory = Memory()
        manager = fxgraft.SeedManager(host, sinks=[memory], metrics_every=1)
        for slot in slots:
            manager.germinate(slot, "low_rank", name=f"at_{slot}")
            host(torch.randn(2, 3)).sum().backward()
            manager.step()
        host.clear()
        return {event.data["label"] for event in memory.of_kind("compiled")}

    first, second = run("0"), run("0", "1")
    assert first
    assert second
    assert first.isdisjoint(second)
