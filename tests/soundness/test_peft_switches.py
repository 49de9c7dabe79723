"""What PEFT flips for a call: adapters that are off, or merged, while a seed stands in their layers."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers
from torch import Tensor

import fxgraft
from fxgraft.util.bits import same_bits


def adapted() -> tuple[torch.nn.Module, Tensor]:
    config = transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(config)
    lora = peft.LoraConfig(
        r=2, target_modules=["c_fc"], lora_alpha=16, init_lora_weights=False, fan_in_fan_out=True
    )
    return peft.get_peft_model(base, lora).eval(), torch.randint(0, 64, (2, 7))


@pytest.fixture
def grown():
    model, ids = adapted()
    reference, _ = adapted()
    host = fxgraft.trace(model, (), {"input_ids": ids, "use_cache": False})
    manager = fxgraft.SeedManager(host, check_every=0)
    inside = [name for name in host.slots if ".c_fc." in name]
    for name in (inside[0], inside[-1], next(n for n in host.slots if n.endswith("c_fc"))):
        manager.germinate(name, Scaled())
    return host, reference, {"input_ids": ids, "use_cache": False}


class Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_adapters_that_are_off_for_a_call(grown):
    host, reference, call = grown
    assert same_bits(host(**call).logits, reference(**call).logits)
    assert host.explain().fallbacks == 0
    with host.disable_adapter(), reference.disable_adapter():
        off = reference(**call).logits
        assert same_bits(host(**call).logits, off)
    assert not same_bits(reference(**call).logits, off)
    assert same_bits(host(**call).logits, reference(**call).logits)


def test_adapters_that_are_merged(grown):
    host, reference, call = grown
    host.merge_adapter(), reference.merge_adapter()
    assert same_bits(host(**call).logits, reference(**call).logits)
    host.unmerge_adapter(), reference.unmerge_adapter()
    assert same_bits(host(**call).logits, reference(**call).logits)
