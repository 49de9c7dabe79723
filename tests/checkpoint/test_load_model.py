"""``fxgraft.load_model``: what was saved computes the same again, without optimizer, manager or pickle."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from fxgraft import SeedManager
from fxgraft.errors import CheckpointError
from tests.harness import assert_same_bits, frozen

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
MASK = torch.ones(8, 1, dtype=torch.int64)


class MaskedNormNet(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Dropout(0.2)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor, mask: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.first(x * mask) * scale))))


def call(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X, MASK, scale=2.0)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, Tensor], Tensor]:
    """A file with a seed in each stage, the weights, and what the host computed."""
    host = fxgraft.trace(MaskedNormNet(), (X, MASK), {"scale": 2.0})
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    manager = SeedManager(host, optimizer)
    for slot, name, options in (
        ("first", "fossil", {"hidden": 3}),
        ("relu", "blending", {"hyper": {"lr": 1e-3}}),
        ("relu", "isolated", {}),
    ):
        manager.germinate(slot, "mlp", name=name, **options)
    for step in range(6):
        if step == 3:
            manager.fossilize("fossil", force=True)
            manager.blend("blending", steps=9)
        optimizer.zero_grad()
        host(X, MASK, scale=2.0).square().mean().backward()
        optimizer.step()
        manager.step()
    manager.save(tmp_path / "run")
    host.eval()
    return tmp_path / "run", frozen(host.state_dict()), call(host)


@pytest.mark.parametrize("resumes", [False, True])
def test_it_computes_that_where_autocast_is_on_all_the_time(saved: Any, resumes: bool) -> None:
    """Inside of autocast torch keeps casts of weights: those of the weights before have to go."""
    path, _, _ = saved

    def loaded() -> nn.Module:
        if not resumes:
            return fxgraft.load_model(path, MaskedNormNet())
        host = fxgraft.trace(MaskedNormNet(), (X, MASK), {"scale": 2.0})
        SeedManager.load(path, host, torch.optim.AdamW(host.parameters(), 1e-2))
        return host.eval()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loaded()(X, MASK, scale=2.0).detach()
    outside = loaded()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_bits(inside, outside(X, MASK, scale=2.0).detach(), "outputs")


@pytest.mark.parametrize("way", ["load_model", "load"])
def test_what_is_loaded_in_inference_mode_can_be_trained(saved: Any, way: str) -> None:
    path, _, expected = saved
    model = MaskedNormNet()
    host = fxgraft.trace(MaskedNormNet(), (X, MASK), {"scale": 2.0})
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    with torch.inference_mode():
        if way == "load_model":
            host = fxgraft.load_model(path, model)
        else:
            SeedManager.load(path, host, optimizer)
    assert_same_bits(call(host.eval()), expected, "outputs")
    assert not any(t.is_inference() for t in (*host.parameters(), *host.buffers()))
    host.train()(X, MASK, scale=2.0).square().mean().backward()
    torch.optim.SGD(host.parameters(), 1e-2).step()


def test_it_computes_what_was_saved(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path, weights, expected = saved
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(torch, "load", None)
    model = MaskedNormNet()
    before = torch.get_rng_state()
    found = fxgraft.load_model(path, model)
    assert_same_bits(before, torch.get_rng_state(), "the random stream")
    assert_same_bits(call(found), expected, "outputs")
    assert_same_bits(frozen(found.state_dict()), weights, "weights")
    assert not found.training
    assert isinstance(found, fxgraft.Host)
    assert found.first.weight is model.first.weight
    assert set(found.grafts()) == {"fossil", "blending", "isolated"}


def test_a_host_or_an_example_may_be_given(saved: Any) -> None:
    path, _, expected = saved
    for found in (
        fxgraft.load_model(path, fxgraft.trace(MaskedNormNet(), (X[:2], MASK[:2]), {"scale": 2.0})),
        fxgraft.load_model(path, MaskedNormNet(), (X[:2], MASK[:2]), {"scale": 2.0}),
    ):
        assert_same_bits(call(found), expected, "outputs")


def test_a_new_manager_can_lead_a_run_from_there(saved: Any) -> None:
    path, _, _ = saved
    found = fxgraft.load_model(path, MaskedNormNet())
    assert found._links.led_by is None
    manager = SeedManager(fxgraft.trace(MaskedNormNet(), (X, MASK), {"scale": 2.0}))
    manager.germinate("relu", "mlp")


def test_what_cannot_be_is_refused_by_name(saved: Any, tmp_path: Path) -> None:
    path, _, _ = saved
    with pytest.raises(CheckpointError, match=r"another host.*first.bias"):
        fxgraft.load_model(path, MaskedNormNet(5))
    with pytest.raises(CheckpointError, match="no such file"):
        fxgraft.load_model(tmp_path / "nothing", MaskedNormNet())
    with pytest.raises(CheckpointError, match="a folder, of a sharded run"):
        fxgraft.load_model(tmp_path, MaskedNormNet())
    (tmp_path / "torch").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="expected a checkpoint"):
        fxgraft.load_model(tmp_path / "torch", MaskedNormNet())


def test_seeds_of_code_and_calls_without_a_form_are_asked_for(tmp_path: Path) -> None:
    class Options:
        """Neither data nor a tensor."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, options: Options) -> Tensor:
            return self.head(torch.relu(self.first(x)))

    call = (X, Options())
    manager = SeedManager(fxgraft.trace(Odd(), call))
    manager.germinate("relu", nn.Linear(4, 4), name="own")
    manager.save(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"load_model\(path, model, example_args\)"):
        fxgraft.load_model(tmp_path / "run", Odd())
    with pytest.raises(CheckpointError, match="germinated from code"):
        fxgraft.load_model(tmp_path / "run", Odd(), call)
    found = fxgraft.load_model(tmp_path / "run", Odd(), call, blueprints={"own": nn.Linear(4, 4)})
    assert set(found.grafts()) == {"own"}
