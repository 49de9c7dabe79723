"""Models of transformers grow: hidden units, heads, and the stream between the blocks."""

import pytest
import torch
import transformers

import fxgraft
from fxgraft.errors import CheckpointError

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}


def gpt2():
    config = transformers.GPT2Config(
        n_layer=1, n_head=4, n_embd=16, vocab_size=31, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config), torch.arange(12).reshape(2, 6)


def llama():
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=31)
    return transformers.LlamaForCausalLM(config), torch.arange(12).reshape(2, 6)


def vit():
    config = transformers.ViTConfig(**SIZES, image_size=8, patch_size=4)
    return transformers.ViTForImageClassification(config), torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("make", "groups"),
    [
        (gpt2, {"transformer.h.0.mlp.c_fc": 8, "transformer.h.0.attn.c_attn": 4, "transformer.wte": 8}),
        (
            llama,
            {
                "model.layers.0.mlp.gate_proj": 8,
                "model.layers.0.self_attn.q_proj": 8,
                "model.embed_tokens": 8,
            },
        ),
        (
            vit,
            {
                "vit.layers.0.mlp.fc1": 8,
                "vit.layers.0.attention.q_proj": 4,
                "vit.embeddings.patch_embeddings.projection": 8,
            },
        ),
    ],
    ids=["gpt2", "llama", "vit"],
)
def test_hidden_units_heads_and_stream(make, groups, tmp_path):
    model, batch = make()
    host = fxgraft.trace(model, (batch,), {} if make is vit else {"use_cache": False})
    call = {} if make is vit else {"use_cache": False}
    optimizer = torch.optim.AdamW(host.parameters(), lr=1e-3)
    manager = fxgraft.SeedManager(host, optimizer, check_every=0)

    def train():
        optimizer.zero_grad()
        host(batch, **call).logits.pow(2).mean().backward()
        optimizer.step()
        manager.step()

    train()
    with torch.no_grad():
        before = host.eval()(batch, **call).logits
    free = [name for name, group in host.channels.items() if group.fixed is None]
    assert set(groups) <= set(free)
    for name, by in groups.items():
        manager.widen(name, by)
    with torch.no_grad():
        torch.testing.assert_close(host(batch, **call).logits, before, rtol=1e-4, atol=1e-5)
    host.train()
    train()
    with pytest.raises(CheckpointError, match="which is wider"):
        host.save_pretrained(tmp_path)
    if make is not llama:
        return
    manager.save(tmp_path / "run")
    again = fxgraft.trace(make()[0], (batch,), call)
    fxgraft.SeedManager.load(tmp_path / "run", again, torch.optim.AdamW(again.parameters()), check_every=0)
    with torch.no_grad():
        assert torch.equal(again.eval()(batch, **call).logits, host.eval()(batch, **call).logits)
