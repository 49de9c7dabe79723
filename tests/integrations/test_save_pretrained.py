"""transformers' ``save_pretrained`` has no place for what grew: it refuses, of hosts and unwrapped models."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import fxgraft
from fxgraft.errors import CheckpointError
from tests.harness import assert_same_bits

IDS = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(0))
GROWN = r"expected a model in which nothing grew; it has a"


def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def host() -> fxgraft.Host:
    return fxgraft.trace(model(), (), {"input_ids": IDS})


def with_fossil(net: fxgraft.Host) -> fxgraft.SeedManager:
    manager = fxgraft.SeedManager(net)
    seed = manager.germinate("transformer.h.0.ln_1", "mlp", name="a")
    for parameter in seed.module.parameters():
        nn.init.constant_(parameter, 0.1)
    manager.blend("a", steps=1)
    manager.step()
    manager.fossilize("a")
    return manager


def test_a_host_without_seeds_is_written_as_its_model_is(tmp_path: Path) -> None:
    net = host()
    assert isinstance(net, PreTrainedModel)
    net.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert_same_bits(again.eval()(IDS).logits, net(IDS).logits, "written and read")
    assert again.lm_head.weight is again.transformer.wte.weight


COPIES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda net: net,
    "copied": copy.deepcopy,
    "pickled": lambda net: pickle.loads(pickle.dumps(net)),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_host_with_a_seed_refuses(name: str, tmp_path: Path) -> None:
    net = host()
    manager = fxgraft.SeedManager(net)
    manager.germinate("transformer.h.0.ln_1", "mlp", name="a")
    there = COPIES[name](net)
    for refuses in (there.save_pretrained, there.transformer.save_pretrained):
        with pytest.raises(CheckpointError, match=GROWN + r".*manager\.save\(path\)"):
            refuses(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    manager.cull("a")
    net.save_pretrained(tmp_path / "culled")
    assert (tmp_path / "culled" / "config.json").exists()


def through_torch(net: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [lambda net: net, through_torch, copy.deepcopy])
def test_an_unwrapped_model_with_a_fossil_refuses(again: Callable[[Any], Any], tmp_path: Path) -> None:
    net = host()
    before = net(IDS).logits
    with_fossil(net)
    plain = again(fxgraft.unwrap(net))
    assert_same_bits(plain(IDS).logits, net(IDS).logits, "unwrapped")
    assert not torch.equal(plain(IDS).logits, before)
    for refuses in (plain.save_pretrained, plain.transformer.save_pretrained):
        with pytest.raises(CheckpointError, match=GROWN + r".*torch\.save\(model, path\)"):
            refuses(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    traced = fxgraft.trace(plain, (), {"input_ids": IDS})
    with pytest.raises(CheckpointError, match=GROWN):
        traced.save_pretrained(tmp_path / "refused")


def test_an_unwrapped_model_in_which_nothing_grew_is_written(tmp_path: Path) -> None:
    plain = fxgraft.unwrap(host())
    plain.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert_same_bits(again.eval()(IDS).logits, plain(IDS).logits, "written and read")


class Hub(nn.Module):
    """Another model that writes itself, with nothing of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)

    def save_pretrained(self, folder: Path) -> None:
        torch.save(self.state_dict(), folder)


def test_any_model_that_writes_itself(tmp_path: Path) -> None:
    net = fxgraft.trace(Hub(), (torch.randn(2, 4),))
    net.save_pretrained(tmp_path / "weights")
    assert torch.load(tmp_path / "weights").keys() == net.state_dict().keys()
    fxgraft.SeedManager(net).germinate("body.1", "mlp", name="a")
    with pytest.raises(CheckpointError, match=rf"Hub\.save_pretrained: {GROWN}"):
        net.save_pretrained(tmp_path / "weights")
