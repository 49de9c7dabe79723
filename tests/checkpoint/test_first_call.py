"""What a model sets once and for all, in its first call: as the model does it, and once in a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from torch import Tensor, nn

import fxgraft
from fxgraft.checkpoint import file
from fxgraft.errors import CheckpointError
from tests.harness import assert_same_bits
from tests.hosts.hosts import Given
from tests.hosts.transformer_models import bert, vit

IDS = torch.arange(3, 17).reshape(2, 7)


def mixtral() -> Given:
    config = T.MixtralConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, use_cache=False, num_local_experts=3,
        num_experts_per_tok=2, output_router_logits=True,
    )  # fmt: skip
    return Given(T.MixtralForCausalLM(config), (), {"input_ids": IDS, "labels": IDS})


class Settled(nn.Module):
    """Sets a text, a number and a dtype in its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.kind: str | None = None
        self.width: int | None = None
        self.dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind is None:
            self.kind, self.width, self.dtype = "wide", x.shape[1], x.dtype
        h = self.inner(x.to(self.dtype))
        return self.head(h.relu() if self.kind == "wide" else h) * self.width


def settled() -> Given:
    return Given(Settled(), (torch.randn(3, 4),))


SLOTS: dict[Callable[[], Given], str] = {
    bert: "classifier",
    vit: "classifier",
    mixtral: "model.layers.1.mlp",
    settled: "head",
}


class Run:
    """A host of a model that was never called, in training."""

    def __init__(self, make: Callable[[], Given], seed: int):
        torch.manual_seed(seed)
        self.given = make()
        for module in self.given.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.host = fxgraft.trace(self.given.model, self.given.args, self.given.kwargs)
        self.optimizer = torch.optim.AdamW(self.host.parameters(), 1e-2)

    def begin(self) -> None:
        self.manager = fxgraft.SeedManager(self.host, self.optimizer, check_every=0)

    def resume(self, path: Path) -> None:
        self.manager = fxgraft.SeedManager.load(path, self.host, self.optimizer, check_every=0)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            found = self.host(*self.given.args, **self.given.kwargs)
            loss = found if isinstance(found, Tensor) else found.loss
            loss.square().mean().backward()
            self.optimizer.step()
            self.manager.step()


@pytest.mark.parametrize("make", SLOTS, ids=lambda make: make.__name__)
def test_a_resumed_run_has_had_its_first_call(make: Callable[[], Given], tmp_path: Path) -> None:
    torch.manual_seed(5)
    straight = Run(make, 0)
    straight.begin()
    straight.train(1)
    straight.manager.germinate(SLOTS[make], "mlp", hidden=3, name="a")
    straight.train(2)
    straight.manager.save(tmp_path / "run")
    straight.train(2)
    resumed = Run(make, 0)  # the same example, other weights than in the file
    resumed.resume(tmp_path / "run")
    resumed.train(2)
    assert resumed.host.explain().fallbacks == 0
    assert_same_bits(resumed.host.state_dict(), straight.host.state_dict())
    assert_same_bits(resumed.optimizer.state_dict()["state"], straight.optimizer.state_dict()["state"])


@pytest.mark.parametrize("make", SLOTS, ids=lambda make: make.__name__)
def test_a_loaded_model_runs_with_what_grew_from_its_first_call_on(
    make: Callable[[], Given], tmp_path: Path
) -> None:
    run = Run(make, 0)
    run.begin()
    run.train(1)
    run.manager.germinate(SLOTS[make], "mlp", hidden=3)
    run.manager.save(tmp_path / "run")
    given = make()
    host = fxgraft.load_model(tmp_path / "run", given.model, given.args, given.kwargs)
    host(*given.args, **given.kwargs)
    assert host.explain().fallbacks == 0


@pytest.mark.parametrize("make", [bert, vit, settled], ids=lambda make: make.__name__)
def test_the_first_call_is_the_models_own_and_the_log_says_what_it_sets(
    make: Callable[[], Given], caplog: Any
) -> None:
    run = Run(make, 0)
    run.begin()
    run.manager.germinate(SLOTS[make], "mlp", hidden=3)
    with caplog.at_level(logging.WARNING, "fxgraft"):
        run.train(1)
    [said] = {record.getMessage().partition(": ")[2] for record in caplog.records}
    assert "the first call of this model sets " in said
    assert "from the second call on" in said
    caplog.clear()
    before = run.host.explain().fallbacks
    run.train(2)
    assert run.host.explain().fallbacks == before
    assert not caplog.records


def test_a_host_that_grows_from_a_state_has_had_its_first_call() -> None:
    run = Run(settled, 0)
    run.begin()
    run.train(1)
    run.manager.germinate("head", "mlp", hidden=3)
    run.host.structure_entry = lambda host: run.manager.describe()
    other = Run(settled, 1)
    other.host.load_state_dict(run.host.state_dict())
    other.host(*other.given.args)
    assert other.host.explain().fallbacks == 0


def test_a_run_without_a_first_call_has_it_after_loading(tmp_path: Path) -> None:
    run = Run(settled, 0)
    run.begin()
    run.manager.save(tmp_path / "run")
    other = Run(settled, 1)
    other.resume(tmp_path / "run")
    assert other.host.kind is None


def test_a_damaged_file_leaves_the_host_before_its_first_call(tmp_path: Path) -> None:
    run = Run(settled, 0)
    run.begin()
    run.train(1)
    run.manager.save(tmp_path / "run")
    manifest, tensors = file.read(tmp_path / "run")
    assert manifest["first_call"] == {"kind": "wide", "width": 4, "dtype": {"dtype": "float32"}}
    file.write(tmp_path / "bad", {**manifest, "first_call": {"kind": "wide", "width": []}}, tensors)
    other = Run(settled, 1)
    with pytest.raises(CheckpointError, match="expected a number or a text"):
        other.resume(tmp_path / "bad")
    assert other.host.kind is None


def test_a_model_that_was_never_called_is_traced_as_one_that_was() -> None:
    never, called = mixtral(), mixtral()
    called.model(**called.kwargs)
    regions = [set(fxgraft.trace(g.model, (), g.kwargs).regions) for g in (never, called)]
    assert regions[0] == regions[1]
    assert not any(module._forward_hooks for module in never.model.modules())
