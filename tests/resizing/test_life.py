"""Models of all kinds: deepened, trained on, saved, loaded, unwrapped, transplanted, trained on there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxgraft
from fxgraft import SeedManager, Stage
from fxgraft.host import engine
from tests.harness import assert_same_bits
from tests.resizing.deep_models import IDS, MODELS, Given, Run, assert_kept


@pytest.mark.parametrize("given", MODELS.values(), ids=list(MODELS))
def test_a_model_is_deepened_and_ends_as_the_plain_model_of_that_size(given: Given, tmp_path: Path) -> None:
    run = Run(given)
    stack = run.host.stacks[given.stack]
    assert stack.path == given.stack
    assert stack.blocks == tuple(f"{given.stack}.{i}" for i in range(given.layers))
    assert all(type(run.host.get_submodule(name)) is stack.cls for name in stack.blocks)
    run.train(1)

    before = run.seen()
    seeds = run.deepened(count=2, optimizer_state="copy")
    run.deepened(at="start")
    assert_kept(run, before)
    assert [seed.stage for seed in seeds] == [Stage.FOSSILIZED] * 2
    run.deepened(at="end", init="random")
    run.train(2)
    for seed in run.manager.seeds.values():
        grads = [p.grad for p in seed.module.parameters() if p.grad is not None]
        assert sum(bool(grad.any()) for grad in grads) > len(grads) / 2

    _goes_on_after_loading(run, tmp_path / "run")
    if "use_cache" in given.kwargs:
        _computes_the_same_with_a_cache(run)
    _is_plain_when_unwrapped(run, tmp_path / "model")
    _trains_on_in_a_plain_model(run)


def _goes_on_after_loading(run: Run, path: Path) -> None:
    run.manager.save(path)
    loaded = Run(run.given)
    loaded.manager = SeedManager.load(path, loaded.host, loaded.optimizer, check_every=0)
    assert loaded.blocks == run.blocks
    loaded.train(1)
    run.train(1)
    assert_same_bits(dict(loaded.host.state_dict()), dict(run.host.state_dict()))


def _computes_the_same_with_a_cache(run: Run) -> None:
    whole = run.host(IDS, use_cache=False).logits[:, -1]
    first = run.host(IDS[:, :-1], use_cache=True)
    name = "cache" if "cache" in first else "past_key_values"
    then = run.host(IDS[:, -1:], use_cache=True, **{name: first[name]}).logits[:, -1]
    torch.testing.assert_close(then, whole)
    numbers = [m.layer_idx for m in run.host.modules() if hasattr(m, "layer_idx")]
    assert len(set(numbers)) == len(numbers) == len(run.blocks)


def _is_plain_when_unwrapped(run: Run, path: Path) -> None:
    given, plain = run.given, fxgraft.unwrap(run.host)
    more = len(run.blocks) - given.layers
    assert type(plain) is type(given.model())
    assert list(plain.state_dict()) == list(given.model(more).state_dict())
    assert all(type(block) is run.host.stacks[given.stack].cls for block in plain.get_submodule(given.stack))
    wanted = given.run(run.host)
    assert_same_bits(given.run(plain), wanted)
    numbers = [m.layer_idx for m in plain.modules() if hasattr(m, "layer_idx")]
    assert numbers in ([], list(range(len(run.blocks))))
    if not hasattr(plain, "save_pretrained"):
        return
    plain.save_pretrained(path)
    again = type(plain).from_pretrained(path).eval()
    assert again.config.num_hidden_layers == len(run.blocks)
    assert_same_bits(given.run(again), wanted)
    model, _ = engine.trees(run.host)
    assert given.model().config.num_hidden_layers == given.layers
    del model


def _trains_on_in_a_plain_model(run: Run) -> None:
    given = run.given
    target = given.model(len(run.blocks) - given.layers)
    optimizer = torch.optim.AdamW(target.parameters(), 1e-2, weight_decay=0.1)
    done = fxgraft.transplant(run.host, target, optimizer=run.optimizer, target_optimizer=optimizer)
    assert isinstance(done, fxgraft.Transplanted)
    assert done.max_abs == 0.0
    out, grads = run.seen()
    target.zero_grad()
    there = given.run(target)
    there.square().mean().backward()
    assert_same_bits(there.detach(), out, "the output")
    state, host = target.state_dict(keep_vars=True), run.host.state_dict(keep_vars=True)
    for name, tensor in host.items():
        if not name.endswith(("alpha", "learning", "released", ".key", ".draws")):  # of a seed alone
            other = state[done.renamed.get(name, name)]
            assert_same_bits(other.detach(), tensor.detach(), name)
            if isinstance(tensor, nn.Parameter) and tensor.grad is not None:
                assert_same_bits(other.grad, tensor.grad, f"the gradient of {name}")
    del grads
    run.train(2)
    for _ in range(2):
        optimizer.zero_grad()
        given.run(target).square().mean().backward()
        optimizer.step()
    assert_same_bits(given.run(target).detach(), given.run(run.host).detach(), "after two more steps")


def test_the_model_that_was_traced_keeps_its_configuration() -> None:
    given = MODELS["gpt2"]
    model: Any = given.model()
    host = fxgraft.trace(model, given.args, given.kwargs)
    manager = SeedManager(host, check_every=0)
    seeds = manager.deepen(given.stack, 2, blend=3)
    assert (model.config.num_hidden_layers, host.config.num_hidden_layers) == (2, 4)
    for seed in seeds:
        manager.cull(seed)
    assert host.config is model.config
