"""Stacks of many families of models deepen, with the configuration that each of them has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as T
from torch import nn

import fxgraft
from fxgraft.errors import SlotError
from fxgraft.host.numbering import of_depth
from tests.hosts.transformer_models import TEXT
from tests.resizing.deep_models import gpt2

IDS = torch.arange(3, 17).reshape(2, 7)
HEADS = {"num_key_value_heads": 1, "head_dim": 8}
IMAGE = {"image_size": 16, "patch_size": 8}
STATE = {"vocab_size": 64, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}
SCAN = {"mamba_d_state": 4, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}

Made = tuple[nn.Module, dict[str, Any]]


def _reads(model: nn.Module, **options: Any) -> Made:
    return model, {"input_ids": IDS, "use_cache": False, **options}


def _whisper() -> Made:
    config = T.WhisperConfig(
        vocab_size=40, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=32, num_mel_bins=8,
        max_source_positions=10, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return T.WhisperModel(config).encoder, {"input_features": torch.randn(1, 8, 20)}


def _vit() -> Made:
    sizes = {name: TEXT[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    return T.ViTModel(T.ViTConfig(**sizes, **IMAGE, intermediate_size=32)), {
        "pixel_values": torch.randn(2, 3, 16, 16)
    }


FAMILIES: dict[str, Callable[[], Made]] = {
    "llama": lambda: _reads(T.LlamaForCausalLM(T.LlamaConfig(**TEXT, **HEADS))),
    "qwen2": lambda: _reads(T.Qwen2ForCausalLM(T.Qwen2Config(**TEXT, num_key_value_heads=1))),
    "qwen3": lambda: _reads(T.Qwen3ForCausalLM(T.Qwen3Config(**TEXT, **HEADS))),
    "gemma2": lambda: _reads(T.Gemma2ForCausalLM(T.Gemma2Config(**TEXT, **HEADS))),
    "gemma3": lambda: _reads(T.Gemma3ForCausalLM(T.Gemma3TextConfig(**TEXT, **HEADS))),
    "mamba": lambda: _reads(T.MambaForCausalLM(T.MambaConfig(**STATE))),
    "mamba2": lambda: _reads(
        T.Mamba2ForCausalLM(T.Mamba2Config(**STATE, num_heads=4, head_dim=8, n_groups=1, chunk_size=8))
    ),
    "falcon_mamba": lambda: _reads(T.FalconMambaForCausalLM(T.FalconMambaConfig(**STATE))),
    "falcon": lambda: _reads(T.FalconForCausalLM(T.FalconConfig(**TEXT))),
    "falcon_h1": lambda: _reads(
        T.FalconH1ForCausalLM(T.FalconH1Config(**TEXT, **HEADS, **SCAN, mamba_d_ssm=32))
    ),
    "gpt_neox": lambda: _reads(T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**TEXT))),
    "whisper": _whisper,
    "vit": _vit,
}


@pytest.mark.parametrize("make", FAMILIES.values(), ids=list(FAMILIES))
def test_a_stack_deepens_and_computes_what_it_did(make: Callable[[], Made]) -> None:
    torch.manual_seed(0)
    model, given = make()
    host = fxgraft.trace(model.eval(), (), given)
    before = host(**given)[0].detach()
    manager = fxgraft.SeedManager(host, torch.optim.AdamW(host.parameters()))
    stack = next(iter(host.stacks))
    manager.deepen(stack, 1, at="end")
    torch.testing.assert_close(host(**given)[0], before, rtol=0, atol=0)
    assert len(host.stacks[stack].blocks) == 3
    plain = fxgraft.unwrap(host)
    torch.testing.assert_close(plain(**given)[0], before, rtol=0, atol=0)
    assert plain.config.num_hidden_layers == 3


def test_a_depth_that_follows_from_the_kinds_of_blocks_is_set_by_them() -> None:
    config = T.NemotronHConfig(layers_block_type=["mamba", "moe"])
    made = of_depth(config, 3, [*config.layer_types, "mamba"])
    assert made.num_hidden_layers == 3
    assert config.num_hidden_layers == 2


@pytest.mark.parametrize("kind", [T.JambaConfig, T.BambaConfig])
def test_kinds_of_blocks_that_a_configuration_does_not_have_are_refused(kind: type) -> None:
    config = kind(num_hidden_layers=3)
    with pytest.raises(SlotError, match=f"{kind.__name__} computes layer_types.*expected .*'odd'.*; got"):
        of_depth(config, 4, [*config.layer_types, "odd"])


class OneBlockMore(T.FalconMambaConfig):
    """Says of the last block another thing than of those before it."""

    @property
    def layer_types(self) -> list[str]:
        return ["full_attention"] * (self.num_hidden_layers > 2) + ["linear_attention"] * 2


def test_a_refusal_while_blocks_come_changes_nothing() -> None:
    host = fxgraft.trace(T.FalconMambaForCausalLM(OneBlockMore(**STATE)).eval(), (), _reads(nn.Identity())[1])
    manager = fxgraft.SeedManager(host, torch.optim.AdamW(host.parameters()))
    before, code = host(IDS, use_cache=False)[0], {n: r.code for n, r in host.regions.items()}
    with pytest.raises(SlotError, match="OneBlockMore computes layer_types"):
        manager.deepen("backbone.layers", 1)
    assert not manager.seeds
    assert {n: r.code for n, r in host.regions.items()} == code
    assert host.config.num_hidden_layers == 2
    torch.testing.assert_close(host(IDS, use_cache=False)[0], before, rtol=0, atol=0)


def test_a_seed_that_learns_in_isolation_does_not_hide_what_ends_a_branch() -> None:
    """Attention has no graph there: what ends its branch is seen in a run, with the seed in it."""
    zero = []
    for slot in (None, "transformer.h.0.attn.resid_dropout"):
        host = fxgraft.trace(gpt2(), (torch.arange(12).reshape(2, 6),))
        manager = fxgraft.SeedManager(host, check_every=0)
        if slot is not None:
            manager.germinate(slot, "mlp")
        (block,) = manager.deepen("transformer.h", at=[0])
        assert block.module is not None
        zero.append([name for name, p in block.module.named_parameters() if not p.any()])
    assert zero[0] == zero[1]
    assert "attn.c_proj.weight" in zero[1]
