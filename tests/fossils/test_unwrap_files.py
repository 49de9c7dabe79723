"""Unwrapped hosts as copies, as files, and in a process that has no fxgraft."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft.blueprints import get
from tests.fossils.test_unwrap import CONVOLUTIONAL, TwoConvBlocks, fossil, grown, net, reloaded
from tests.harness import assert_same_bits
from tests.hosts.hosts import Given
from tests.hosts.transformer_models import MODELS


@pytest.mark.parametrize("copied", [copy.deepcopy, reloaded, lambda m: reloaded(reloaded(m))])
def test_copies(copied: Callable[[nn.Module], nn.Module]) -> None:
    given = net()
    plain = fxgraft.unwrap(grown(given, ("blocks.0.relu", "attention"), ("stem", "mlp", {"to": 0.5})))
    twin = copied(plain)
    assert list(twin.state_dict()) == list(plain.state_dict())
    assert isinstance(twin, TwoConvBlocks)
    assert (type(twin) is type(plain)) == (copied is copy.deepcopy)
    for training in (True, False):
        torch.manual_seed(1)
        expected = plain.train(training)(*given.args)
        torch.manual_seed(1)
        assert_same_bits(twin.train(training)(*given.args), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert plain.eval()(*given.args).any()


@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_model_that_grew_several_times_is_a_file_like_any_other(
    through_a_file: bool, tmp_path: Path
) -> None:
    """What `unwrap` returned is traced, grown and unwrapped again: each class is made of the one before."""
    given = Given(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), (torch.randn(8, 4),))
    model, files = given.model, []
    for generation in range(3):
        host = fxgraft.trace(model, given.args)
        fossil(fxgraft.SeedManager(host), "1", "mlp", name=f"seed{generation}")
        expected = host(*given.args)
        model = fxgraft.unwrap(host)
        for copied in (copy.deepcopy, reloaded):
            assert_same_bits(copied(model)(*given.args), expected)
        again = pickle.loads(pickle.dumps(host))
        assert_same_bits(again(*given.args), expected)
        assert_same_bits(fxgraft.unwrap(again)(*given.args), expected)
        model = reloaded(model) if through_a_file else model
        files.append(saved(given, host, tmp_path, f"generation{generation}"))
    run_elsewhere(tmp_path, *files)


ELSEWHERE = """
    import sys


    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("fxgraft", "fxgraft_passes"):
                raise ImportError(f"{name} is not to be had here")


    sys.meta_path.insert(0, Blocked())
    import torch

    torch.set_num_threads(1)


    def check(name):
        module = torch.load(f"{name}.pt", weights_only=False)
        args, kwargs, expected = torch.load(f"{name}.call", weights_only=False)
        out = module(*args, **kwargs)
        out = out.logits if hasattr(out, "logits") else out
        assert torch.equal(out.view(torch.int32), expected.view(torch.int32))
        out.sum().backward()
        torch.save(module, f"{name}.pt")


    for name in sys.argv[1:]:
        check(name)
        check(name)  # as saved there
    assert not [name for name in sys.modules if name.partition(".")[0].startswith("fxgraft")]
    print("ran without fxgraft")
"""

RESNET = """
    import torch
    from torch import nn


    class NumberDropoutBlock(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.drop = 0.1

        def forward(self, x, scale=None):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = nn.functional.dropout(self.bn2(self.conv2(y)), self.drop, training=self.training)
            return torch.relu(x + y) if scale is None else x


    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, stride=2)
            self.blocks = nn.Sequential(NumberDropoutBlock(8), NumberDropoutBlock(8))
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.blocks(self.stem(x)).mean((2, 3)))
"""


def resnet(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Given:
    (folder / "their_resnet.py").write_text(textwrap.dedent(RESNET))
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("their_resnet", None)
    import their_resnet  # type: ignore[import-not-found]

    return Given(their_resnet.ResNet(), (torch.randn(2, 3, 12, 12),))


def saved(given: Given, host: fxgraft.Host, folder: Path, name: str) -> str:
    """Save a host, unwrapped, beside a call of it and what it returned."""
    host.eval()
    expected = host(*given.args, **given.kwargs)
    expected = expected.logits if hasattr(expected, "logits") else expected
    torch.save(fxgraft.unwrap(host), folder / f"{name}.pt")
    torch.save((given.args, given.kwargs, expected.detach()), folder / f"{name}.call")
    return name


def run_elsewhere(folder: Path, *files: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(ELSEWHERE), *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "ran without fxgraft" in done.stdout, done.stderr


def test_a_resnet_runs_in_a_process_without_fxgraft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = resnet(monkeypatch, tmp_path)
    host = fxgraft.trace(given.model, given.args)
    manager = fxgraft.SeedManager(host)
    for i, blueprint in enumerate(CONVOLUTIONAL):
        for mode in get(blueprint).modes:
            fossil(manager, f"blocks.{i % 2}.relu", blueprint, mode=mode, to=1.0 if i % 3 else 0.5)
    fossil(manager, "stem", lambda slot: nn.Sequential(nn.Dropout(0.5), nn.Conv2d(8, 8, 1)))
    fossil(manager, "blocks.1", "low_rank", source="blocks.0.relu")
    run_elsewhere(tmp_path, saved(given, host, tmp_path, "resnet"))


def test_transformers_run_in_a_process_without_fxgraft(tmp_path: Path) -> None:
    files = []
    for model in ("gpt2", "bert"):
        given = MODELS[model]()
        given.model(*given.args, **given.kwargs)  # which completes the configuration: config.problem_type
        host = fxgraft.trace(given.model, given.args, given.kwargs)
        manager = fxgraft.SeedManager(host)
        for i, slot in enumerate([s for s in host.slots if len(host.slots[s].shape) == 3][::4]):
            fossil(manager, slot, ("mlp", "attention", "low_rank")[i % 3], to=1.0 if i % 2 else 0.5)
        files.append(saved(given, host, tmp_path, model))
    run_elsewhere(tmp_path, *files)
