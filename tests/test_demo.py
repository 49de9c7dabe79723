"""The demo: its controller, its measurements, its summary and verdict, and one short run of all arms."""

import io
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import cycle

import pytest
import torch
from rich.console import Console

import fxgraft
from fxgraft.demo import __main__ as program
from fxgraft.demo import arms, data, summary
from fxgraft.demo.controller import Blend, Controller, Cull, Fossilize, Germinate, Policy
from fxgraft.demo.measure import (
    CountingBackend,
    FlopLedger,
    IsolationCheck,
    Probe,
    contribution,
    evaluate,
    forward_flops,
    step_flops,
)
from fxgraft.demo.model import SmallNet, initial_weights, wide_conv
from fxgraft.demo.records import Record, SeedRecord, SeedRow
from fxgraft.demo.training import Bench
from fxgraft.demo.view import View, seed_table
from fxgraft.report import read

POLICY = Policy(window=5, isolate=4, blend=3, hold=2, latest=100, flat=0.1, margin=0.01, attempts=2)
CANDIDATES = [("a", "x"), ("b.c", "y")]


@pytest.fixture(scope="module")
def digits():
    return data.load()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def script(losses, gains, probe=(0.1, 0.2), policy=POLICY):
    """(step, action) of a controller that sees ``losses``; ``gains`` are what it measures in turn."""
    measured = iter(gains)
    controller = Controller(
        policy, CANDIDATES, lambda free: [probe[CANDIDATES.index(c)] for c in free], lambda _: next(measured)
    )
    return [(step, action) for step, loss in enumerate(losses, 1) for action in controller.observe(loss)]


class TestController:
    def test_a_falling_loss_germinates_nothing(self):
        assert script([0.9**step for step in range(80)], []) == []

    def test_the_best_probed_slot_is_grown_held_and_kept(self):
        assert script([1.0] * 19, [0.5, 0.4]) == [
            (10, Germinate("b_c_y", "b.c", "y", 0.2)),
            (14, Blend("b_c_y", 3, 0.5)),
            (19, Fossilize("b_c_y", 0.4)),
        ]

    def test_a_seed_that_does_not_help_is_culled_before_it_is_blended(self):
        actions = script([1.0] * 14, [0.005])
        assert actions[-1] == (14, Cull("b_c_y", 0.005))
        assert not any(isinstance(action, Blend) for _, action in actions)

    def test_a_seed_that_would_not_be_missed_is_culled_after_holding(self):
        assert script([1.0] * 19, [0.5, -0.1])[-1] == (19, Cull("b_c_y", -0.1))

    def test_a_place_is_tried_once_and_a_plateau_judged_anew(self):
        actions = script([1.0] * 60, [0.0, 0.0])
        assert [(step, type(action), action.seed) for step, action in actions] == [
            (10, Germinate, "b_c_y"),
            (14, Cull, "b_c_y"),
            (24, Germinate, "a_x"),
            (28, Cull, "a_x"),
        ]

    def test_nothing_is_germinated_where_no_probe_promises_anything(self):
        assert script([1.0] * 40, [], probe=(0.01, -1.0)) == []

    @pytest.mark.parametrize("limit", [{"latest": 9}, {"attempts": 0}])
    def test_limits(self, limit):
        policy = Policy(**{**vars(POLICY), **limit})
        assert script([1.0] * 40, [], policy=policy) == []


class TestData:
    def test_parts_are_apart_and_batches_repeat(self, digits):
        assert [len(p.labels) for p in (digits.train, digits.held_out, digits.test)] == [997, 400, 400]
        first, again, other = ([b.labels for b in digits.batches(20, seed)] for seed in (3, 3, 4))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
        assert {len(labels) for labels in first} == {data.BATCH}


def grown_host(digits, **germination):
    torch.manual_seed(0)
    host = fxgraft.trace(SmallNet(), (digits.train.images[:64],))
    manager = fxgraft.SeedManager(host)
    check = IsolationCheck()
    seed = manager.germinate("stage1", wide_conv, name="s", **germination)
    torch.nn.init.normal_(seed.module[2].weight)
    return host, manager, check


class TestMeasurements:
    def test_flops_of_a_known_network(self):
        # stem 8x8 from 1 channel, two 3x3 convolutions of stride 2, linear; 2 per multiply-add.
        stem, stage1, stage2, head = 64 * 4 * 9, 16 * 4 * 4 * 9, 4 * 4 * 4 * 9, 4 * 10
        assert forward_flops(SmallNet()) == 2 * (stem + stage1 + stage2 + head)
        # Backward: the weights of all layers, and the inputs of all but the first.
        assert step_flops(SmallNet(), 1) == 2 * (2 * stem + 3 * (stage1 + stage2 + head))

    def test_the_ledger_follows_the_structure(self, digits):
        host, manager, _ = grown_host(digits)
        ledger = FlopLedger()
        ledger.add_step(host)
        with_seed = ledger.total
        ledger.add_step(host)
        manager.cull("s")
        ledger.add_step(host)
        assert ledger.total == 2 * with_seed + step_flops(SmallNet())
        assert with_seed > step_flops(SmallNet())

    def test_an_isolated_seed_is_found_to_be_isolated(self, digits):
        host, _, check = grown_host(digits)
        batch = next(digits.batches(1, 0))
        assert check.compare(host, ["s"], batch) == 0
        assert (check.parameters, check.violations) == (len(list(SmallNet().parameters())), 0)

    def test_a_leak_is_found(self, digits):
        host, _, check = grown_host(digits, isolated=False)
        assert check.compare(host, ["s"], next(digits.batches(1, 0))) > 0
        assert check.violations > 0

    def test_measuring_leaves_the_host_alone(self, digits):
        host, manager, check = grown_host(digits)
        before = {key: value.clone() for key, value in host.state_dict().items()}
        stream = torch.get_rng_state()
        contribution(manager, "s", digits.held_out)
        check.compare(host, ["s"], next(digits.batches(1, 0)))
        assert fxgraft.util.bits.same_bits(before, dict(host.state_dict()))
        manager.blend("s", steps=1)
        manager.step()
        manager.fossilize("s")  # a probe looks at a host between two seeds
        before = {key: value.clone() for key, value in host.state_dict().items()}
        Probe(cycle(digits.batches(2, 0)), digits.held_out, steps=2)(host, [("head", "low_rank")])
        assert fxgraft.util.bits.same_bits(before, dict(host.state_dict()))
        assert torch.equal(stream, torch.get_rng_state())
        assert all(p.grad is None for p in host.parameters())
        assert host.training
        assert list(manager.seeds) == ["s"]

    def test_contribution_has_the_sign_of_help(self, digits):
        _, manager, _ = grown_host(digits)
        manager.seeds["s"].module[2].weight.data.mul_(100)
        loss, _ = evaluate(manager.host, digits.held_out)  # isolated: as without the seed
        with manager.at_alpha("s", 1.0):
            ruined, _ = evaluate(manager.host, digits.held_out)
        assert ruined > loss
        assert contribution(manager, "s", digits.held_out) == pytest.approx(loss - ruined)

    def test_a_probe_finds_what_helps(self, digits):
        torch.manual_seed(0)
        host = fxgraft.trace(SmallNet(), (digits.train.images[:64],))
        optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
        for batch in digits.batches(60, 0):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(host(batch.images), batch.labels).backward()
            optimizer.step()
        probe = Probe(cycle(digits.batches(15, 1)), digits.held_out, steps=15)
        (gain,) = probe(host, [("stage2", "wide_conv")])
        assert gain > 0
        assert probe.flops > 15 * step_flops(SmallNet())

    @pytest.mark.inductor
    def test_the_backend_counts_graphs(self):
        torch._dynamo.reset()
        backend = CountingBackend()
        double = torch.compile(lambda x: x * 2, backend=backend, dynamic=False)
        for size in (3, 3, 4):
            assert torch.equal(double(torch.ones(size)), torch.full((size,), 2.0))
        assert backend.compiles == 2


def numbers(mean, spread, runs=5):
    return {"mean": mean, "spread": spread, "runs": [mean] * runs}


class TestVerdict:
    def test_accuracy_is_mean_spread_and_runs(self):
        assert summary.accuracy([0.9, 0.8, 1.0]) == {
            "mean": pytest.approx(0.9),
            "spread": pytest.approx(0.1),
            "runs": [0.9, 0.8, 1.0],
        }

    def test_a_win_is_claimed_beyond_both_spreads_only(self):
        assert "is better than X" in summary.compare(numbers(0.95, 0.01), numbers(0.92, 0.01), "X")
        assert "No difference from X" in summary.compare(numbers(0.95, 0.02), numbers(0.92, 0.01), "X")

    def test_a_loss_is_told(self):
        assert "is WORSE than X" in summary.compare(numbers(0.90, 0.005), numbers(0.92, 0.005), "X")

    def test_one_run_gives_no_verdict(self):
        assert summary.compare(numbers(0.95, 0.0, runs=1), numbers(0.5, 0.0, runs=1), "X").startswith(
            "No verdict against X"
        )

    def test_losses_are_compared_to_the_bit(self):
        ours, same, other = (
            [Record("baseline", 0, losses=losses)] for losses in ([0.0, 1.0], [0.0, 1.0], [-0.0, 1.0])
        )
        assert summary.losses_match(ours, same)
        assert not summary.losses_match(ours, other)
        assert not summary.losses_match(ours, [])


class TestView:
    def test_the_table_shows_every_seed(self):
        console = Console(file=io.StringIO(), width=120)
        console.print(seed_table([SeedRow("s", "stage1", "BLENDING", 0.25, 0.125, None)], "now"))
        shown = console.file.getvalue()
        assert all(word in shown for word in ("now", "s", "stage1", "BLENDING", "0.25", "+0.1250"))

    def test_a_terminal_is_redrawn_and_left_tidy(self):
        console = Console(file=io.StringIO(), width=100, force_terminal=True)
        with View(10, 1, console) as view:
            record = Record("grown", 0, losses=[1.0])
            view.acted(record, 1, Germinate("s", "stage1", "wide_conv", 0.5))
            for done in range(1, 6):
                view.step(record, done, [SeedRow("s", "stage1", "TRAINING", 0.0, 0.5, 0.1)])
        shown = console.file.getvalue()
        assert "germinate s" in shown
        assert "gradient ratio" in shown
        assert shown.endswith("\x1b[2K") or "\x1b[?25h" in shown  # erased, the cursor back


def text_of(svg):
    root = ET.fromstring(svg)
    return " ".join("".join(element.itertext()) for element in root.iter() if element.tag.endswith("text"))


def test_disabled_follows_the_commands_and_matches_the_baseline(digits):
    bench = Bench(digits, 12, POLICY, Silent(), compiled=False)
    commands = [(2, Germinate("s", "stage1", "wide_conv")), (4, Blend("s", 2)), (8, Fossilize("s"))]
    plain, quiet = arms.baseline(bench, 1), arms.disabled(bench, 1, commands)
    assert summary.losses_match([plain], [quiet])
    assert [seed.stage for seed in quiet.seeds] == ["DORMANT"]
    assert quiet.accuracy == plain.accuracy


def test_scratch_has_the_grown_architecture_and_the_shared_initial_weights(digits):
    bench = Bench(digits, 6, POLICY, Silent(), compiled=False)
    grown = Record("grown", 1, script=[(2, Germinate("s", "stage1", "wide_conv"))])
    grown.seeds = [SeedRecord("s", "stage1", "wide_conv", "FOSSILIZED", 0.1)]
    plain, scratch = arms.baseline(bench, 1), arms.scratch(bench, 1, grown)
    assert scratch.parameters > plain.parameters
    assert scratch.losses[0] == plain.losses[0]  # a seed is zero at birth
    assert scratch.losses[-1] != plain.losses[-1]


class Silent:
    def step(self, record, done, seeds):
        pass

    def acted(self, record, step, action):
        pass


def test_initial_weights_depend_on_the_random_seed_alone():
    once, again, other = (initial_weights(seed)["stem.weight"] for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_a_quick_run_writes_everything(tmp_path, capsys, caplog):
    program.main(["--quick", "--seeds", "2", "--out", str(tmp_path), "--json"])
    result = json.loads((tmp_path / "summary.json").read_text())
    for arm in ("baseline", "grown", "scratch", "no_isolation"):
        accuracy = result[f"{arm}_accuracy"]
        assert set(accuracy) == {"mean", "spread", "runs"}
        assert len(accuracy["runs"]) == 2
        assert 0.3 < accuracy["mean"] <= 1
    assert set(result["flops"]) == set(summary.ARMS)
    assert result["flops"]["grown"]["training"] > result["flops"]["baseline"]["training"]
    assert min(result["grown_parameters"]) > result["baseline_parameters"] == 394
    assert result["disabled_matches_baseline"] is True
    assert result["isolation_violations"] == 0
    assert result["isolation_gradients_compared"] > 0
    assert result["compiles"] == result["recompiles_on_alpha"] == 0  # eager
    assert 0 < result["median_step_ms"] < result["longest_step_ms"]
    assert {"name", "slot", "blueprint", "final_stage", "contribution"} <= set(result["seeds"][0])
    assert {seed["final_stage"] for seed in result["seeds"]} == {"FOSSILIZED"}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    if shutil.which("dot"):
        assert "stage1" in text_of((tmp_path / "host.svg").read_text())
    run = read(tmp_path / "events.jsonl")
    assert run.unreadable == 0
    assert run.step == program.QUICK_STEPS
    kept = [seed["name"] for seed in result["seeds"] if seed["random_seed"] == program.FIRST_SEED + 1]
    assert [lane.name for lane in run.lanes.values() if lane.stage is fxgraft.Stage.FOSSILIZED] == kept
    assert all(lane.contribution is not None for lane in run.lanes.values())
    assert kept[0] in (tmp_path / "report.html").read_text()
    out, printed = capsys.readouterr()
    assert json.loads(out) == result
    assert not caplog.records, "the output of the demo has no warnings"
    assert "\x1b" not in printed
    assert all(sentence in printed for sentence in result["verdict"])


def test_fxgraft_imports_without_the_extras_of_the_demo():
    extras = ("sklearn", "matplotlib", "rich", "pydot")  # torch.fx itself imports pydot where there is one
    code = f"import sys; sys.modules.update(dict.fromkeys({extras!r})); import fxgraft; print(fxgraft.trace)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "function trace" in done.stdout
