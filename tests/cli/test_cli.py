"""The command line: what it says, as text and as JSON, and how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import fxgraft
from fxgraft.cli import app
from fxgraft.telemetry import JsonLines
from tests.cli.target import small

ROOT = Path(__file__).parents[2]
TARGET = str(Path(__file__).parent / "target.py") + ":small"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, example = small()
    host = fxgraft.trace(model, example)
    manager = fxgraft.SeedManager(host)
    manager.germinate("1", "mlp", name="a", hidden=4)
    manager.germinate("0", lambda slot: __import__("torch").nn.Linear(8, 8), name="b")
    manager.save(tmp_path / "run.fxgraft")
    return tmp_path / "run.fxgraft"


def test_slots_as_text_and_as_json() -> None:
    text = run("slots", TARGET)
    assert text.exit_code == 0
    headers, _, *rows = text.stdout.splitlines()
    assert headers.split() == ["slot", "value", "behind"]
    shown = [row.split(maxsplit=4)[:4] for row in rows]
    assert shown == [[name, "float32", "(3,", f"{size})"] for name, size in (("0", 8), ("1", 8), ("2", 2))]
    data = json.loads(run("slots", TARGET, "[01]", "--json").stdout)
    assert data == [{"name": n, "shape": [3, 8], "dtype": "float32"} for n in "01"]


def test_a_plan_tells_and_changes_nothing() -> None:
    text = run("plan", TARGET, "1", "mlp", "--config", '{"hidden": 4}')
    assert text.exit_code == 0
    assert "parameters  76 in 4 tensors" in text.stdout
    assert "+    seed" in text.stdout
    data = json.loads(run("plan", TARGET, "1", "mlp", "--config", '{"hidden": 4}', "--json").stdout)
    assert data["parameter_count"] == 76


@pytest.mark.graphviz
@pytest.mark.parametrize("suffix", ["svg", "png", "html"])
def test_a_graph_is_drawn(suffix: str, tmp_path: Path) -> None:
    done = run("graph", TARGET, "-o", tmp_path / f"host.{suffix}")
    assert done.exit_code == 0, done.output
    written = (tmp_path / f"host.{suffix}").read_bytes()
    assert {"svg": b"<svg", "png": b"PNG", "html": b"<!doctype html>"}[suffix] in written


def test_a_checkpoint_is_looked_into_and_verified(saved: Path) -> None:
    text = run("checkpoint", "inspect", saved).stdout
    assert "seed a: mlp at 1, TRAINING, alpha 0" in text
    assert "blueprints=" in text.splitlines()[-1]
    data = json.loads(run("checkpoint", "inspect", saved, "--json").stdout)
    assert [seed["name"] for seed in data["seeds"]] == ["a", "b"]
    assert run("checkpoint", "verify", saved).exit_code == 0


def test_an_inserted_block_needs_no_blueprint_to_load(tmp_path: Path) -> None:
    blocks = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Tanh())), nn.Linear(3, 2))
    manager = fxgraft.SeedManager(fxgraft.trace(blocks, (torch.randn(4, 3),)))
    manager.deepen("0", init="copy")
    manager.save(tmp_path / "run")
    line = run("checkpoint", "inspect", tmp_path / "run").stdout.splitlines()[-1]
    assert line.endswith("(an inserted block: load copies 0.0 for it)")
    (seed,) = json.loads(run("checkpoint", "inspect", tmp_path / "run", "--json").stdout)["seeds"]
    assert seed["copied_from"] == "0.0"


def test_a_task_whose_batches_are_no_pairs_says_what_they_are(tmp_path: Path) -> None:
    code = "import torch; from torch import nn\n"
    for name, batches in (("task", "[torch.ones(3, 2)]"), ("empty", "[]")):
        code += f"def {name}(): return nn.Sequential(nn.Linear(2, 2)), {batches}, nn.functional.mse_loss\n"
    (tmp_path / "odd.py").write_text(code)
    for name, given in (("task", "a tensor (3, 2)"), ("empty", "none")):
        done = run("explore", f"{tmp_path / 'odd.py'}:{name}")
        assert done.exit_code == 2
        assert f"[(inputs, targets), ...]; got {given}" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (
            "lambda out, y: (out - y).square()",
            "got a tensor (3, 2) of float32",
        ),
        ("lambda out, y: 0.5", "a tensor with one element; got float"),
        ("lambda out, y: y['label']", "the loss raised IndexError: "),
        (
            "nn.functional.cross_entropy",
            "a tensor (3, 2) of float32 and a tensor (3, 2) of int64",
        ),
    ],
)
def test_a_task_whose_loss_is_none_says_what_one_is(tmp_path: Path, loss: str, said: str) -> None:
    code = "import torch; from torch import nn\nx, y = torch.ones(3, 2), torch.ones(3, 2, dtype=torch.long)\n"
    code += f"def task(): return nn.Sequential(nn.Linear(2, 2)), [(x, y)], {loss}\n"
    (tmp_path / "odd.py").write_text(code)
    done = run("explore", f"{tmp_path / 'odd.py'}:task", "--steps", "1")
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())


def test_a_damaged_checkpoint_ends_with_1(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-3] ^= 1
    saved.write_bytes(content)
    for command in ("inspect", "verify"):
        done = run("checkpoint", command, saved)
        assert done.exit_code == 1
        assert "checksum" in done.stderr


def test_the_cost_of_a_model_is_measured() -> None:
    quick = ("--rounds", "2", "--steps", "1")
    text = run("bench", TARGET, *quick)
    assert text.exit_code == 0, text.output
    assert "host, a seed blending" in text.stdout
    assert "seed: mlp at 1, 144 parameters" in text.stdout
    told = json.loads(run("bench", TARGET, "--config", '{"hidden": 4}', *quick, "--json").stdout)
    assert told["parameters"] == 76
    assert len(told["steps"]) == 5


def test_a_run_is_reported_and_watched(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "events.jsonl") as sink:
        model, example = small()
        manager = fxgraft.SeedManager(fxgraft.trace(model, example), sinks=[sink], metrics_every=1)
        manager.germinate("1", "mlp", name="a")
        manager.step(0.5)
    done = run("report", tmp_path)
    assert (done.exit_code, done.stdout) == (0, f"wrote {tmp_path / 'events.html'}\n")
    assert "mlp at 1, residual" in (tmp_path / "events.html").read_text()
    assert run("report", tmp_path / "events.jsonl", "-o", tmp_path / "x.html").exit_code == 0
    assert (tmp_path / "x.html").exists()
    told = json.loads(run("report", tmp_path, "--json").stdout)
    assert (told["steps"], told["live"], told["last_loss"]) == (1, 1, 0.5)
    shown = run("watch", tmp_path, "--once")
    assert shown.exit_code == 0
    assert "1 growing" in shown.stdout


def test_the_version() -> None:
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"fxgraft {fxgraft.__version__}, torch {torch.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("slots", "nowhere.py:f"), 2, "nowhere.py"),
        (("slots", TARGET, "no_such*"), 1, "no_such"),
        (("plan", TARGET, "1", "no_such"), 1, "no_such"),
        (("plan", TARGET, "nowhere", "mlp"), 1, "nowhere"),
        (("plan", TARGET, "1", "mlp", "--config", "{"), 2, "--config: expected a JSON object"),
        (("plan", TARGET, "1", "mlp", "--config", "[]"), 2, "--config: expected a JSON object"),
        (("plan", TARGET, "1", "mlp", "--config", '{"mode": "convex"}'), 2, "config: mode cannot be set"),
        (("plan", TARGET, "1", "mlp", "--config", '{"slot": "x"}'), 2, "config: slot cannot be set"),
        (("bench", TARGET, "--backend", "nope"), 2, "backend: expected one that torch.compile knows"),
        (("graph", TARGET, "-o", "/dev/null/x.html"), 1, "/dev/null"),
        (("graph", TARGET, "-o", "host.txt"), 2, ".svg, .png, .html"),
        (("checkpoint", "verify", "nowhere"), 1, "nowhere"),
        (("report", "nowhere"), 1, "expected a log"),
        (("bench", TARGET, "--rounds", "0"), 2, "rounds: expected a positive whole number; got 0"),
        (("bench", TARGET, "--slot", "nowhere"), 1, "nowhere"),
        (("bench", TARGET, "--config", "{"), 2, "--config: expected a JSON object"),
        (("report", __file__), 1, "expected JSON lines of events"),
        (("report", "nowhere", "--json"), 1, "expected a log"),
        (("watch", "nowhere", "--once"), 1, "expected a log"),
    ],
)
def test_errors_are_told_in_a_line(arguments: tuple[str, ...], code: int, says: str) -> None:
    done = run(*arguments)
    assert done.exit_code == code
    assert says in done.stderr
    assert done.stderr.startswith("fxgraft: ")
    assert "Traceback" not in done.output


def test_the_demo_names_its_options() -> None:
    shown = run("demo", "--help").stdout
    options = {"--out", "--seeds", "--first-seed", "--processes", "--quick", "--json"}
    assert options <= set(re.findall(r"--[\w-]+", shown))


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("plotly", ("report", "RUN"), "report"),
        ("pydot", ("graph", TARGET, "-o", "host.svg"), "show"),
        ("matplotlib", ("demo", "--quick"), "demo"),
    ],
)
def test_a_missing_extra_is_reported(
    missing: str, arguments: tuple[str, ...], extra: str, tmp_path: Path
) -> None:
    """In a fresh process: what was imported once is there."""
    (tmp_path / "events.jsonl").write_text('{"kind": "x", "step": 1, "seed": null, "data": {}}\n')
    given = [str(tmp_path) if argument == "RUN" else argument for argument in arguments]
    code = f"import sys; sys.modules[{missing!r}] = None; from fxgraft.cli import app; app({given!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"pip install 'fxgraft[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_dot_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = run("graph", TARGET, "-o", tmp_path / "host.svg")
    assert done.exit_code == 1
    assert "install graphviz" in done.stderr
    assert not (tmp_path / "host.svg").exists()


def test_explore_ranks_what_may_grow() -> None:
    task = TARGET.replace(":small", ":task")
    text = run("explore", task, "--steps", "3", "--blueprint", "mlp", "--blueprint", "norm")
    assert text.exit_code == 0, text.output
    assert "contribution" in text.stdout
    assert text.stdout.count("mlp") == 3
    data = json.loads(run("explore", task, "1", "--steps", "2", "--warm-up", "2", "--json").stdout)
    assert data["done"]
    assert {row["slot"] for row in data["rows"]} == {"1"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((TARGET,), 2, "(model, batches, loss)"),
        ((TARGET.replace(":small", ":task"), "nowhere"), 1, "nowhere"),
        ((TARGET.replace(":small", ":task"), "--blueprint", "mpl"), 1, "mlp"),
        ((TARGET.replace(":small", ":task"), "--steps", "0"), 2, "steps"),
        (
            (TARGET.replace(":small", ":task"), "--lr", "-1"),
            2,
            "--lr: expected a number, 0 or more",
        ),
    ],
)
def test_what_cannot_be_explored_is_reported(arguments: tuple[str, ...], code: int, said: str) -> None:
    done = run("explore", *arguments)
    assert done.exit_code == code
    assert said in done.stderr
