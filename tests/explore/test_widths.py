"""Channels as candidates: wherever they can grow they are tried, or the table says why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import fxgraft
from fxgraft import SeedManager
from fxgraft.commands import CULL, SEED, WIDEN
from fxgraft.errors import CommandError
from fxgraft.explore import Exploration, Row
from fxgraft.explore._fitting import wider
from tests.explore.runs import Run
from tests.harness import assert_same_bits, frozen

SMALL = {"vocab_size": 24, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = torch.arange(12).reshape(2, 6)


class Padded(nn.Module):
    """Convolutions of one size, with a norm between two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = (
            nn.Conv2d(2, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 2, 3, padding=1),
        )
        self.head = nn.Linear(2 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(torch.relu(self.norm(self.a(x))))
        return self.head(x.flatten(1))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


def strided() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))


HOSTS: dict[str, tuple[Callable[[], nn.Module], Tensor, set[str], set[str]]] = {
    # model, example, groups that are tried, groups that can grow and are not
    "the input of the model is the source": (perceptron, torch.randn(3, 6), {"0", "2"}, set()),
    "the argument of a module is the source": (
        lambda: GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=8, **SMALL)),
        IDS, {"transformer.h.0.mlp.c_fc"}, {"transformer.wte", "transformer.h.0.attn.c_attn"},
    ),
    "a gate": (
        lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, **SMALL)),
        IDS, {"model.layers.0.mlp.gate_proj"}, {"model.embed_tokens", "model.layers.0.self_attn.q_proj"},
    ),
    "convolutions": (Padded, torch.randn(2, 2, 6, 6), {"a"}, set()),
    "convolutions that change the size": (strided, torch.randn(2, 2, 6, 6), {"0", "2"}, set()),
}  # fmt: skip


def traced(name: str) -> fxgraft.Host:
    torch.manual_seed(0)
    make, example, _, _ = HOSTS[name]
    return fxgraft.trace(make(), (example,))


@pytest.mark.parametrize("name", HOSTS)
def test_every_group_that_can_grow_is_tried_or_the_table_says_why_not(name: str) -> None:
    host = traced(name)
    found = wider(host, None)
    growable = {group.name for group in host.channels.values() if group.fixed is None}
    _, _, tried, left_out = HOSTS[name]
    assert {one.width.group for one in found.candidates if one.width} == tried
    assert {seed.slot for seed, _, _ in found.left_out} == left_out
    assert tried | left_out == growable
    for seed, _, reason in found.left_out:
        assert reason.startswith("no branch can stand for it: ")
        assert reason.endswith(f"manager.widen({seed.slot!r}, ...) grows it untried")
    for one in found.candidates:
        assert one.width is not None
        assert one.width.by == host.channels[one.width.group].size, "twice as many"


@pytest.mark.parametrize("name", [name for name, (_, _, tried, _) in HOSTS.items() if tried])
def test_what_stands_for_them_runs_and_the_host_does_not_feel_it(name: str) -> None:
    _, example, tried, _ = HOSTS[name]

    def trained(explores: bool) -> tuple[Any, Exploration | None]:
        host = traced(name)
        optimizer = torch.optim.AdamW(host.parameters(), 1e-3)
        manager = SeedManager(host, optimizer)

        def loss() -> Tensor:
            out = host(example)
            return getattr(out, "logits", out).square().mean()  # type: ignore[no-any-return]

        exploration = manager.explore(evaluate=loss, steps=4) if explores else None
        for _ in range(4):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            manager.step()
        return frozen(host.state_dict()), exploration

    plain, _ = trained(explores=False)
    state, exploration = trained(explores=True)
    assert_same_bits(plain, state, "weights")
    assert exploration is not None
    rows = {row.widens[0]: row for row in exploration.table if row.widens and row.status == "measured"}
    assert rows.keys() == tried
    assert all(row.gradient and row.trained_steps for row in rows.values())


def test_where_there_is_no_room_for_twice_as_many_it_is_fewer() -> None:
    host = fxgraft.trace(perceptron(), (torch.randn(3, 6),))

    def by(most: int) -> dict[str, int]:
        found = wider(host, {"parameters": most}).candidates
        return {one.width.group: one.width.by for one in found if one.width}

    of_one = {"0": 6 + 1 + 5, "2": 4 + 1 + 2}
    assert by(10**6) == {"0": 4, "2": 5}
    assert by(2 * of_one["0"]) == {"0": 2, "2": 2}
    assert by(of_one["0"]) == {"0": 1, "2": 1}


def rows_of(run: Run) -> dict[str, Row]:
    exploration = run.explored(["relu"], blueprints=["mlp", "norm"])
    return {row.blueprint: row for row in exploration.table}


@pytest.mark.parametrize("form", ["command", "dictionary"])
def test_what_is_excluded_is_left_out_by_name(form: str) -> None:
    run = Run()
    row = rows_of(run)["mlp"]
    given = row.command if form == "command" else row.to_dict()["command"]
    left = run.explored(["relu"], blueprints=["mlp", "norm"], exclude=[given])
    assert {(row.blueprint, row.status, row.reason) for row in left.table} == {
        ("norm", "measured", ""),
        ("mlp", "left out", "it was excluded"),
    }
    with pytest.raises(ValueError, match="nothing could grow: it was excluded"):
        run.manager.explore([row.command], evaluate=run.evaluate, exclude=[given])
    assert not run.manager.seeds


def test_only_what_grows_can_be_excluded() -> None:
    run = Run()
    with pytest.raises(CommandError, match="exclude: expected SEED, WIDEN or DEEPEN; got CULL"):
        run.manager.explore(evaluate=run.evaluate, exclude=[CULL(seed="a")])


def test_channels_that_are_excluded_are_left_out() -> None:
    host = fxgraft.trace(perceptron(), (torch.randn(3, 6),))
    manager = SeedManager(host, torch.optim.AdamW(host.parameters()))
    exploration = manager.explore(
        evaluate=lambda: host(torch.ones(2, 6)).sum(), exclude=[WIDEN(group="0", by=4)]
    )
    said = {row.command: row.status for row in exploration.table if row.widens}
    assert said == {WIDEN(group="0", by=4): "left out", WIDEN(group="2", by=5): "learning"}
    exploration.cancel()


def test_what_failed_is_not_tried_again_until_something_was_kept() -> None:
    run = Run()
    candidates = [SEED(slot=slot, blueprint="norm") for slot in ("relu", "first")]
    growth = run.manager.autogrow(
        run.evaluate,
        candidates,
        9.0,
        when=lambda manager: True,
        steps=2,
        blend=1,
        hold=1,
        gain=1e9,
        patience=5,
    )
    run.train(120)
    tried = [entry["slot"] for entry in growth.history if entry["what"] in ("blending", "beginning anew")]
    assert sorted(tried) == ["first", "relu"], growth
    assert growth.history[-1]["reason"] == "nothing else fits in the budget"


@pytest.mark.parametrize("rises", [True, False])
def test_what_the_host_only_got_used_to_is_not_kept(monkeypatch: Any, rises: bool) -> None:
    run = Run()
    monkeypatch.setattr("fxgraft.explore._trial.GrowthTrial._has_to_give", lambda self, *_: -1.0)

    def evaluate() -> float:
        worse = 5.0 * (run.manager.steps > 6) if rises else 0.0
        return sum(map(float, run.evaluate())) / 4 + worse

    growth = run.manager.autogrow(
        evaluate, [SEED(slot="relu", blueprint="mlp")], 9.0,
        when=lambda manager: True, steps=2, blend=3, hold=6, patience=1,
    )  # fmt: skip
    run.train(60)
    what = {entry["what"]: entry for entry in growth.history}
    assert ("kept" in what) is not rises
    if rises:
        assert "before it was tried" in what["dropped"]["reason"]
        assert not run.manager.seeds
