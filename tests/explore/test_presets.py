"""Presets: few candidates, at the blocks of a family, found by structure; others are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgraft
from benchmarks.explore.presets import FAMILIES, Training
from fxgraft.errors import SlotError
from fxgraft.explore import presets
from tests.explore.test_trajectory import Decoder, words


class Layer(nn.Module):
    """A convolution and its norm: no block by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Residual(nn.Module):
    """A block of two layers, in a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Layer(), Layer())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def residual_network() -> fxgraft.Host:
    stages = nn.Sequential(*(nn.Sequential(Residual(), Residual()) for _ in range(2)))
    net = nn.Sequential(nn.Conv2d(1, 4, 3), stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return fxgraft.trace(net, (torch.randn(2, 1, 8, 8),))


def places(found: list[Any]) -> set[tuple[str, str]]:
    return {(seed.slot, seed.blueprint) for seed in found}


def test_a_decoder_grows_behind_its_blocks_and_before_its_head() -> None:
    host = fxgraft.trace(Decoder(), words(0)[:1])
    found = presets.decoder(host)
    assert places(found) == {
        *((f"blocks.{i}", kind) for i in range(2) for kind in ("mlp", "attention", "deepen")), ("ln", "mlp"),
    }  # fmt: skip
    assert all(seed.config["causal"] for seed in found if seed.blueprint == "attention")
    assert not any(seed.config.get("causal") for seed in presets.encoder(host))
    assert places(presets.vision(host)) == places(found)


def test_a_residual_network_grows_behind_its_blocks_not_its_stages_or_layers() -> None:
    host = residual_network()
    assert len(host.stacks) > 2
    blocks = [f"1.{stage}.{block}" for stage in range(2) for block in range(2)]
    kinds = ("conv_bottleneck", "squeeze_excite", "deepen")
    assert places(presets.resnet(host)) == {(block, kind) for block in blocks for kind in kinds}


def test_the_candidates_are_explored() -> None:
    x, y = words(0)
    host = fxgraft.trace(Decoder(), (x,))
    optimizer = torch.optim.AdamW(host.parameters(), 1e-2)
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(host(x), y)

    exploration = manager.explore(presets.decoder(host), evaluate=loss, steps=2)
    for _ in range(2):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        manager.step()
    assert len(exploration.best(100)) == 7, exploration


def test_a_host_of_another_family_is_refused_by_name() -> None:
    flat = fxgraft.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(2, 4),))
    with pytest.raises(SlotError, match="expected a host with a stack of alike blocks"):
        presets.decoder(flat)
    with pytest.raises(
        SlotError, match="none of conv_bottleneck, squeeze_excite fits behind a block of blocks"
    ):
        presets.resnet(fxgraft.trace(Decoder(), words(0)[:1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_candidates_of_models_of_transformers_learn(family: str) -> None:
    """With each model that the guide names. The norms of BERT stand behind its sums: no block fits."""
    training = Training(family, getattr(presets, FAMILIES[family][0]))
    training.step()
    assert training.exploration is not None
    failed = [row for row in training.exploration.table if row.status == "failed"]
    assert {row.blueprint for row in failed} <= ({"deepen"} if family == "BERT" else set())
    assert all("needs a block (BertLayer) that is its input plus branches" in row.reason for row in failed)
    assert training.tried() == {"tried": 9, "failed": 4, "left_out": 0} or not failed
    assert training.tried()["tried"] >= 9
