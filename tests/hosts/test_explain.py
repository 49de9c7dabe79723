"""``host.explain()`` and ``fxgraft explain``: every module is told of, and what is told is true."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fxgraft
from fxgraft.__main__ import main
from fxgraft.cli import app
from fxgraft.cli._target import TargetError, load
from tests.hosts.transformer_models import MODELS


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.never = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, mask=None, scale=1.0):
        y = self.fc(x) * scale
        return y if mask is None else y * mask


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.left(x) if x.sum() > 1e9 else self.right(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Scaled() for _ in range(3))
        self.gate = Gate()
        self.again = self.blocks[0]

    def forward(self, x, mask=None):
        for block in self.blocks:
            x = block(x, mask, 0.5)
        return self.gate(x) + self.again(x, mask, 0.5).size(0)


TREE = """\
Model: 13 slots; 4 of 5 modules with code of their own are traced; 0 calls fell back
Model: traced, 6 slots, 1 value is none
   guards: mask is None, len(self.blocks) == 3
├─ blocks (ModuleList): holds modules
│  └─ 0 … 2 (Scaled, 3 alike): traced, 2 slots
│        guards: mask is None, scale == 0.5
│     ├─ fc (Linear): a node of the graph around it
│     └─ never (Linear): no graph calls it
├─ gate (Gate): not traced: it branches on gt, which depends on the input; a node of the graph around it
│  ├─ left (Linear): no graph calls it
│  └─ right (Linear): its boundary is a slot
└─ again (Scaled): the same as blocks.0"""


@pytest.fixture
def host():
    return fxgraft.trace(Model(), (torch.randn(2, 4),))


def test_the_tree(host):
    assert str(host.explain()) == repr(host.explain()) == TREE


def test_seeds_and_calls_that_fell_back_are_reported(host):
    manager = fxgraft.SeedManager(host)
    seed = manager.germinate("blocks.1.fc", "mlp")
    host(torch.randn(2, 4), torch.randn(2, 4))
    told = host.explain()
    assert told.modules["blocks.1"].seeds == (seed.name,)
    assert told.modules["blocks.1"].fallbacks == told.fallbacks == 1
    assert "1 (Scaled): traced, 2 slots, seeds: mlp_at_blocks_1_fc, 1 call fell back" in str(told)
    assert str(told).startswith(
        "Model: 13 slots; 4 of 5 modules with code of their own are traced; 1 call fell"
    )


@pytest.mark.parametrize("name", ["gpt2", "t5", "mamba"])
def test_every_module_and_every_slot_of_a_transformer_is_told_of(name):
    given = MODELS[name]()
    host = fxgraft.trace(given.model, given.args, given.kwargs)
    told = host.explain()
    every = [path for path, _ in given.model.named_modules(remove_duplicate=False)]
    assert list(told.modules) == every
    assert sorted(slot for report in told.modules.values() for slot in report.slots) == sorted(host.slots)
    assert {n: r.reason for n, r in told.modules.items() if r.reason and r.status != "shared"} == host.opaque
    assert {n for n, r in told.modules.items() if r.status in ("traced", "boundary")} == host.regions.keys()
    whys = {place: why for report in told.modules.values() for place, why in report.rejected.items()}
    assert whys | host.opaque == host.rejected
    assert json.loads(json.dumps(told.to_dict()))["slots"] == len(host.slots)
    assert all(len(line) <= 110 for line in str(told).splitlines())


# The command line

FILE = """
import torch
from neighbour import make

def target():
    return make(), (torch.randn(2, 4),)

def with_keywords():
    return make(), (), {"x": torch.randn(2, 4)}

def untraceable():
    return make(), (torch.randn(2, 5),)

def wrong():
    return make()

def raising():
    raise RuntimeError("no weights")

number = 3
"""
NEIGHBOUR = """
import torch
from torch import nn

class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x)

make = Dense
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(FILE)
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("net", "neighbour"):
        sys.modules.pop(name, None)


def run(*arguments):
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("target", ["net.py:target", "net:target", "net:with_keywords"])
def test_explain_prints_the_tree(directory, target):
    result = run("explain", target)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "Dense: 1 slot; 1 of 1 module with code of their own is traced; 0 calls fell back",
        "Dense: traced, 1 slot",
        "└─ fc (Linear): a node of the graph around it",
    ]


def test_explain_prints_json(directory):
    told = json.loads(run("explain", "net:target", "--json").stdout)
    assert (told["slots"], told["root"]["slots"], told["root"]["status"]) == (1, ["fc"], "traced")


def test_a_model_that_cannot_be_traced_is_exit_code_1(directory):
    result = run("explain", "net:untraceable")
    assert result.exit_code == 1
    assert result.stderr.startswith("fxgraft: the example call of Dense failed in train mode")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("net", "expected module:callable or file.py:callable; got 'net'"),
        (":target", "expected module:callable or file.py:callable; got ':target'"),
        ("other.py:target", "cannot be imported: FileNotFoundError"),
        ("absent_module:target", "cannot be imported: ModuleNotFoundError"),
        ("net:missing", "net has no 'missing'; it has: make, target, with_keywords, untraceable, wrong"),
        ("net:number", "expected number to be a callable; got int"),
        ("net:raising", "net:raising raised RuntimeError: no weights"),
        (
            "net:wrong",
            "(model, example_args, example_kwargs), an nn.Module, a tuple and a dict; got Dense",
        ),
    ],
)
def test_a_target_that_cannot_be_loaded_is_exit_code_2(directory, target, message):
    result = run("explain", target)
    assert result.exit_code == 2
    assert message in result.stderr
    with pytest.raises(TargetError):
        load(target)


def test_wrong_usage_is_exit_code_2():
    assert run("explain").exit_code == 2


def test_the_module_can_be_run(directory):
    result = subprocess.run(
        [sys.executable, "-m", "fxgraft", "explain", "net.py:target"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("Dense: 1 slot")


def test_without_typer_it_says_what_to_install(monkeypatch):
    own = builtins.__import__

    def without(name, *rest, **kwargs):
        if name == "fxgraft.cli":
            raise ModuleNotFoundError("No module named 'typer'", name="typer")
        return own(name, *rest, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SystemExit, match=r"pip install 'fxgraft\[cli\]'"):
        main()
