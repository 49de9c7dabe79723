"""The demo: its text, its measurements, what it claims, and one short run of all arms."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

import fxgraft
from fxgraft.demo import __main__ as program
from fxgraft.demo import _plot, _results, _text, _watching
from fxgraft.demo._model import GPT, criterion, sample
from fxgraft.demo._training import DEEPENED, EXPLORED, FIXED, QUICK, Ledger, Record, RunLength
from fxgraft.report import read
from fxgraft.util.flops import count_flops


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class TestText:
    def test_the_parts_share_no_file_and_are_large(self) -> None:
        data = _text.load()
        assert len(data.train) > 10_000_000
        assert min(len(data.held_out), len(data.test)) > 500_000
        assert data.train.dtype is torch.uint8
        assert int(data.train.max()) < _text.VOCABULARY

    def test_batches_depend_on_random_seed_and_step_alone(self) -> None:
        data = _text.load()
        (x, y), again, other, later = (data.batch(*which) for which in ((3, 1), (3, 1), (4, 1), (3, 2)))
        assert x.shape == y.shape == (_text.BATCH, _text.CONTEXT)
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert torch.equal(x, again[0])
        assert not torch.equal(x, other[0])
        assert not torch.equal(x, later[0])

    def test_an_evaluation_reads_its_own_part(self) -> None:
        data = _text.Text(torch.zeros(999), torch.ones(999), torch.full((999,), 2.0))
        assert [int(x.unique()) for x, _ in data.batches("test", 40)] == [2, 2]
        assert [len(x) for x, _ in data.batches("held_out", 40)] == [32, 8]

    def test_without_sympy_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_text, "find_spec", lambda name: None)
        with pytest.raises(FileNotFoundError, match="pip install sympy"):
            _text.load.__wrapped__()


def test_the_flops_of_a_known_network() -> None:
    """Two for each multiply-add: projections, attention, head, and twice as many backward."""
    x, y = _text.load().batch(0, 0)
    width, tokens = 32, x.numel()
    layers = 12 * width * width + width * _text.VOCABULARY
    attention = 2 * _text.CONTEXT * width  # scores and their values, of each token
    model = GPT(1)
    forward = count_flops(lambda: model(x))
    assert forward == 2 * tokens * (layers + attention)
    step = count_flops(lambda: criterion(model(x), y).backward())
    assert 3 * forward <= step <= 4 * forward  # attention computes its scores again


def test_a_ledger_charges_each_call_and_counts_each_structure_once() -> None:
    layer, ledger = torch.nn.Linear(4, 4, bias=False), Ledger()
    for structure in ("small", "small", None, None):
        ledger.charge("growth", structure, lambda: layer(torch.ones(1, 4)))
    ledger.charge("training", "small", lambda: None)  # known: what runs is not looked at
    assert ledger.flops == {"training": 32, "growth": 4 * 32}
    assert ledger.spent == 5 * 32


def test_a_sample_continues_the_start_and_repeats() -> None:
    model = GPT(1)
    written = sample(model, "def ", 10)
    assert written.startswith("def ")
    assert len(written) == 14
    assert written == sample(model, "def ", 10)
    assert written != sample(model, "def ", 10, random_seed=1)
    assert model.training


def estimate(mean: float, error: float | None) -> dict[str, Any]:
    return {"mean": mean, "standard_error": error}


class TestClaims:
    def test_an_estimate_is_mean_and_standard_error(self) -> None:
        found = _results.estimate([1.0, 2.0, 3.0])
        assert found == {"mean": 2.0, "standard_error": pytest.approx(3**-0.5), "runs": [1.0, 2.0, 3.0]}
        assert _results.estimate([1.0])["standard_error"] is None

    @pytest.mark.parametrize(
        ("grown", "error", "says"),
        [
            (1.50, 0.01, "A is better than X, by 0.100 ± 0.014"),
            (1.70, 0.01, "A is WORSE than X, by 0.100 ± 0.014"),
            (1.58, 0.01, "A and X: no difference"),
            (1.50, None, "A and X: no verdict from one run"),
        ],
    )
    def test_a_difference_needs_two_standard_errors(
        self, grown: float, error: float | None, says: str
    ) -> None:
        assert _results.compare(estimate(grown, error), estimate(1.60, error), "A", "X").startswith(says)

    def test_losses_are_compared_to_the_bit_until_the_first_change(self) -> None:
        history = [{"step": 1, "what": "exploring"}, {"step": 2, "what": "blending"}]
        grown = Record(EXPLORED, 0, steps=3, losses=[0.0, 1.0, 5.0], history=history)
        assert grown.first_change == 2
        assert _results._isolated(grown, Record("1 block", 0, losses=[0.0, 1.0, 7.0]))
        assert not _results._isolated(grown, Record("1 block", 0, losses=[-0.0, 1.0, 5.0]))
        assert not _results._isolated(grown, Record("1 block", 0, losses=[0.0]))

    def test_a_run_that_changed_nothing_is_compared_to_its_end(self) -> None:
        assert Record(EXPLORED, 0, steps=3, history=[{"step": 3, "what": "done"}]).first_change == 3


def test_labels_do_not_overlap() -> None:
    axes = Figure().subplots()
    axes.set_ylim(1.0, 2.0)
    _plot._label(
        axes, [(1.50, 1.0, "a", "k"), (1.501, 1.0, "b", "k"), (1.502, 1.0, "c", "k"), (1.9, 1.0, "d", "k")]
    )
    at = sorted(text.xy[1] for text in axes.texts)
    assert all(above - below >= _plot.LEAST_GAP - 1e-9 for below, above in pairwise(at))
    assert at[0] == 1.50
    assert at[-1] == 1.9


def test_a_terminal_shows_the_run_and_is_left_tidy(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    began = {"host": "GPT", "parameters": 5, "slots": [], "seeds": [], "versions": {}, "time": ""}
    log.write_text(json.dumps({"kind": "run_began", "step": 0, "seed": None, "data": began}) + "\n")
    run: Future[Record] = Future()
    run.set_result(Record(EXPLORED, 7, test_loss=1.5, parameters=1234, steps=10))
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    assert _watching.follow([run], log, console)[0].random_seed == 7
    shown = console.file.getvalue()
    assert "test loss" in shown
    assert "GPT" in shown
    assert "\x1b[?25h" in shown  # the cursor is back


def test_a_quick_run_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["--quick", "--seeds", "1", "--first-seed", "5", "--processes", "1", "--json"]
    program.main([*arguments, "--out", str(tmp_path)])
    found = json.loads((tmp_path / "summary.json").read_text())
    assert list(found["arms"]) == [*FIXED, DEEPENED, EXPLORED]
    for arm in found["arms"]:
        told = found["arms"][arm]
        assert sum(told["flops"].values()) == pytest.approx(QUICK.flops, rel=0.1), "equal for all"
        assert 2 < told["test_loss"]["mean"] < 4.6  # nats; 4.6 is chance
    for arm, blocks in FIXED.items():
        assert found["arms"][arm]["blocks"] == [blocks]
        assert found["arms"][arm]["flops"]["growth"] == 0
    for arm in (DEEPENED, EXPLORED):
        grown = found["arms"][arm]
        assert grown["blocks"][0] > 1
        assert grown["parameters"] > found["arms"]["1 block"]["parameters"]
        assert grown["flops"]["growth"] > 0
    isolation = found["isolation"]
    assert isolation["losses_equal_to_the_bit"]
    assert isolation["losses_compared"] > 10
    assert isolation["candidates"] == 1
    assert isolation["violations"] == 0 < isolation["gradient_checks"]
    assert found["recompiles_on_alpha"] is None  # eager
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    log = read(tmp_path / "events.jsonl")
    assert log.unreadable == 0
    assert [lane.stage for lane in log.lanes.values()].count(fxgraft.Stage.FOSSILIZED) == 1
    assert "a grown GPT" in (tmp_path / "report.html").read_text()
    out, printed = capsys.readouterr()
    assert json.loads(out) == found
    assert not caplog.records, "the output of the demo has no warnings"
    assert "\x1b" not in printed
    assert all(sentence in printed for sentence in found["verdict"])


def test_runs_in_several_processes_are_those_of_one(tmp_path: Path) -> None:
    short = RunLength(flops=1e9, growth={}, points=1, held_out=32, test=32)
    jobs = [("1 block", 1)]
    console = Console(file=io.StringIO())
    here, there = (program.run_all(jobs, short, tmp_path, processes, console) for processes in (1, 2))
    for arm, _ in jobs:
        assert here[arm][0].losses == there[arm][0].losses
        assert here[arm][0].test_loss == there[arm][0].test_loss


def test_nothing_is_compiled_while_alpha_changes(fresh_compiler: None) -> None:
    assert program.count_recompiles("aot_eager") == 0


def test_fxgraft_imports_without_the_extras_of_the_demo() -> None:
    extras = ("sklearn", "matplotlib", "rich", "pydot")  # torch.fx itself imports pydot where there is one
    code = f"import sys; sys.modules.update(dict.fromkeys({extras!r})); import fxgraft; print(fxgraft.trace)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "function trace" in done.stdout
